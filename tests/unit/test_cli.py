"""The command line: exit codes, the last line of JSON, what goes where; and the Python API."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import tomllib
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import mmray
import mmray.jobs
from mmray.cli.store import parse_age
from mmray.errors import (
    Interrupted,
    JobFailed,
    MmrayError,
    RefusedError,
    SpecError,
    StorageError,
)
from mmray.report import Report
from mmray.specs import KINDS, EmbedSpec
from mmray.store import Change
from tests.unit.command import call, last_line
from tests.unit.store_samples import SIZE, committer, new_store, part, shard

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
GROUPS = {
    "": ["run", "validate", "schema", "doctor", "search", "store", "index", "demo"],
    "store": ["info", "history", "verify", "rollback", "gc", "compact"],
    "index": ["info", "history", "verify", "gc"],
}


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text("""\
job: embed
source: {kind: files, uri: pictures}
encoder: {kind: packaged, model: minilm}
store: {uri: store}
""")
    return path


class FakeJob:
    """Stands in for the job: a run on Ray is other tests' matter."""

    def __init__(self) -> None:
        self.ends: BaseException | None = None
        self.report = report("done")
        self.calls: list[tuple[EmbedSpec, int | None, bool]] = []

    def __call__(self, spec: EmbedSpec, *, limit: int | None = None, quiet: bool = False) -> Report:
        print("a library that talks on standard output")
        self.calls.append((spec, limit, quiet))
        if self.ends is not None:
            raise self.ends
        return self.report


def report(status: str, **fields: Any) -> Report:
    given = {
        "job": "embed",
        "run_id": "r",
        "status": status,
        "started": "2026-01-01T00:00:00Z",
        "seconds": 2.0,
        "rows_read": 1234,
        "rows_written": 1230,
        "rows_quarantined": 4,
        "rows_skipped": 7,
        "rows_per_second": 617.0,
        "stages": {"read": 0.2, "encode": 1.5},
        "errors": {"Truncated": 3, "EmptyMember": 1},
        "outputs": {"store": "/s", "version": 3, "page": "/s/_mmray/runs/r/report.html"},
    }
    return Report.model_validate({**given, **fields})


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch) -> FakeJob:
    fake = FakeJob()
    monkeypatch.setattr(mmray.jobs, "run", fake)
    return fake


@pytest.fixture
def store(tmp_path: Path) -> str:
    """A real store: one shard in two commits, one sample in quarantine."""
    made, of = new_store(tmp_path), shard()
    run = committer(made)
    run.commit([Change((part(made, of, [(0, 500)], bad=["k0003"]),))])
    run.commit([Change((part(made, of, [(500, SIZE)]),))])
    return made.uri


# --- help -----------------------------------------------------------------------------------------


def test_without_arguments_help_is_printed() -> None:
    for words in ((), ("--help",), ("-h",)):
        result = call(*words)
        assert result.exit_code == 0
        assert all(name in result.stdout for name in GROUPS[""])
    assert all(name in call("store").stdout for name in GROUPS["store"])


@pytest.mark.parametrize(
    "words",
    [(group, name) if group else (name,) for group, names in GROUPS.items() for name in names],
)
def test_every_command_has_help(words: tuple[str, ...]) -> None:
    result = call(*words, "--help")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) > 3


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from mmray.cli import app
for words in (["--help"], ["run", "--help"], ["store", "verify", "--help"], ["store"]):
    try:
        app(words, prog_name="mmray")
    except SystemExit as end:
        assert end.code in (0, None), end.code
heavy = {"ray", "torch", "pandas", "deltalake", "transformers", "pyarrow", "numpy", "s3fs",
         "fsspec", "boto3", "botocore", "PIL", "yaml", "psutil"}
print("heavy:", sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []"


@pytest.mark.parametrize(
    ("words", "meant"),
    [(("rnu",), "run"), (("store", "histroy"), "history"), (("valdate",), "validate")],
)
def test_an_unknown_command_says_what_was_meant(words: tuple[str, ...], meant: str) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert f"Did you mean '{meant}'?" in result.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run",),
        ("run", "x.yaml", "--no-such-option"),
        ("run", "x.yaml", "--limit", "0"),
        ("validate",),
        ("store", "info"),
        ("store", "rollback", "s"),
        ("store", "rollback", "s", "one"),
        ("store", "gc", "s", "--older-than", "soon"),
    ],
)
def test_wrong_arguments_exit_2(words: tuple[str, ...]) -> None:
    result = call(*words)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project.get("version", mmray.__version__) == mmray.__version__
    assert call("--version").stdout.strip() == f"mmray {mmray.__version__}"


