"""Python processes beside this one."""

import os
import sys


def environment() -> dict[str, str]:
    """The environment in which another Python process finds the modules that this one finds."""
    places = os.pathsep.join(path or os.getcwd() for path in sys.path)
    return {**os.environ, "PYTHONPATH": places}
