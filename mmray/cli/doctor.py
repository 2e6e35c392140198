"""`mmray doctor`: what this machine has, what is missing, and how to get it."""

from typing import Annotated

import typer

from mmray.cli.told import FAILED, AsJson, emit, told, with_storage
from mmray.storage import Storage

MARKS = {"ok": "ok     ", "remark": "remark ", "missing": "MISSING"}


@with_storage
def doctor(
    storage: Storage,
    uris: Annotated[
        list[str] | None,
        typer.Argument(metavar="[URI]...", help="Sources and stores to reach."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check versions, devices, packaged weights and access to object storage; exit 1 if something
    needed is missing."""
    from mmray.doctor import diagnose

    with told(as_json):
        found = diagnose(uris or (), storage)
    if as_json:
        emit(found.as_dict())
    else:
        width = max(len(check.name) for check in found.checks)
        for check in found.checks:
            typer.echo(f"{MARKS[check.status]}  {check.name:<{width}}  {check.found}")
            if check.remedy:
                typer.echo(f"{'':{len(MARKS['ok']) + width + 4}}{check.remedy}")
        typer.echo("usable" if found.usable else "not usable yet: see MISSING above")
    if not found.usable:
        raise typer.Exit(FAILED)
