"""The one option of the soak tier."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--soak-afresh` runs parts that have passed, too."""
    parser.addoption("--soak-afresh", action="store_true", help="run parts that passed, too")
