"""The spec loader: what is refused, the path it names, and what it never says."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from pydantic import ValidationError

from mmray.errors import SpecError
from mmray.specs import KINDS, EmbedSpec, load_spec, spec_schema

pytestmark = pytest.mark.unit

JOBS = sorted((Path(__file__).parents[2] / "jobs").glob("*.yaml"))

ISSUE = """\
job: embed
source:
  kind: webdataset               # or files
  uri: s3://bucket/shards/{00..99}.tar
encoder:
  kind: hf
  model: /models/clip-vit-b-32
store:
  uri: s3://bucket/stores/clip-b32
keep: [caption, category]
errors: {max_fraction: 0.05}
limits: {pixels: 178956970}
"""


def minimal(**fields: Any) -> dict[str, Any]:
    return {
        "job": "embed",
        "source": {"kind": "files", "uri": "pictures"},
        "encoder": {"kind": "hf", "model": "models/clip"},
        "store": {"uri": "store"},
        **fields,
    }


def refusal(source: Any, *overrides: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        load_spec(source, overrides)
    return caught.value


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def test_the_spec_of_the_design_reads(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, ISSUE))
    assert isinstance(spec, EmbedSpec)
    assert spec.source.uri == "s3://bucket/shards/{00..99}.tar"
    assert spec.keep == {"caption": "string", "category": "string"}
    assert spec.errors.max_fraction == 0.05


def test_what_is_left_out_has_a_default() -> None:
    spec = load_spec(minimal())
    assert spec.errors.max_fraction == 0.01
    assert spec.limits.pixels == 178_956_970
    assert spec.modalities is None
    assert spec.resources.pool_range == (1, None)
    assert (spec.dtype, spec.dedupe, spec.on_removed) == ("auto", "none", "report")


def test_a_spec_is_frozen() -> None:
    with pytest.raises(ValidationError):
        load_spec(minimal()).dtype = "float32"


@pytest.mark.parametrize(
    ("place", "name", "meant"),
    [
        ("", "normalise", "normalize"),
        ("source", "ur", "uri"),
        ("encoder", "modle", "model"),
        ("encoder", "poolng", "pooling"),
        ("store", "url", "uri"),
        ("text", "max_lenght", "max_length"),
        ("batch", "image", "images"),
        ("errors", "max_fractoin", "max_fraction"),
        ("limits", "pixel", "pixels"),
        ("resources", "gpu", "gpus"),
        ("storage", "endpont", "endpoint"),
    ],
)
def test_an_unknown_field_is_named_with_what_was_meant(place: str, name: str, meant: str) -> None:
    data = minimal()
    (data.setdefault(place, {}) if place else data)[name] = 1
    error = refusal(data)
    assert error.path == f"{place}.{name}".lstrip(".")
    assert "is not a field" in error.message
    assert f"did you mean {meant!r}?" in error.message


@pytest.mark.parametrize("kind", ["packaged", "import"])
def test_an_unknown_field_of_another_encoder_kind(kind: str) -> None:
    model = {"packaged": "minilm", "import": "mine.models:Mine"}[kind]
    error = refusal(minimal(encoder={"kind": kind, "model": model, "pooling": "mean"}))
    assert error.path == "encoder.pooling"
    assert "is not a field" in error.message


def test_a_field_that_is_like_no_other_has_no_hint() -> None:
    error = refusal(minimal(zzz=1))
    assert error.path == "zzz"
    assert "did you mean" not in str(error)


def test_the_misspelt_field_is_named_before_the_missing_one() -> None:
    error = refusal(minimal(source={"kind": "files", "uris": "x"}))
    assert error.path == "source.uris"
    assert "'uri'" in error.message


@pytest.mark.parametrize(
    ("drop", "path"),
    [
        (("source",), "source"),
        (("encoder",), "encoder"),
        (("store",), "store"),
        (("source", "uri"), "source.uri"),
        (("encoder", "model"), "encoder.model"),
        (("store", "uri"), "store.uri"),
    ],
)
def test_a_missing_field_is_named(drop: tuple[str, ...], path: str) -> None:
    data = minimal()
    holder = data if len(drop) == 1 else data[drop[0]]
    del holder[drop[-1]]
    error = refusal(data)
    assert (error.path, error.message) == (path, "is needed")


def test_a_missing_kind_names_the_kinds() -> None:
    error = refusal(minimal(source={"uri": "x"}))
    kinds = "files, webdataset, parquet, jsonl, store"
    assert (error.path, error.message) == ("source.kind", f"is needed: one of {kinds}")


@pytest.mark.parametrize(
    ("place", "tag", "meant"),
    [
        ("source", "webdatset", "webdataset"),
        ("source", "file", "files"),
        ("encoder", "HF", "hf"),
        ("encoder", "packged", "packaged"),
    ],
)
def test_a_wrong_kind_names_the_kinds_and_what_was_meant(place: str, tag: str, meant: str) -> None:
    data = minimal()
    data[place]["kind"] = tag
    error = refusal(data)
    assert error.path == f"{place}.kind"
    assert "must be one of " in error.message
    assert f"did you mean {meant!r}?" in error.message


@pytest.mark.parametrize(
    ("job", "words"),
    [("emebd", "did you mean 'embed'?"), (None, "is needed"), (3, "not 3"), (["embed"], "one of")],
)
def test_a_wrong_job(job: object, words: str) -> None:
    error = refusal(minimal(job=job))
    assert error.path == "job"
    assert words in error.message


def test_no_job_at_all() -> None:
    assert refusal({}).path == "job"
    misspelt = minimal()
    misspelt["jobs"] = misspelt.pop("job")
    assert "'jobs' is not a field" in str(refusal(misspelt))


@pytest.mark.parametrize(
    ("part", "path", "words"),
    [
        ({"kind": "hf", "modle": "x"}, "encoder.of.0.modle", "did you mean 'model'?"),
        ({"kind": "hf"}, "encoder.of.0.model", "is needed"),
        ({"kind": "hff", "model": "x"}, "encoder.of.0.kind", "joint, not 'hff' (did you mean 'hf'"),
        ({"model": "x"}, "encoder.of.0.kind", "is needed: one of"),
        ({"kind": "hf", "model": "x", "pooling": "mx"}, "encoder.of.0.pooling", "not 'mx'"),
        ("x", "encoder.of.0", "must be a mapping of fields"),
    ],
)
def test_a_wrong_part_of_a_combined_encoder(part: Any, path: str, words: str) -> None:
    of = [part, {"kind": "joint", "model": "s3://b/m"}]
    error = refusal(minimal(encoder={"kind": "combined", "of": of}))
    assert error.path == path
    assert words in error.message


@pytest.mark.parametrize(
    ("fields", "path", "words"),
    [
        ({"modalities": ["imag"]}, "modalities.0", "did you mean 'image'?"),
        ({"modalities": "image"}, "modalities", "a list"),
        ({"dtype": "bf16"}, "dtype", "did you mean 'bfloat16'?"),
        ({"batch": {"images": "auot"}}, "batch.images", "did you mean 'auto'?"),
        ({"batch": {"images": 0}}, "batch.images", "greater than 0"),
        ({"errors": {"max_fraction": 1.5}}, "errors.max_fraction", "less than or equal to 1"),
        ({"limits": {"pixels": -1}}, "limits.pixels", "greater than 0"),
        ({"thumbnails": 10_000}, "thumbnails", "512"),
        ({"normalize": "perhaps"}, "normalize", "true or false"),
        ({"source": {"kind": "files", "uri": 5}}, "source.uri", "not 5"),
        ({"source": {"kind": "files", "uri": ["a", 5]}}, "source.uri.1", "not 5"),
        ({"store": {"uri": None}}, "store.uri", "not nothing"),
        ({"store": "s3://b/k"}, "store", "mapping of fields (uri)"),
        ({"source": "s3://b/k"}, "source", "mapping of fields (kind, uri, "),
        ({"encoder": {"kind": "packaged", "model": "minlm"}}, "encoder.model", "'minilm'?"),
        ({"encoder": {"kind": "import", "model": ""}}, "encoder.model", "pattern"),
        ({"encoder": {"kind": "import", "model": "no-colon"}}, "encoder.model", "pattern"),
        (
            {"encoder": {"kind": "import", "model": "a:B", "options": {"x": []}}},
            "encoder.options.x",
            "",
        ),
        ({"resources": {"pool": 0}}, "resources", "positive"),
        ({"resources": {"pool": [3, 1]}}, "resources", "range"),
        ({"resources": {"pool": "many"}}, "resources.pool", "not 'many'"),
        ({"keep": ["id"]}, "keep", "column 'id' of its own"),
        ({"keep": ["image_embedding"]}, "keep", "of its own"),
        ({"keep": ["ID"]}, "keep", "column 'id' of its own"),
        ({"keep": ["url", "URL"]}, "keep", "'url' and 'URL' are one column"),
        ({"keep": [""]}, "keep", "needs a name"),
        ({"keep": {"price": "flaot"}}, "keep.price", "did you mean 'float'?"),
        ({"keep": "caption"}, "keep", "list of names"),
        ({"keep": [["caption"]]}, "keep", "list of names"),
        ({"keep": [1]}, "keep", "list of names"),
        ({"store": {1: 2, "uri": "x"}}, "store.1", "strings"),
    ],
)
def test_a_wrong_value_is_named_by_its_path(fields: dict[str, Any], path: str, words: str) -> None:
    error = refusal(minimal(**fields))
    assert error.path == path
    assert words in error.message
    assert "Input should" not in error.message
    assert "did you mean ''" not in error.message


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("job: embed\njob: embed\n", "job"),
        ("job: embed\nstore: {uri: a, uri: b}\n", "store.uri"),
        ("job: embed\nsource:\n  uri: a\n  kind: files\n  uri: b\n", "source.uri"),
        ("job: embed\nkeep:\n  - a: 1\n    a: 2\n", "keep.0.a"),
    ],
)
def test_a_field_that_stands_twice(tmp_path: Path, text: str, path: str) -> None:
    error = refusal(written(tmp_path, text))
    assert error.path == path
    assert "stands twice" in error.message


def test_anchors_and_merges_are_yaml(tmp_path: Path) -> None:
    text = """\
