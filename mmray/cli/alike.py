"""What `mmray store` and `mmray index` have alike: options, and what `verify` and `gc` print."""

from collections.abc import Sequence
from typing import Annotated, Protocol

import typer

from mmray.cli.told import size

Limit = Annotated[int | None, typer.Option(min=1, help="Only the latest ones.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would go.")]


class Collected(Protocol):
    """What was removed, or would be."""

    @property
    def removed(self) -> tuple[str, ...]:
        """Files, sorted."""

    @property
    def bytes(self) -> int:
        """Of all of them."""


def group(text: str) -> typer.Typer:
    """A group of commands, which prints its help where none of them is named."""
    app = typer.Typer(help=text, invoke_without_command=True, rich_markup_mode=None)

    @app.callback()
    def root(context: typer.Context) -> None:
        if context.invoked_subcommand is None:
            typer.echo(context.get_help())

    return app


def show_verdict(place: str, problems: Sequence[str], facts: str) -> None:
    """What `verify` found, for people."""
    for problem in problems:
        typer.echo(f"PROBLEM  {problem}")
    number = len(problems)
    verdict = f"{number} problem{'s' if number > 1 else ''}" if problems else "ok"
    typer.echo(f"{place}: {verdict}; {facts}")


def show_removed(result: Collected, dry_run: bool) -> None:
    """What `gc` removed, or would remove, for people."""
    if dry_run:
        for path in result.removed:
            typer.echo(path)
    word = "would be removed" if dry_run else "removed"
    typer.echo(f"{len(result.removed):,} files ({size(result.bytes)}) {word}")
