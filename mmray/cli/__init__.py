"""The command line: parse, call the Python API, print. One file per group of commands.

`mmray --help` must stay quick, so nothing here imports Ray, torch, pandas or Arrow at its top;
commands import what they call.
"""

from pathlib import Path
from typing import Annotated

import typer

from mmray import __version__
from mmray.cli import compare, doctor, index, plan, quarantine, run, search, store
from mmray.cli.told import told

app = typer.Typer(
    name="mmray",
    help="Shards of images, text, audio and video in object storage into versioned embedding "
    "stores, exactly once.",
    invoke_without_command=True,
    add_completion=False,
    # Typer's own tracebacks show local variables: they may hold credentials.
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"mmray {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    if context.invoked_subcommand is None and not version:
        typer.echo(context.get_help())


app.command("run")(run.run)
app.command("plan")(plan.plan)
app.command("validate")(run.validate)
app.command("schema")(run.schema)
app.command("search")(search.search)
app.command("doctor")(doctor.doctor)
store.app.command("diff")(compare.diff)
store.app.command("import")(compare.import_)
store.app.command("quarantine")(quarantine.quarantine)
store.app.command("replay")(quarantine.replay)
app.add_typer(store.app, name="store")
app.add_typer(index.app, name="index")


@app.command()
def demo(
    data: Annotated[
        Path | None,
        typer.Option(
            help="A folder of pictures with captions (x.png and x.txt); left out: the stamps.",
            exists=True,
            file_okay=False,
        ),
    ] = None,
) -> None:
    """Embed, search and learn from pictures and speech, step by step, on a local S3 server."""
    with told():
        from mmray.demo.run import main

        main(data)
