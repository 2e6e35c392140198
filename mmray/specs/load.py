"""A spec file becomes a typed spec, or a `SpecError` that names the field and what was meant."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from mmray.errors import SpecError
from mmray.specs.embed import EmbedSpec
from mmray.specs.index import DuplicatesSpec, IndexSpec, SearchSpec
from mmray.specs.problems import hint, spec_error
from mmray.specs.train import TrainSpec

JobSpec = EmbedSpec | IndexSpec | SearchSpec | DuplicatesSpec | TrainSpec
"""Any of them."""

KINDS: dict[str, type[JobSpec]] = {
    "embed": EmbedSpec,
    "index": IndexSpec,
    "search": SearchSpec,
    "duplicates": DuplicatesSpec,
    "train": TrainSpec,
}
"""Job kinds by the `job:` field."""


def load_spec(source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()) -> JobSpec:
    """Read a spec from a YAML file or a mapping and apply `a.b=c` overrides.

    Raises:
        SpecError: the file can't be read, or a field is unknown, missing or wrong.
    """
    data = read_fields(source, overrides)
    if data.get("job") is None:
        near = [name for name in data if name != "job" and hint(name, ["job"])]
        meant = f"; {near[0]!r} is not a field" if near else ""
        raise SpecError("job", f"is needed: one of {', '.join(KINDS)}{meant}")
    model = _model("job", data["job"])
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise spec_error(error, model) from None


def load_embed_spec(source: str | Path | Mapping[str, Any] | JobSpec, what: str) -> EmbedSpec:
    """`load_spec` for what only embed jobs have. Raises SpecError, also for another job kind.

    `what` needs it, such as `plan`.
    """
    spec = load_spec(source) if isinstance(source, str | Path | Mapping) else source
    if not isinstance(spec, EmbedSpec):
        raise SpecError("job", f"{what} is for embed jobs; this is a job of the kind {spec.job!r}")
    return spec


def read_fields(
    source: str | Path | Mapping[str, Any], overrides: Iterable[str] = ()
) -> dict[str, Any]:
    """The fields of a spec with `a.b=c` overrides applied, not yet checked.

    Raises:
        SpecError: the file can't be read, or an override fits nowhere.
    """
    data = dict(source) if isinstance(source, Mapping) else _read(Path(source))
    for override in overrides:
        _override(data, override)
    return data


def spec_schema(kind: str) -> dict[str, Any]:
    """The JSON schema of a job kind's spec. Raises SpecError for a kind that isn't one."""
    return _model("kind", kind).model_json_schema()


def _model(field: str, kind: Any) -> type[JobSpec]:
    if not isinstance(kind, str) or kind not in KINDS:
        choices = ", ".join(KINDS)
        raise SpecError(field, f"must be one of {choices}, not {kind!r:.60}{hint(kind, KINDS)}")
    return KINDS[kind]


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise SpecError("", f"can't read {path}: {error.strerror}") from None
    except ValueError:
        raise SpecError("", f"{path} is not a text file") from None
    try:
        data = _parse(text)
    except _NotYaml as error:
        raise SpecError("", f"{path} is not YAML: {error}") from None
    if not isinstance(data, dict):
        raise SpecError("", f"{path} holds no mapping of fields")
    return data


class _NotYaml(Exception):
    """Why a text isn't YAML; never quotes it, since a spec may hold a secret by mistake."""


def _parse(text: str, place: tuple[str, ...] = ()) -> Any:
    try:
        loader = yaml.SafeLoader(text)
    except yaml.YAMLError:
        raise _NotYaml("it holds characters that YAML forbids") from None
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_doubles(node, place, set())
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise _NotYaml(f"{where}{error.problem or error.context}") from None
    except (ValueError, RecursionError) as error:  # a date such as 2024-13-45; endless nesting
        raise _NotYaml(str(error)) from None
    finally:
        loader.dispose()


def _refuse_doubles(node: yaml.Node, path: tuple[str, ...], seen: set[int]) -> None:
    """Plain YAML takes the last of two equal keys without a word; a spec must not."""
    if id(node) in seen:  # an alias
        return
    seen.add(id(node))
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _refuse_doubles(item, (*path, str(index)), seen)
    if isinstance(node, yaml.MappingNode):
        keys: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in keys:
                line = key.start_mark.line + 1
                raise SpecError(".".join((*path, name)), f"stands twice (again in line {line})")
            keys.add(name)
            _refuse_doubles(value, (*path, name), seen)


def _override(data: dict[str, Any], override: str) -> None:
    path, equals, text = override.partition("=")
    *parents, leaf = (name.strip() for name in path.split("."))
    if not equals or not all((*parents, leaf)):
        shown = path if equals else override
        raise SpecError("--set", f"{shown!r:.60} is not of the form a.b=value")
    for name in parents:
        below = data.get(name)
        if below is not None and not isinstance(below, Mapping):
            kind = "a list" if isinstance(below, list | tuple) else "a single value"
            raise SpecError("--set", f"{path}: {name!r} holds {kind}, not a mapping of fields")
        data[name] = dict(below or {})
        data = data[name]
    try:
        data[leaf] = _parse(text, (*parents, leaf))
    except _NotYaml as error:
        raise SpecError(path, f"the value of --set is not YAML: {error}") from None
