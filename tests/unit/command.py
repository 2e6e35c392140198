"""The command line called in this process."""

from __future__ import annotations

import json
from typing import Any

from typer.testing import CliRunner, Result

from mmray.cli import app


def call(*words: object) -> Result:
    """`mmray` with these words."""
    return CliRunner().invoke(app, [str(word) for word in words], prog_name="mmray")


def last_line(result: Result) -> dict[str, Any]:
    """The JSON object that standard output ends with."""
    value = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value
