"""The report: its counts agree, its line is one line, and it is kept without secrets."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from mmray.report import Example, Report
from mmray.report.plain import plain_page
from mmray.report.progress import progress
from mmray.report.scrub import scrub
from mmray.report.vectors import Inspection, VectorCheck
from mmray.report.wording import name_of, places
from mmray.storage import Storage
from tests.unit.page import Page


def report(**changes: Any) -> Report:
    """A run that read ten rows, one of them bad."""
    values: dict[str, Any] = {
        "job": "embed",
        "run_id": "r1",
        "status": "done",
        "started": "2025-11-21T23:16:00+00:00",
        "seconds": 4.0,
        "rows_read": 10,
        "rows_written": 9,
        "rows_quarantined": 1,
        "stages": {"read": 1.0, "encode": 2.5},
        "timeline": [(1.0, 4), (4.0, 10)],
        "errors": {"EmptyMember": 1},
        "examples": [example()],
        "outputs": {"store": "/data/out", "version": 3},
    }
    return Report(**{**values, **changes})


def example(**changes: str) -> Example:
    values = {
        "source_uri": "/data/a.tar",
        "source_key": "k",
        "stage": "read",
        "error_type": "EmptyMember",
        "message": "zero bytes",
    }
    return Example(**{**values, **changes})


def test_a_row_that_was_read_is_written_in_quarantine_or_left_out() -> None:
    with pytest.raises(ValidationError, match="10 rows read, but 8 written, 0 left out and 1 in"):
        report(rows_written=8)
    assert report(rows_written=6, rows_filtered=3, filtered={"language": 3}).rows_read == 10
    with pytest.raises(ValidationError, match="6 written, 2 left out and 1 in quarantine"):
        report(rows_written=6, rows_filtered=2)


def test_unknown_fields_and_changes_are_refused() -> None:
    with pytest.raises(ValidationError, match="extra_forbidden"):
        report(rows_lost=0)
    with pytest.raises(ValidationError, match="frozen"):
        report().rows_read = 3
    with pytest.raises(ValidationError, match="finite"):
        report(rows_per_second=float("inf"))


def test_the_bottleneck_is_the_slowest_stage() -> None:
    assert report().bottleneck == "encode"
    assert report(stages={}).bottleneck is None
    assert report(stages={"read": 0.0}).bottleneck is None


def test_the_rate_is_filled_in_only_when_left_out() -> None:
    assert report().rows_per_second == 2.5
    assert report(seconds=0.0).rows_per_second == 0.0
    assert report(rows_per_second=7.0).rows_per_second == 7.0


def test_the_line_is_one_line_with_the_promised_head() -> None:
    line = report(
        job="replay",
        message="a\nb",
        changed=["/x"],
        rows_written=2,
        rows_filtered=7,
        filtered={"duplicate": 7},
    ).line()
    data = json.loads(line)
    assert "\n" not in line
    assert list(data)[:10] == [
        "job",
        "status",
        "rows_read",
        "rows_written",
        "rows_skipped",
        "rows_quarantined",
        "rows_filtered",
        "seconds",
        "rows_per_second",
        "outputs",
    ]
    assert data["message"] == "a\nb"
    assert (data["job"], data["rows_filtered"], data["filtered"]) == ("replay", 7, {"duplicate": 7})
    assert not {"timeline", "examples", "changed", "removed"} & data.keys()


def test_long_lists_are_cut() -> None:
    long = report(changed=["/a"] * 300, removed=("/b",) * 300)
    assert (len(long.changed), len(long.removed)) == (100, 100)


def test_examples_are_few_of_each_error_type() -> None:
    many = [example(source_key=f"{n}", error_type=f"Type{n % 4}") for n in range(100)]
    kept = report(examples=many).examples
    assert [each.source_key for each in kept] == [str(n) for n in range(20)]
    assert report(examples=[each.model_dump() for each in many]).examples == kept


def test_every_error_type_has_an_example_before_any_has_two() -> None:
    many = [example(error_type="Common")] * 300
    many += [example(error_type=f"Rare{n % 58}", source_key=str(n)) for n in range(116)]
    kept = [each.error_type for each in report(examples=many).examples]
    assert kept == ["Common"] * 2 + [f"Rare{n}" for n in range(58)]


def test_saving_keeps_json_and_page_beside_the_store(tmp_path: Path) -> None:
    saved = report().save(Storage(), str(tmp_path))
    folder = tmp_path / "_mmray" / "runs" / "r1"
    assert saved.outputs == {
        "store": "/data/out",
        "version": 3,
        "report": str(folder / "report.json"),
        "page": str(folder / "report.html"),
    }
    assert Report.model_validate_json((folder / "report.json").read_bytes()) == saved
    assert (folder / "report.html").read_text(encoding="utf-8").startswith("<!doctype html>")


def test_a_job_may_bring_its_own_page(tmp_path: Path) -> None:
    mine = report(job="index", outputs={"index": "/data/i"})
    saved = mine.save(Storage(), str(tmp_path), "<!doctype html><p>mine")
    assert Path(str(saved.outputs["page"])).read_text() == "<!doctype html><p>mine"
    assert list(saved.outputs) == ["index", "report", "page"], "a store only where there is one"


def test_a_job_without_a_page_gets_one_of_what_it_measured(tmp_path: Path) -> None:
    mine = report(
        job="search",
        rows_written=6,
        rows_filtered=3,
        filtered={"no vector": 3},
        timeline=[],
        metrics={"k": 10, "search_seconds": 4.2, "bytes": 2**21, "kind": "<hnsw>"},
        outputs={"hits": "s3://b/answers/hits.json"},
    )
    text = Path(str(mine.save(Storage(), str(tmp_path)).outputs["page"])).read_text()
    page = Page(text)
    assert page.words["h1"] == ["answers"]
    assert page.words["h2"] == [
        "Stage seconds",
        "Measured",
        "Bad samples by reason",
        "Left out",
        "Run",
    ]
    told = dict(zip(page.words["dt"][5:9], page.words["dd"][5:9], strict=True))
    assert told == {"k": "10", "Search time": "4.2 s", "Size": "2 MiB", "Kind": "<hnsw>"}
    for words in (
        "10 queries asked in 4 s, 6 answered, 3 left out and 1 in quarantine.",
        "1 query, 10% of those asked",
        "3 queries, 30% of those asked<",
    ):
        assert words in text
    assert "mmray store" not in text
    idle = {"rows_read": 0, "rows_written": 0, "rows_quarantined": 0, "rows_skipped": 5}
    bare: dict[str, Any] = {"errors": {}, "stages": {}, "timeline": [], "outputs": {}}
    nothing = plain_page(report(job="index", **idle, **bare))
    assert Page(nothing).words["h2"] == ["Run"]
    assert "Nothing to do: every row was finished by an earlier run" in nothing


def test_the_vectors_of_a_store_are_on_its_page(tmp_path: Path) -> None:
    seen = Inspection(rows=7, of=9, checks=(VectorCheck("image", 7, 0, 8),))
    saved = report().save(Storage(), str(tmp_path), vectors=seen)
    assert "7 of 9 rows" in Path(str(saved.outputs["page"])).read_text()


def test_metrics_are_numbers_or_words() -> None:
    given = {"recall": 0.9531, "rows": 3, "kind": "12"}
    mine = report(metrics=given)
    again = Report.model_validate_json(mine.model_dump_json())
    assert again.metrics == given
    assert [type(each) for each in again.metrics.values()] == [float, int, str]
    assert json.loads(mine.line())["metrics"]["recall"] == 0.953
    with pytest.raises(ValidationError, match="finite"):
        report(metrics={"recall": float("nan")})


@pytest.mark.parametrize(
    ("outputs", "name", "told"),
    [
        ({"store": "/a/b/", "version": 2}, "b", {"store": "/a/b/ (version 2)"}),
        ({"index": "s3://x/i", "report": "/r", "page": "/p"}, "i", {"index": "s3://x/i"}),
        ({"keep": "/d/keep.parquet", "drop": "/d/drop.parquet"}, "d", None),
        ({"output": "/out.v2", "index": "/i", "version": 4}, "out.v2",
         {"output": "/out.v2", "index": "/i (version 4)"}),
        ({"store": "/s", "store_version": 7, "index": "/i", "version": 2}, "i",
         {"store": "/s (version 7)", "index": "/i (version 2)"}),
        ({"version": 3}, "r1", {}),
    ],
)  # fmt: skip
def test_what_a_run_is_called_by(
    outputs: dict[str, str | int], name: str, told: dict[str, str] | None
) -> None:
    mine = report(job="embed" if len(outputs) == 2 else "index", outputs=outputs)
    assert name_of(mine) == name
    assert told is None or places(mine) == told


def test_text_that_is_no_utf8_can_be_saved(tmp_path: Path) -> None:
    saved = report(examples=[example(source_key="caf\udce9", message="a\0b")])
    page = Path(str(saved.save(Storage(), str(tmp_path)).outputs["page"]))
    assert "caf?" in page.read_text(encoding="utf-8")


def test_secrets_never_reach_a_report(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI")
    words = "denied: wJalrXUtnFEMI, http://me:pass@host/a?X-Amz-Signature=abc123&x=1"
    saved = report(
        status="failed", message=words, examples=[example(message=words)]
    ).save(Storage(), str(tmp_path))  # fmt: skip
    kept = saved.line() + "".join(
        path.read_text() for path in tmp_path.rglob("report.*") if path.is_file()
    )
    assert "denied" in kept
    for secret in ("wJalrXUtnFEMI", "pass@", "abc123"):
        assert secret not in kept


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("no secret in s3://bucket/key@2x.png", "no secret in s3://bucket/key@2x.png"),
        ("secret_access_key=abc next", "secret_access_key=*** next"),
        ('{"session_token": "abc", "a": 1}', '{"session_token": "***", "a": 1}'),
    ],
)
def test_scrub(text: str, clean: str) -> None:
    assert scrub(text) == clean


def test_progress_tells_of_filtered_rows_where_there_are_any() -> None:
    stream = io.StringIO()
    with progress(stream=stream) as show:
        show.update(rows=10, quarantined=3, filtered=1200)
        show.update(rows=20)
    first, last = stream.getvalue().splitlines()
    assert first == "mmray: 10 rows, 0.0 rows/s, 1,200 filtered, 3 quarantined"
    assert last.endswith("rows/s, 1,200 filtered, 3 quarantined")
    with progress(stream=stream) as show:
        show.update(rows=10, quarantined=3, filtered=0)
    assert "0 filtered" not in stream.getvalue().replace("1,200 filtered", "")
