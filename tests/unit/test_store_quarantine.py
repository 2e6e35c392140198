"""What is in quarantine: counted, listed, read by other engines, and as it was at a version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars
import pytest

import mmray
from mmray.errors import RefusedError, SpecError
from mmray.report import Report
from mmray.store import Change, Quarantined, Store, write_part
from tests import runs
from tests.unit.command import call, last_line
from tests.unit.store_samples import (
    SIZE,
    STORAGE,
    committer,
    new_store,
    part,
    quarantined,
    shard,
    table_of,
)

pytestmark = pytest.mark.unit

SPEC = """\
job: embed
source: {kind: webdataset, uri: TARS}
encoder: {kind: import, model: "tests.toys:Toy"}
store: {uri: elsewhere}
"""


def failed(row: Quarantined, kind: str, message: str, stage: str = "decode") -> Quarantined:
    return replace(row, error_type=kind, message=message, stage=stage)  # type: ignore[arg-type]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """Two runs: the first with five bad samples in shard a, the second with two in shard b."""
    made = new_store(tmp_path)
    a, b = shard("a"), shard("b")
    first = part(made, a, [(0, 500), (500, SIZE)], bad=[f"k{n:04d}" for n in (1, 2, 3, 60, 61)])
    kinds = ["TooBig", "TooBig", "Unreadable", "TooBig", "TooBig"]
    rows = [
        failed(row, kind, f"says {row.source_key}")
        for row, kind in zip(first.quarantined, kinds, strict=True)
    ]
    committer(made, "run-1").commit([Change((replace(first, quarantined=tuple(rows)),))])
    span = b.span(0, SIZE)
    bad = [
        failed(quarantined(b, span, "k0000"), "NaN", "not finite", "encode"),
        failed(quarantined(b, span, "esc\x1b[31m\nape"), "TooBig", "password=hunter2hunter2"),
    ]
    whole = write_part(STORAGE, made.uri, table_of([]), [span], b.uri, bad)
    committer(made, "run-2").commit([Change((whole,))])
    made.reload()
    return made


COUNTS = {
    "reason": [("TooBig", 5), ("NaN", 1), ("Unreadable", 1)],
    "stage": [("decode", 6), ("encode", 1)],
    "shard": [("/in/a.tar", 5), ("/in/b.tar", 2)],
    "run": [("run-1", 5), ("run-2", 2)],
}


@pytest.mark.parametrize("by", COUNTS)
def test_counts_with_examples(store: Store, by: str) -> None:
    groups = mmray.open_store(store.uri).quarantine.summary(by)
    assert [(group.name, group.count) for group in groups] == COUNTS[by]
    assert all(len(group.examples) == min(3, group.count) for group in groups)
    if by == "reason":
        first = groups[0].examples[0]
        assert (first.key, first.uri, first.message) == ("k0001", "/in/a.tar", "says k0001")


def test_an_unknown_way_to_count_is_refused(store: Store) -> None:
    with pytest.raises(SpecError, match="reason, stage, shard, run"):
        store.quarantine.summary("colour")
    result = call("store", "quarantine", store.uri, "--by", "colour")
    assert result.exit_code == 2 and "colour" in result.stderr


def test_an_empty_quarantine(tmp_path: Path) -> None:
    made = new_store(tmp_path)
    assert made.quarantine.summary() == []
    result = call("store", "quarantine", made.uri)
    assert result.exit_code == 0 and "0 samples in quarantine" in result.stdout
    line = last_line(call("store", "quarantine", made.uri, "--json"))
    assert (line["quarantined"], line["groups"], line["rows"]) == (0, [], [])


def test_the_command_prints_for_people(store: Store) -> None:
    result = call("store", "quarantine", store.uri)
    assert result.exit_code == 0
    assert "7 samples in quarantine" in result.stdout
    assert "5  TooBig" in result.stdout
    assert "k0001 in /in/a.tar: says k0001" in result.stdout
    assert f"{store.uri}/_mmray/quarantine" in result.stdout
    few = call("store", "quarantine", store.uri, "--limit", 1).stdout
    assert "k0001" in few and "k0002" not in few and "1  NaN" in few


def test_foreign_text_steers_no_terminal_and_tells_no_secret(store: Store) -> None:
    for words in ((), ("--json",)):
        out = call("store", "quarantine", store.uri, "--by", "shard", *words).stdout
        assert "\x1b" not in out and "hunter2" not in out
        assert "ape" in out


def test_the_command_gives_json(store: Store) -> None:
    line = last_line(call("store", "quarantine", store.uri, "--json", "--limit", 3))
    assert line["table"] == f"{store.uri}/_mmray/quarantine"
    assert (line["quarantined"], line["by"], line["version"]) == (7, "reason", 1)
    assert [(group["name"], group["count"]) for group in line["groups"]] == COUNTS["reason"]
    assert [row["source_key"] for row in line["rows"]] == ["k0001", "k0002", "k0003"]
    assert line["rows"][0].keys() >= {"id", "source_uri", "stage", "error_type", "message", "at"}
    one = last_line(call("store", "quarantine", store.uri, "--json", "--reason", "NaN"))
    assert one["quarantined"] == 1 and one["groups"][0]["name"] == "NaN"


def test_other_engines_read_the_table(store: Store) -> None:
    table = f"{store.uri}/_mmray/quarantine"
    found = runs.duck().execute(
        f"SELECT error_type, count(*) FROM delta_scan('{table}') GROUP BY 1 ORDER BY 2 DESC, 1"
    )
    assert found.fetchall() == COUNTS["reason"]
    assert polars.read_delta(table).height == 7


def test_an_older_version(store: Store) -> None:
    """The part is replaced by one with fewer bad samples, which the older version still tells."""
    (old,) = (p for p in store.parts() if p.min_uri == "/in/a.tar")
    better = part(store, shard("a"), [(0, 500), (500, SIZE)], bad=["k0003"])
    committer(store, "run-3").commit([Change((better,), (old.path,))])
    now = last_line(call("store", "quarantine", store.uri, "--json"))
    assert (now["version"], now["quarantined"]) == (2, 3)
    then = last_line(call("store", "quarantine", store.uri, "--json", "--version", 1))
    assert (then["version"], then["quarantined"]) == (1, 7)
    assert [(group["name"], group["count"]) for group in then["groups"]] == COUNTS["reason"]


# --- replay ---------------------------------------------------------------------------------------


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    path = tmp_path / "spec.yaml"
    path.write_text(SPEC.replace("TARS", str(tmp_path)))
    return path


def test_replay_refuses_a_store_of_another_model(store: Store, spec: Path) -> None:
    with pytest.raises(RefusedError) as refusal:
        mmray_replay(store.uri, spec)
    assert store.meta.fingerprint in str(refusal.value) and "tests.toys:Toy" in str(refusal.value)
    result = call("store", "replay", store.uri, spec, "--json")
    assert result.exit_code == 2
    line = last_line(result)
    assert (line["job"], line["status"]) == ("replay", "refused")


def test_replay_refuses_what_is_no_store(tmp_path: Path, spec: Path) -> None:
    assert call("store", "replay", tmp_path / "nothing", spec).exit_code == 2
    with pytest.raises(SpecError, match="limit"):
        mmray_replay(str(tmp_path), spec, limit=0)


def mmray_replay(*words: Any, **options: Any) -> Report:
    from mmray.jobs.replay import replay

    return replay(*words, quiet=True, **options)


def test_replay_passes_on_what_was_asked(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, spec: Path
) -> None:
    calls: list[tuple[Any, ...]] = []

    def fake(uri: str, fields: dict[str, Any], **options: Any) -> Report:
        calls.append((uri, fields, options))
        return Report(
            job="replay", run_id="r", status="done", started="", rows_read=3, rows_written=3
        )

    monkeypatch.setattr("mmray.jobs.replay.replay", fake)
    words = ["--reason", "A", "--reason", "B", "--limit", 7, "--set", "limits.pixels=9", "-q"]
    result = call("store", "replay", "/store", spec, *words)
    assert result.exit_code == 0 and "3 tried again, 3 good by now" in result.stdout
    uri, fields, options = calls[0]
    assert uri == "/store" and fields["limits"] == {"pixels": 9}
    assert options == {"reasons": ["A", "B"], "limit": 7, "quiet": True}
    assert last_line(call("store", "replay", "/store", spec, "--json"))["job"] == "replay"
