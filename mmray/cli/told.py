"""How commands end: errors become one or two lines and an exit code, results one line of JSON.

Exit codes: 0 done, 1 the job failed, 2 the spec or arguments are wrong, 130 or 143 interrupted with
finished work committed. Only results go to standard output.
"""

import functools
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from mmray.errors import Interrupted, JobFailed, MmrayError, RefusedError, SpecError
from mmray.storage import Storage

P = ParamSpec("P")

FAILED, WRONG = 1, 2

AsJson = Annotated[bool, typer.Option("--json", help="End standard output with a line of JSON.")]


@dataclass(slots=True)
class Job:
    """The job kind that a line of JSON names, once it is known."""

    kind: str | None = None


@contextmanager
def told(as_json: bool = False) -> Iterator[Job]:
    """Run the body of a command; turn mmray's errors into a message and the exit code.

    With `as_json`, what the body prints goes to standard error, and the last line of standard
    output is a JSON object also when it fails. Other errors are bugs: they keep their traceback.
    """
    job = Job()
    try:
        if as_json:
            with redirect_stdout(sys.stderr):
                yield job
        else:
            yield job
    except (MmrayError, FileNotFoundError, PermissionError) as error:
        code = exit_code(error)
        say(f"mmray: {describe(error)}")
        if as_json:
            emit(_failure(error, job, code))
        raise typer.Exit(code) from None
    except KeyboardInterrupt:  # before the job listened for it: nothing was under way
        say("mmray: interrupted")
        if as_json:
            emit({"job": job.kind, "status": "interrupted"})
        raise typer.Exit(130) from None
    except typer.Exit:
        raise
    except Exception as error:
        if as_json:
            words = f"{type(error).__name__}: {describe(error)}"
            emit({"job": job.kind, "status": "failed", "error": words})
        raise


def exit_code(error: BaseException) -> int:
    """The code that a command ends with after `error`."""
    if isinstance(error, Interrupted):
        return 128 + error.signum
    # Python's own file errors name a place that was given: it isn't there, or not for us.
    refused = isinstance(error, SpecError | RefusedError | FileNotFoundError | PermissionError)
    return WRONG if refused else FAILED


def describe(error: BaseException) -> str:
    """An error in one or two lines without credentials."""
    from mmray.report.scrub import scrub

    text = str(error)
    if isinstance(error, OSError) and error.filename:
        text = f"{error.filename}: {error.strerror}"
    return "\n".join(scrub(text or type(error).__name__).strip().splitlines()[:2])


def say(text: str) -> None:
    """A line for people, on standard error."""
    typer.echo(text, err=True)


def emit(value: Mapping[str, Any] | str) -> None:
    """The last line of standard output: a JSON object on one line."""
    line = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    typer.echo(line)


def show(facts: Mapping[str, str]) -> None:
    """Facts for people, a line each, on standard output; lines are never broken."""
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    width = max(map(len, facts))
    for name, value in facts.items():
        console.print(Text.assemble((f"{name:<{width}}  ", "dim"), value))


def size(count: float) -> str:
    """Bytes for people: `1.5 MiB`."""
    from mmray.report.words import size as words

    return words(count)


def _failure(error: BaseException, job: Job, code: int) -> Mapping[str, Any] | str:
    report = error.report if isinstance(error, JobFailed | Interrupted) else None
    if report is not None:
        return report.line()
    status = {WRONG: "refused", FAILED: "failed"}.get(code, "interrupted")
    field = error.path or None if isinstance(error, SpecError) else None
    return {"job": job.kind, "status": status, "error": describe(error), "field": field}


_STORAGE = {
    "endpoint": "URL of an S3-compatible server; left out: AWS_ENDPOINT_URL.",
    "profile": "Profile of the AWS configuration files.",
    "role": "ARN of a role to assume.",
    "region": "Region of the buckets.",
}


def with_storage(command: Callable[Concatenate[Storage, P], None]) -> Callable[..., None]:
    """Give a command the options that make up its first parameter, a `Storage`."""

    @functools.wraps(command)
    def wrapped(**given: Any) -> None:
        storage = Storage(**{name: given.pop(name) for name in _STORAGE})
        command(storage, **given)  # type: ignore[call-arg]

    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, typer.Option(help=text)],
        )
        for name, text in _STORAGE.items()
    ]
    # What Typer reads: the command's own parameters without `storage`, then the options.
    own = list(inspect.signature(command).parameters.values())[1:]
    wrapped.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]
    wrapped.__annotations__ = {}
    return wrapped
