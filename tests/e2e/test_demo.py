"""The demo from its first step to its last, as the command line runs it on a folder of pictures."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests import media, runs, shards
from tests.unit.page import Page, assert_safe

COUNT = 16


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures with captions, one of which begins with a dash; some with a sound."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for seed in range(COUNT):
        place = folder / f"{seed:02d}.png"
        place.write_bytes(shards.picture(seed, (64, 48), format="PNG"))
        place.with_suffix(".txt").write_text(f"- {shards.caption(seed)}")
        if seed % 2 == 0:
            place.with_suffix(".wav").write_bytes(media.sound(2.0, seed=seed))
    return folder


def test_a_folder_is_packed_embedded_indexed_and_searched(pictures: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mmray", "demo", "--data", str(pictures)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(runs.ROOT), "MMRAY_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=540,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = done.stdout
    assert f"  {COUNT} rows written, 0 skipped, 0 quarantined" in told
    assert f"  {COUNT} vectors in a flat index, recall@10 1" in told
    steps = told.split("\n[")
    assert len(steps) == 13
    words, learned, embedded, joint_words, joint_picture, spoken, again = steps[6:]
    out = tmp_path / "out" / "demo"
    assert f'--text "- {shards.caption(0)}"' in words
    assert f"  {COUNT} samples in 40 steps" in learned
    assert f"  {COUNT} rows written, 0 skipped, 0 quarantined" in embedded
    assert f'--text "- {shards.caption(0)}"' in joint_words
    best, *others = joint_picture.splitlines()[1:]
    assert best == f"  1.000  - {shards.caption(0)}"
    assert len(others) >= 6
    assert "--audio 00.wav" in spoken
    assert again.startswith("12/12]")
    assert again.count(" 0 rows read") == 5
    for name, shown in (
        ("search.html", 6),
        ("joint-words.html", 6),
        ("joint-picture.html", 7),
        ("joint-spoken.html", 6),
    ):
        assert name in again
        text = (out / name).read_text()
        assert_safe(text)
        assert Page(text).count("img") == shown
    assert_safe((out / "training.html").read_text())
