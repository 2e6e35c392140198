"""Queries: the very vectors that an embed job stores; another encoder, or space, is refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mmray
from mmray.encoders import describe
from mmray.errors import RefusedError
from mmray.index import Made, QueryEncoder, combine
from mmray.index.building.asked import look
from mmray.specs.common import CombinedEncoder, HfEncoder, ImportEncoder
from mmray.specs.index import IndexSpec
from mmray.store import Store
from tests import indexes, media, tinymodels
from tests.indexes import LISTENER, TOY
from tests.toys import Watcher


def made_of(store: Store, column: str, **encode: Any) -> Made:
    """What an index of the store says of it."""
    spec = {"job": "index", "store": {"uri": store.uri}, "column": column, "output": "/x"}
    made = look(IndexSpec.model_validate(spec), indexes.STORAGE).made
    return replace(made, encode={**made.encode, **encode})


def rows_of(store: Store) -> dict[str, dict[str, Any]]:
    return {row["source_key"]: row for row in store.to_arrow().to_pylist()}


@pytest.fixture(scope="module")
def heard(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """A store of pictures with captions and sounds of more than one window."""
    given = indexes.samples(3, sound=True)
    return indexes.embedded(tmp_path_factory.mktemp("heard"), given, LISTENER)


def stored(store: Store, modality: str) -> list[tuple[Any, list[float]]]:
    """Inputs, and the vectors that the job made of them."""
    ending = {"image": ".jpg", "audio": ".wav", "text": ".txt"}[modality]
    found = []
    for row in store.to_arrow().to_pylist():
        vector = row[f"{modality}_embedding"]
        if vector is not None:
            data = Path(row["source_uri"]).with_suffix(ending).read_bytes()
            value: Any = data.decode() if modality == "text" else data
            found.append((value, vector))
    return found


@pytest.mark.parametrize("modality", ["image", "text", "audio"])
def test_a_query_is_what_the_job_stored(heard: Store, modality: str) -> None:
    encoder = QueryEncoder.of(made_of(heard, f"{modality}_embedding"))
    pairs = stored(heard, modality)
    assert len(pairs) == 3
    for value, vector in pairs:
        query = getattr(encoder, modality)(value)
        assert query.dtype == np.float32
        assert query.shape == (16,)
        assert np.abs(query - np.asarray(vector, np.float32)).max() <= 1e-6


def test_several_texts_at_once() -> None:
    encoder = QueryEncoder.of(toy())
    several = encoder.texts(["one", "two two", "three"])
    assert several.shape == (3, 16)
    assert several.dtype == np.float32
    assert np.array_equal(several[1], encoder.text("two two"))
    assert encoder.texts([]).shape == (0, 16)
    with pytest.raises(RefusedError, match="query 1's text: .*no characters"):
        encoder.texts(["one", " "])


def test_windows_are_those_of_the_job(tmp_path: Path) -> None:
    given = indexes.samples(2, sound=True)
    store = indexes.embedded(tmp_path, given, LISTENER, audio={"seconds": 0.5})
    (value, vector), *_ = stored(store, "audio")
    as_the_job = QueryEncoder.of(made_of(store, "audio_embedding", audio_seconds=0.5))
    assert np.abs(as_the_job.audio(value) - np.asarray(vector, np.float32)).max() <= 1e-6
    otherwise = QueryEncoder.of(made_of(store, "audio_embedding", audio_seconds=2.0))
    assert np.abs(otherwise.audio(value) - np.asarray(vector, np.float32)).max() > 1e-3


def test_the_packaged_zero_shot_space(tmp_path: Path) -> None:
    given = indexes.samples(2)
    encoder = {"kind": "packaged", "model": "zeroshot"}
    store = indexes.embedded(tmp_path, given, encoder, dtype="float32")
    query = QueryEncoder.of(made_of(store, "image_embedding"))
    for modality in ("image", "text"):
        for value, vector in stored(store, modality):
            found = getattr(query, modality)(value)
            assert np.abs(found - np.asarray(vector, np.float32)).max() <= 1e-6


COMBINED = {
    "kind": "combined",
    "of": [TOY, {"kind": "packaged", "model": "speech"}],
}


def test_of_a_combined_encoder_only_the_part_is_loaded(tmp_path: Path) -> None:
    given = indexes.samples(2, sound=True)
    store = indexes.embedded(tmp_path, given, COMBINED, dtype="float32")
    query = QueryEncoder.of(made_of(store, "text_embedding"))
    value, vector = stored(store, "image")[0]
    assert np.abs(query.image(value) - np.asarray(vector, np.float32)).max() <= 1e-6
    assert len(query._loaded) == 1
    with pytest.raises(RefusedError, match="text_embedding and a query's audio .* different space"):
        query.audio(media.sound(1.0))
    assert len(query._loaded) == 1
    voice = QueryEncoder.of(made_of(store, "audio_embedding"))
    value, vector = stored(store, "audio")[0]
    assert np.abs(voice.audio(value) - np.asarray(vector, np.float32)).max() <= 1e-6
    with pytest.raises(RefusedError, match="audio_embedding and a query's text"):
        voice.text("a voice")


def toy(column: str = "image_embedding", **changes: Any) -> Made:
    spec = changes.pop("encoder", TOY)
    made = replace(indexes.MADE, column=column, encoder_spec=spec, encoder="tests.toys:Toy")
    if "fingerprint" not in changes:
        changes["fingerprint"] = describe(ImportEncoder(**spec)).fingerprint
    return replace(made, **changes)


def test_a_videos_frames_are_in_the_space_of_pictures() -> None:
    encoder = QueryEncoder.of(toy("video_embedding"))
    assert encoder.require("image") == encoder.require("text") == 0
    with pytest.raises(RefusedError, match="Toy takes no audio"):
        encoder.audio(media.sound(1.0))
    with pytest.raises(RefusedError, match="takes no video"):
        encoder.require("video")


def test_videos_may_be_in_a_space_of_their_own() -> None:
    """Where they go through an encoder that takes no pictures."""
    made = {"kind": "combined", "of": [TOY, {"kind": "import", "model": f"{__name__}:Films"}]}
    card = describe(CombinedEncoder.model_validate(made))
    assert card.dims == {"image": 16, "text": 16, "video": 12}
    films = replace(toy("video_embedding"), encoder_spec=made, fingerprint=card.fingerprint)
    query = QueryEncoder.of(films)
    assert query.require("video") == 1
    with pytest.raises(RefusedError, match="video_embedding and a query's image"):
        query.require("image")
    pictures = QueryEncoder.of(replace(films, column="image_embedding"))
    assert pictures.require("text") == 0


class Films(Watcher):
    """Videos alone."""

    dims = {"video": 12}
    image = None  # type: ignore[assignment]


def test_another_encoder_is_refused() -> None:
    with pytest.raises(RefusedError) as error:
        QueryEncoder.of(toy(fingerprint="e" * 32))
    other = toy().fingerprint
    assert all(word in str(error.value) for word in ("e" * 32, other, "tests.toys:Toy"))
    assert "--model" not in str(error.value)  # a class is no folder


def test_an_encoder_that_is_not_here() -> None:
    gone = {"kind": "import", "model": "no.such.module:Class"}
    with pytest.raises(RefusedError, match="queries need .* can't import no.such.module"):
        QueryEncoder.of(toy(encoder=gone, fingerprint="e" * 32))
    with pytest.raises(RefusedError, match="doesn't know"):
        QueryEncoder.of(toy(encoder={"kind": "of the future"}, fingerprint="e" * 32))


def test_a_store_that_does_not_say_what_made_it(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="does not say how to load toy .*--model"):
        QueryEncoder.of(indexes.MADE)
    with pytest.raises(RefusedError, match=f"no model folder at {tmp_path}/x"):
        QueryEncoder.of(indexes.MADE, f"{tmp_path}/x")


@pytest.mark.parametrize(
    ("modality", "value", "words"),
    [
        ("text", "", "the query's text: .*no characters"),
        ("text", "a\0b", "NUL"),
        ("text", "half \ud800 a pair", "not UTF-8"),
        ("image", b"", "the query's image: "),
        ("image", b"<html>", "UnreadableImage"),
    ],
)
def test_what_can_be_no_query(modality: str, value: Any, words: str) -> None:
    encoder = QueryEncoder.of(toy())
    with pytest.raises(RefusedError, match=words):
        getattr(encoder, modality)(value)


def test_weights_that_lie_elsewhere(tmp_path: Path) -> None:
    there = tinymodels.build("clip", tmp_path / "there")
    here = shutil.copytree(there, tmp_path / "here")
    other = tinymodels.build("siglip", tmp_path / "other")
    spec = {"kind": "hf", "model": str(there)}
    card = describe(HfEncoder(kind="hf", model=str(there)))
    made = replace(indexes.MADE, encoder_spec=spec, encoder=card.name, fingerprint=card.fingerprint)
    first = QueryEncoder.of(made).text("a red disc")
    shutil.rmtree(there)
    with pytest.raises(RefusedError, match=r"no model folder at .*there; --model names"):
        QueryEncoder.of(made)
    assert np.array_equal(QueryEncoder.of(made, str(here)).text("a red disc"), first)
    with pytest.raises(RefusedError, match=f"{card.fingerprint}.*has the fingerprint"):
        QueryEncoder.of(made, str(other))
    combined = {"kind": "combined", "of": [{"kind": "packaged", "model": "speech"}, spec]}
    both = {"kind": "combined", "of": [combined["of"][0], {**spec, "model": str(here)}]}
    whole = describe(CombinedEncoder.model_validate(both))
    joint = replace(made, encoder_spec=combined, fingerprint=whole.fingerprint)
    assert np.array_equal(QueryEncoder.of(joint, str(here)).text("a red disc"), first)


def test_a_folder_for_an_encoder_that_has_none() -> None:
    with pytest.raises(RefusedError, match="leave --model out"):
        QueryEncoder.of(toy(), "/models/x")


def test_an_index_knows_its_encoder(tmp_path: Path) -> None:
    store = indexes.embedded(tmp_path, indexes.samples(4), TOY)
    indexes.index_of(store, "image_embedding", str(tmp_path / "index"))
    index = mmray.open_index(str(tmp_path / "index"))
    row = rows_of(store).popitem()[1]
    hits = index.search(index.encoder().text(row["caption"]), 4)
    wanted = np.asarray(row["text_embedding"], np.float32) @ index.vectors(hits.numbers[0]).T
    assert np.allclose(hits.scores[0], wanted, atol=1e-6)


# --- several likes and unlikes --------------------------------------------------------------------


def test_likes_add_up() -> None:
    one, two = indexes.unit(2)
    assert np.allclose(combine(one[None] * 5), one)
    both = combine(np.stack([one * 5, two / 5]))
    assert np.isclose(both @ one, both @ two)
    assert np.isclose(np.linalg.norm(both), 1)
    assert both.dtype == np.float32


def test_unlikes_count_half() -> None:
    one, two, three = np.eye(3, dtype=np.float32)
    away = combine(one[None], np.stack([two * 9, three]))
    assert np.allclose(away * np.linalg.norm([1, 0.25, 0.25]), [1, -0.25, -0.25])
    assert np.array_equal(combine(one[None], np.zeros((0, 3))), one)


def test_what_gives_no_direction() -> None:
    one = np.eye(3, dtype=np.float32)[:1]
    with pytest.raises(RefusedError, match="say what to look for too"):
        combine(one[:0], one)
    with pytest.raises(RefusedError, match="cancels out"):
        combine(np.concatenate([one, -one]))
