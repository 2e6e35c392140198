"""Writes reference.md: every field of every spec, every command, from the code itself.

`python docs/generate.py` writes the page, `--check` exits 1 when it isn't current.
"""

from __future__ import annotations

import difflib
import os
import re
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

os.environ |= {"COLUMNS": "96", "TERMINAL_WIDTH": "96", "NO_COLOR": "1", "TERM": "dumb"}
os.environ["_TYPER_FORCE_DISABLE_TERMINAL"] = "1"

from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.main import get_command
from typer.testing import CliRunner

from mmray.cli import app
from mmray.report.words import size
from mmray.specs import KINDS

PAGE = Path(__file__).with_name("reference.md")
HEADER = """\
# Reference

Every command and every field of every spec. This page is generated from the code by
`make reference`, and a test checks that it is current. Where a field is a mapping, its key stands
in between: `model.towers.text.train`, `filter.metadata.width.min`. A list, such as `encoder.of`, is
set as a whole.
"""
BOUNDS = {"gt": "more than", "ge": "at least", "lt": "less than", "le": "at most"}


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEADER, *commands(), *(line for kind in KINDS for line in spec(kind))])


def commands() -> Iterator[str]:
    """Help of each command, as the terminal shows it."""
    yield "## Commands\n"
    yield "| exit code | means |\n|---|---|"
    yield "| 0 | done |"
    yield "| 1 | the job failed, or `verify` of a store or an index found loss or damage |"
    yield "| 2 | the spec or the arguments are wrong, or the job was refused before work |"
    yield "| 130, 143 | interrupted by Ctrl-C or SIGTERM; what had finished is committed |\n"
    yield "With `--json` the last line of standard output is one JSON object on one line, and"
    yield "everything else goes to standard error.\n"
    runner = CliRunner()
    for words in leaves(get_command(app), ()):
        done = runner.invoke(app, [*words, "--help"], prog_name="mmray")
        if done.exit_code:
            raise SystemExit(f"mmray {' '.join(words)} --help failed: {done.output}")
        text = "\n".join(line.rstrip() for line in done.output.strip().splitlines())
        yield f"### mmray {' '.join(words)}\n\n```text\n{text}\n```\n"


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    """The words of each command that runs something."""
    subcommands = getattr(command, "commands", None)
    if subcommands is None:
        yield words
        return
    for name, subcommand in subcommands.items():
        if not subcommand.hidden:
            yield from leaves(subcommand, (*words, name))


def spec(kind: str) -> Iterator[str]:
    """Tables of the fields of one job kind."""
    model = KINDS[kind]
    yield f"## job: {kind}\n\n{prose(model)}\n"
    yield from tables(model, "")


def tables(model: type[BaseModel], prefix: str) -> Iterator[str]:
    """The table of `model`'s own fields, then a section for each part within it."""
    yield "| field | type | default | |\n|---|---|---|---|"
    nested: list[tuple[str, list[type[BaseModel]]]] = []
    for name, field in model.model_fields.items():
        models = parts(field.annotation)
        if models:
            nested.append((name, models))
        default = "required" if field.is_required() else show(field)
        kind = "see below" if models else bounded(field)
        words = (field.description or "").replace("\n", " ")
        if not words and models:
            words = " ".join(prose(models[0]).split()) if len(models) == 1 else ""
        cells = (f"`{prefix}{name}`", kind, default, words)
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
    yield ""
    for name, models in nested:
        for part in models:
            tag = kind_of(part)
            yield f"### {prefix}{name}{f', kind: {tag}' if tag else ''}\n\n{prose(part)}\n"
            yield from tables(part, f"{prefix}{name}.")


def parts(annotation: Any) -> list[type[BaseModel]]:
    """The models within an annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in parts(each)]


def kind_of(model: type[BaseModel]) -> str:
    """The value of its `kind` field, where it is one of several."""
    field = model.model_fields.get("kind")
    values = get_args(field.annotation) if field else ()
    return values[0] if len(values) == 1 else ""


def prose(model: type[BaseModel]) -> str:
    """The model's docstring, unwrapped."""
    return " ".join((model.__doc__ or "").split())


def bounded(field: FieldInfo) -> str:
    """Type and bounds of a field."""
    return ", ".join([words_of(field.annotation), *bounds(field.annotation, field.metadata)])


def bounds(annotation: Any, metadata: Iterable[Any]) -> Iterator[str]:
    """The bounds of a type in words."""
    for bound in metadata:
        if isinstance(bound, FieldInfo):
            yield from bounds(annotation, bound.metadata)
        for name, text in BOUNDS.items():
            value = getattr(bound, name, None)
            if value is not None:
                yield f"{text} {size(value) if annotation is ByteSize else value}"


def words_of(annotation: Any) -> str:
    """A type in words."""
    origin, args = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "null"
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in args)
    if origin in (Union, types.UnionType):
        members = [words_of(each) for each in args if each is not type(None)]
        return (", or " if any(", " in each for each in members) else " or ").join(members)
    if origin is tuple:
        if args[-1] is Ellipsis:
            return f"list of {words_of(args[0])}"
        return f"[{', '.join(words_of(each) for each in args)}]"
    if origin is dict:
        return f"mapping of {words_of(args[0])} to {words_of(args[1])}"
    if origin is not None:  # Annotated
        return ", ".join([words_of(args[0]), *bounds(args[0], annotation.__metadata__)])
    names = {str: "string", int: "integer", float: "number", bool: "boolean", ByteSize: "size"}
    return names.get(annotation) or re.sub(r"^.*\.", "", str(annotation))


def show(field: FieldInfo) -> str:
    """The default of a field."""
    value = field.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined or isinstance(value, BaseModel):
        return ""
    if value in ({}, (), []):
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def main() -> int:
    """Writes or checks the page."""
    new, old = page(), PAGE.read_text() if PAGE.exists() else ""
    if "--check" not in sys.argv:
        PAGE.write_text(new)
        return 0
    if new == old:
        return 0
    changes = difflib.unified_diff(old.splitlines(), new.splitlines(), "docs", "code", lineterm="")
    print("docs/reference.md is not current: make reference", *list(changes)[:40], sep="\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