# --- run ------------------------------------------------------------------------------------------


def test_a_run_that_is_done(spec: Path, job: FakeJob) -> None:
    result = call("run", spec, "--set", "dtype=float32", "--limit", "5", "--quiet")
    assert result.exit_code == 0, result.output
    [(given, limit, quiet)] = job.calls
    assert (given.dtype, limit, quiet) == ("float32", 5, True)
    for words in ("1,234 read", "1,230 written", "7 finished before", "4 (1 EmptyMember, 3 Trunc"):
        assert words in result.stdout
    for words in ("617.0 rows/s", "encode", "/s (version 3)", "/s/_mmray/runs/r/report.html"):
        assert words in result.stdout


def test_what_other_jobs_measured_is_told(spec: Path, job: FakeJob) -> None:
    job.report = report(
        "done",
        job="index",
        rows_skipped=0,
        rows_quarantined=0,
        rows_filtered=4,
        filtered={"no vector": 4},
        errors={},
        metrics={"recall": 0.9531, "rows": 5000, "bytes": 3 * 2**20, "train_seconds": 61.0},
        outputs={
            "index": "/i",
            "version": 2,
            "store": "/s",
            "page": "/i/_mmray/runs/r/report.html",
        },
    )
    lines = call("run", spec).stdout.splitlines()[1:]
    told = dict(re.split(r"\s{2,}", line, maxsplit=1) for line in lines)
    assert told == {
        "status": "done",
        "rows": "1,234 read, 1,230 added",
        "left out": "4 (4 no vector)",
        "recall": "0.953",
        "rows in all": "5,000",
        "size": "3 MiB",
        "train time": "1 min 1 s",
        "time": "2s, 617.0 rows/s",
        "index": "/i (version 2)",
        "store": "/s",
        "report": "/i/_mmray/runs/r/report.html",
    }


def test_json_is_the_last_line_and_alone_on_standard_output(spec: Path, job: FakeJob) -> None:
    result = call("run", spec, "--json")
    assert result.exit_code == 0
    assert result.stdout == job.report.line() + "\n"
    assert "a library that talks" in result.stderr
    told = last_line(result)
    assert {"job", "status", "rows_read", "rows_written", "rows_skipped", "rows_quarantined"} <= (
        told.keys()
    )
    assert {"seconds", "rows_per_second", "outputs"} <= told.keys()