job: embed
source: {kind: files, uri: &place pictures}
encoder: &encoder {kind: hf, model: m}
store: {uri: *place}
"""
    assert load_spec(written(tmp_path, text)).store.uri == "pictures"
    merged = text.replace("store: {uri: *place}", "store: {<<: {uri: merged}}")
    assert load_spec(written(tmp_path, merged)).store.uri == "merged"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- a\n- b\n", "no mapping"),
        ("", "no mapping"),
        ("just words\n", "no mapping"),
        ("a: b: c\n", "line 1, column 5"),
        ("a: [1, 2\n", "not YAML"),
        ("a: \x07\n", "not YAML"),
        ("a: 2024-13-45\n", "not YAML"),
        ("a: !!python/object/apply:os.system [ls]\n", "not YAML"),
        ("a: " + "[" * 5000 + "\n", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
    ],
)
def test_a_file_that_is_no_mapping(tmp_path: Path, text: str, words: str) -> None:
    error = refusal(written(tmp_path, text))
    assert error.path == ""
    assert str(tmp_path) in error.message
    assert words in error.message
    assert "\n" not in str(error)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in str(refusal(tmp_path / "missing.yaml"))
    assert "can't read" in str(refusal(tmp_path))
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00\x01")
    assert "not a text file" in str(refusal(binary))


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("errors.max_fraction=0.5", {"errors": {"max_fraction": 0.5}}),
        ("resources.pool=[2, 4]", {"resources": {"pool": (2, 4)}}),
        ("source.uri=[a.tar, b.tar]", {"source": {"uri": ("a.tar", "b.tar")}}),
        ("source.uri=s3://b/{00..99}.tar", {"source": {"uri": "s3://b/{00..99}.tar"}}),
        ("store.uri=a=b", {"store": {"uri": "a=b"}}),
        ("keep=[caption]", {"keep": {"caption": "string"}}),
        ("keep.price=float", {"keep": {"price": "float"}}),
        ("text.max_length=", {"text": {"max_length": None}}),
        ("normalize=false", {"normalize": False}),
        ("storage.endpoint=http://h:1", {"storage": {"endpoint": "http://h:1"}}),
        (" dtype = float32", {"dtype": "float32"}),
    ],
)
def test_set_changes_one_field(override: str, expected: dict[str, Any]) -> None:
    spec = load_spec(minimal(), [override]).model_dump()
    plain = load_spec(minimal()).model_dump()
    for name, value in expected.items():
        if isinstance(value, dict) and name != "keep":
            plain[name] = {**plain[name], **value}
        else:
            plain[name] = value
    assert spec == plain


def test_set_comes_in_order_and_the_last_one_holds() -> None:
    spec = load_spec(minimal(), ["dtype=float32", "dtype=float16"])
    assert spec.dtype == "float16"


def test_set_leaves_the_given_mapping_alone() -> None:
    data = minimal()
    before = copy.deepcopy(data)
    assert load_spec(data, ["store.uri=elsewhere"]).store.uri == "elsewhere"
    assert data == before
    assert load_spec(MappingProxyType(data), ["store.uri=there"]).store.uri == "there"


@pytest.mark.parametrize(
    ("override", "path", "words"),
    [
        ("dtype", "--set", "a.b=value"),
        ("=x", "--set", "a.b=value"),
        ("a..b=x", "--set", "a.b=value"),
        (".a=x", "--set", "a.b=value"),
        ("store.uri.deep=x", "--set", "'uri' holds a single value"),
        ("dtype=[1", "dtype", "not YAML"),
        ("keep={a: int, a: int}", "keep.a", "stands twice"),
        ("stroe.uri=x", "stroe", "did you mean 'store'?"),
        ("source.ur=x", "source.ur", "did you mean 'uri'?"),
    ],
)
def test_a_wrong_set(override: str, path: str, words: str) -> None:
    error = refusal(minimal(), override)
    assert error.path == path
    assert words in error.message


def test_set_does_not_replace_a_list_by_a_mapping() -> None:
    error = refusal(minimal(keep=["caption", "category"]), "keep.price=float")
    assert "'keep' holds a list" in error.message


@pytest.mark.parametrize(
    "data",
    [
        minimal(storage={"secret_key": "HUSH-HUSH"}),
        minimal(storage={"endpoint": ["HUSH-HUSH"]}),
        minimal(storage={"region": {"a": "HUSH-HUSH"}}),
        minimal(storage="HUSH-HUSH"),
        minimal(source={"kind": "files", "uri": {"a": "HUSH-HUSH"}}),
        minimal(dtype="s3://key:HUSH-HUSH@bucket"),
        minimal(password="HUSH-HUSH"),
    ],
)
def test_a_secret_is_not_said(data: dict[str, Any]) -> None:
    assert "HUSH" not in str(refusal(data))


def test_a_secret_in_broken_yaml_is_not_said(tmp_path: Path) -> None:
    text = "storage:\n  secret_key: HUSH-HUSH: x\n"
    assert "HUSH" not in str(refusal(written(tmp_path, text)))
    assert "HUSH" not in str(refusal(minimal(), "storage.secret_key=[HUSH-HUSH"))
    assert "HUSH" not in str(refusal(minimal(), "storage.secret_key=HUSH-HUSH"))


def test_storage_says_where_credentials_come_from() -> None:
    assert "environment" in str(refusal(minimal(storage={"access_key": "x"})))


@pytest.mark.parametrize("kind", KINDS)
def test_the_schema_names_every_field(kind: str) -> None:
    schema = spec_schema(kind)
    assert set(schema["properties"]) == set(KINDS[kind].model_fields)
    assert schema["additionalProperties"] is False
    json.dumps(schema)


def test_the_schema_of_no_kind() -> None:
    with pytest.raises(SpecError, match="did you mean 'embed'") as caught:
        spec_schema("embedd")
    assert caught.value.path == "kind"


def test_there_are_examples() -> None:
    names = {path.name for path in JOBS}
    assert names >= {"embed-images.yaml", "embed-webdataset.yaml", "embed-gpu.yaml"}


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.name)
def test_every_example_reads_without_its_inputs(path: Path) -> None:
    spec = load_spec(path)
    assert path.name.startswith(f"{spec.job}-")
    assert path.read_text().startswith("#"), "an example starts with a line on what it is for"


def test_specs_import_neither_ray_nor_torch() -> None:
    code = """
import sys, mmray.specs
heavy = {"ray", "torch", "pandas", "pyarrow", "deltalake", "transformers", "numpy"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
