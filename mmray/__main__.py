"""`python -m mmray` is the `mmray` command."""

from mmray.cli import app

app()
