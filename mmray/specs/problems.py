"""Pydantic's findings in the words of a spec: the field's path, what is wrong, and what was meant.

Values are quoted only where they are short and can't be a secret.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from mmray.errors import SpecError

_NOT_A_MAPPING = frozenset({"model_type", "model_attributes_type", "dict_type"})
_WORDS = {
    "Input should be": "must be",
    "String should": "must",
    "a valid tuple": "a list",
    "a valid string": "a text",
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid boolean": "true or false",
}
_USER_INFO = re.compile(r"(://)[^/@\s]+@")


def spec_error(error: ValidationError, model: type[BaseModel]) -> SpecError:
    """The one problem of a spec that says most."""
    # An unknown field says more than the missing one that it was meant to be.
    problems = sorted(error.errors(), key=lambda each: each["type"] != "extra_forbidden")
    told = [_tell(each, model) for each in problems]
    path = told[0][0]
    # A field of several types has a problem for each: one that knows what was meant, or one that
    # went deepest, is of the type that the writer had in mind.
    alike = [each for each in told if each[0][: len(path)] == path]
    best = max(alike, key=lambda each: ("did you mean" in each[1], len(each[0])))
    return SpecError(".".join(best[0]), best[1])


def hint(word: Any, choices: Iterable[str]) -> str:
    """` (did you mean 'uri'?)`, or nothing where no choice is near."""
    lowered = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(str(word).lower(), lowered, n=1) if word else []
    return f" (did you mean {lowered[near[0]]!r}?)" if near else ""


def _tell(problem: ErrorDetails, model: type[BaseModel]) -> tuple[list[str], str]:
    path, known, annotation = _walk(problem["loc"], model)
    kind, value = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        message = f"is not a field{hint(path[-1], known)}"
        if path[0] == "storage":
            message += "; credentials come from the environment, a profile or a role"
        return path, message
    if kind == "missing":
        return path, "is needed"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = [tag for tag in map(_tag, _models(annotation)) if tag]
        tag = problem.get("ctx", {}).get("tag")
        needed = "is needed: one of" if tag is None else "must be one of"
        wrong = "" if tag is None else f", not {tag!r:.60}{hint(tag, tags)}"
        return [*path, "kind"], f"{needed} {', '.join(tags)}{wrong}"
    if kind in _NOT_A_MAPPING:
        fields = _field_names(annotation)
        which = f" ({', '.join(dict.fromkeys(fields))})" if fields else ""
        return path, f"must be a mapping of fields{which}, not {_kind_of(value)}"
    return path, _plain(problem, secret=path[:1] == ["storage"])


def _plain(problem: ErrorDetails, secret: bool) -> str:
    message = problem["msg"].removeprefix("Value error, ")
    for theirs, ours in _WORDS.items():
        message = message.replace(theirs, ours)
    value = problem["input"]
    if problem["type"] == "value_error" and isinstance(value, Mapping):
        return message
    quotable = not secret and isinstance(value, str | int | float | bool)
    shown = _USER_INFO.sub(r"\1***@", repr(value))[:80] if quotable else _kind_of(value)
    expected = problem.get("ctx", {}).get("expected")
    choices = re.findall(r"'([^']+)'", expected) if isinstance(expected, str) else []
    return f"{message}, not {shown}{hint(value, choices)}"


def _kind_of(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return "a text" if isinstance(value, str) else "a single value"


def _walk(
    location: tuple[int | str, ...], model: type[BaseModel]
) -> tuple[list[str], list[str], Any]:
    """The field path without pydantic's union tags, the names known beside its last step, and the
    type that stands there."""
    path: list[str] = []
    known = list(model.model_fields)
    annotation: Any = model
    for step in location:
        if step == "[key]":  # pydantic's word for a mapping's key, which the path names already
            continue
        models = _models(annotation)
        tagged = next((each for each in models if _tag(each) == step), None)
        if isinstance(step, str) and "[" in step:
            # One type of several, to pydantic: `literal['x']`, `function-after[f(), Model]`.
            named = [each for each in models if each.__name__ in re.findall(r"\w+", step)]
            if named:
                annotation, known = named[0], list(named[0].model_fields)
        elif get_origin(annotation) is tuple and isinstance(step, int):
            path.append(str(step))
            annotation = get_args(annotation)[0]
        elif get_origin(annotation) is dict:
            path.append(str(step))
            annotation = get_args(annotation)[1]
        elif tagged is not None:
            annotation, known = tagged, list(tagged.model_fields)
        elif models:
            fields = {name: field for each in models for name, field in each.model_fields.items()}
            path.append(str(step))
            known = list(fields)
            annotation = fields[str(step)].annotation if step in fields else None
        elif isinstance(step, int):
            path.append(str(step))
    return path, known, annotation


def _field_names(annotation: Any) -> list[str]:
    if get_origin(annotation) is dict:
        return list(get_args(get_args(annotation)[0]))
    return [name for each in _models(annotation) for name in each.model_fields]


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for each in get_args(annotation) for model in _models(each)]


def _tag(model: type[BaseModel]) -> str | None:
    kind = model.model_fields.get("kind")
    return get_args(kind.annotation)[0] if kind is not None else None