@pytest.mark.parametrize(
    ("ends", "code", "status"),
    [
        (JobFailed("too many bad samples", report("failed")), 1, "failed"),
        (JobFailed("the encoder does not load"), 1, "failed"),
        (StorageError("s3://b/k", "still failing"), 1, "failed"),
        (RefusedError("s3://b has no conditional put"), 2, "refused"),
        (SpecError("modalities.0", "is not one of the model's"), 2, "refused"),
        (PermissionError("s3://b: access refused"), 2, "refused"),
        (FileNotFoundError(2, "No such file or directory", "/in"), 2, "refused"),
        (Interrupted(2, report("interrupted")), 130, "interrupted"),
        (Interrupted(15, report("interrupted")), 143, "interrupted"),
        (Interrupted(15), 143, "interrupted"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_how_runs_end(
    spec: Path, job: FakeJob, ends: BaseException, code: int, status: str
) -> None:
    job.ends = ends
    plain, told = call("run", spec), call("run", spec, "--json")
    assert plain.exit_code == told.exit_code == code
    assert plain.stderr.startswith("mmray: ")
    assert 1 <= len(plain.stderr.splitlines()) <= 2
    assert "Traceback" not in plain.output
    value = last_line(told)
    assert (value["job"], value["status"]) == ("embed", status)
    if getattr(ends, "report", None) is not None:
        assert value["rows_read"] == 1234
    elif isinstance(ends, MmrayError):
        assert value["error"] == str(ends)
        assert value["field"] == (ends.path if isinstance(ends, SpecError) else None)


def test_a_report_that_failed_exits_1(spec: Path, job: FakeJob) -> None:
    job.report = report("failed", message="the budget is spent")
    result = call("run", spec)
    assert result.exit_code == 1
    assert "failed: the budget is spent" in result.stdout


def test_a_bug_keeps_its_traceback(spec: Path, job: FakeJob) -> None:
    job.ends = ZeroDivisionError("a bug")
    result = call("run", spec, "--json")
    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)
    assert last_line(result) == {
        "job": "embed",
        "status": "failed",
        "error": "ZeroDivisionError: a bug",
    }


def test_a_wrong_spec_runs_nothing(spec: Path, job: FakeJob) -> None:
    result = call("run", spec, "--set", "source.ur=x", "--json")
    assert result.exit_code == 2
    assert job.calls == []
    told = last_line(result)
    assert (told["job"], told["status"], told["field"]) == ("embed", "refused", "source.ur")
    assert "did you mean 'uri'" in result.stderr


@pytest.mark.parametrize("words", [("missing.yaml",), ("spec.yaml", "--set", "job=tarin")])
def test_a_spec_of_no_kind(
    spec: Path, job: FakeJob, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(spec.parent)
    result = call("run", *words, "--json")
    assert result.exit_code == 2
    assert (last_line(result)["job"], last_line(result)["status"]) == (None, "refused")
    assert job.calls == []


def test_credentials_in_an_error_are_not_said(
    spec: Path, job: FakeJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush-hush-hush")
    job.ends = StorageError("s3://b", "signed with hush-hush-hush?X-Amz-Signature=abc123")
    result = call("run", spec, "--json")
    assert "hush" not in result.output
    assert "abc123" not in result.output


def test_a_terminated_run_in_a_process_of_its_own(spec: Path) -> None:
    """The exit code and the streams as a shell sees them."""
    code = f"""
import mmray.jobs
from mmray.errors import Interrupted
def run(spec, limit=None, quiet=False):
    raise Interrupted(15)
mmray.jobs.run = run
from mmray.cli import app
app(["run", {str(spec)!r}, "--json"])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 143
    assert json.loads(done.stdout.splitlines()[-1])["status"] == "interrupted"
    assert "SIGTERM" in done.stderr


# --- validate, schema -----------------------------------------------------------------------------


def test_validate_has_a_line_for_each(spec: Path, tmp_path: Path) -> None:
    assert call("validate", spec).stdout == f"{spec}: ok (embed)\n"
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(spec.read_text() + "stores: x\n")
    result = call("validate", wrong, spec, tmp_path / "none.yaml")
    assert result.exit_code == 2
    assert result.stdout == f"{spec}: ok (embed)\n"
    first, second = result.stderr.splitlines()
    assert first.startswith(f"{wrong}: stores: is not a field (did you mean 'store'?)")
    assert "No such file" in second
    assert call("validate", spec, "--set", "dtype=float8").exit_code == 2


def test_every_example_validates_without_its_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: object) -> None:
        raise AssertionError("validate touched storage")

    monkeypatch.setattr(mmray.Storage, "expand", touched)
    monkeypatch.setattr(mmray.Storage, "list", touched)
    examples = sorted((ROOT / "jobs").glob("*.yaml"))
    result = call("validate", *examples)
    assert result.exit_code == 0, result.output
    assert len(result.stdout.splitlines()) == len(examples) >= 5


@pytest.mark.parametrize("kind", KINDS)
def test_schema(kind: str) -> None:
    result = call("schema", kind)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["properties"]["job"]["const"] == kind


def test_schema_of_no_kind() -> None:
    result = call("schema", "embedd")
    assert result.exit_code == 2
    assert "did you mean 'embed'" in result.stderr


# --- store ----------------------------------------------------------------------------------------


def test_store_info(store: str) -> None:
    plain, told = call("store", "info", store), last_line(call("store", "info", store, "--json"))
    assert "99 of 1 shards" in plain.stdout
    assert "1 (1 Bad)" in plain.stdout
    assert (told["rows"], told["version"], told["parts"], told["shards"]) == (99, 2, 2, 1)
    assert told["quarantined"] == {"Bad": 1}
    assert told["meta"]["fingerprint"] == "f" * 32
    assert "image_embedding" in told["columns"]
    assert last_line(call("store", "info", store, "--version", 1, "--json"))["rows"] == 49


def test_store_history_and_rollback(store: str) -> None:
    assert [
        int(line.split()[0]) for line in call("store", "history", store).stdout.splitlines()
    ] == [
        2,
        1,
        0,
    ]
    result = call("store", "rollback", store, 1, "--json")
    assert last_line(result) == {"uri": store, "restored": 1, "before": 2, "version": 3}
    told = last_line(call("store", "history", store, "--limit", "1", "--json"))
    assert [entry["version"] for entry in told["history"]] == [3]
    assert last_line(call("store", "info", store, "--json"))["rows"] == 49
    assert call("store", "rollback", store, 99).exit_code == 2


def test_store_verify(store: str) -> None:
    told = last_line(result := call("store", "verify", store, "--json"))
    assert result.exit_code == 0
    assert (told["ok"], told["rows"], told["quarantined"], told["problems"]) == (True, 99, 1, [])
    orphan = Path(store, "data", "ff", f"part-{'f' * 32}.parquet")
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"left by a kill")
    plain = call("store", "verify", store)
    assert plain.exit_code == 0
    assert "remark: 1 file" in plain.stdout


def test_store_verify_of_a_damaged_store(store: str) -> None:
    part = next(path for path in Path(store, "data").rglob("*.parquet"))
    part.unlink()
    plain, told = call("store", "verify", store), call("store", "verify", store, "--json")
    assert plain.exit_code == told.exit_code == 1
    assert "PROBLEM" in plain.stdout
    assert last_line(told)["ok"] is False
    assert last_line(told)["problems"]


def test_store_gc(store: str) -> None:
    orphan = Path(store, "data", "ff", f"part-{'f' * 32}.parquet")
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.write_bytes(b"left by a kill")
    os.utime(orphan, (0, 0))
    dry = call("store", "gc", store, "--dry-run")
    assert str(orphan) in dry.stdout
    assert "would be removed" in dry.stdout
    assert orphan.exists()
    told = last_line(call("store", "gc", store, "--older-than", "7d", "--json"))
    assert told["removed"] == [str(orphan)]
    assert not orphan.exists()
    assert call("store", "verify", store).exit_code == 0


def test_store_compact(store: str) -> None:
    told = last_line(call("store", "compact", store, "--json"))
    assert (told["merged"], told["written"], told["version"]) == (2, 1, 3)
    assert "0 parts became 0" in call("store", "compact", store).stdout
    assert call("store", "verify", store).exit_code == 0


@pytest.mark.parametrize("name", GROUPS["store"])
def test_no_store_there(tmp_path: Path, name: str) -> None:
    more = ["1"] if name == "rollback" else []
    result = call("store", name, tmp_path / "nothing", *more, "--json")
    assert result.exit_code == 2
    assert last_line(result)["status"] == "refused"
    assert str(tmp_path / "nothing") in result.stderr
    assert not (tmp_path / "nothing").exists()


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("24h", 86400), ("1.5d", 129600), ("0h", 0)]
)
def test_ages(text: str, seconds: int) -> None:
    assert parse_age(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "1w", "1h30m", "9999999d"])
def test_what_is_no_age(text: str) -> None:
    with pytest.raises(SpecError, match="no age"):
        parse_age(text)


# --- the Python API -------------------------------------------------------------------------------


def test_importing_mmray_is_cheap() -> None:
    code = """
import sys, mmray
heavy = {"ray", "torch", "pandas", "pyarrow", "deltalake", "pydantic", "yaml", "numpy", "typer"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", mmray.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(mmray, name) is not None
    assert name in dir(mmray)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="opne_store"):
        mmray.opne_store  # noqa: B018


def test_run_takes_a_path_a_mapping_or_a_spec(spec: Path, job: FakeJob) -> None:
    loaded = mmray.load_spec(spec)
    for given in (spec, str(spec), loaded.model_dump(exclude_none=True), loaded):
        assert mmray.run(given, quiet=True).status == "done"
    assert [spec for spec, _, _ in job.calls] == [loaded] * 4


@pytest.mark.parametrize("limit", [0, -1])
def test_run_refuses_a_limit_that_is_none(spec: Path, job: FakeJob, limit: int) -> None:
    with pytest.raises(SpecError, match="limit"):
        mmray.run(spec, limit=limit)
    assert job.calls == []


def test_every_job_kind_has_a_module() -> None:
    assert set(mmray.jobs.JOBS) == set(KINDS)
    for kind, module in mmray.jobs.JOBS.items():
        assert module == f"mmray.jobs.{kind}"
        assert (ROOT / "mmray" / "jobs" / f"{kind}.py").exists()


def test_open_store(store: str) -> None:
    assert mmray.open_store(store).version == 2
    assert mmray.open_store(store, version=1).count == 49
    with pytest.raises(RefusedError, match="no version 9"):
        mmray.open_store(store, mmray.Storage(), version=9)


@pytest.mark.parametrize(
    "error",
    [
        JobFailed("words", report("failed")),
        Interrupted(15, report("interrupted")),
        SpecError("a.b", "is needed"),
        StorageError("s3://b", "gone"),
    ],
)
def test_errors_travel_between_processes(error: MmrayError) -> None:
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert str(back) == str(error)
    assert vars(back) == vars(error)
