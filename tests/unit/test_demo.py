"""The demo's parts: pictures and speech found and named, shards packed alike each time, on real S3,
what is looked for in them, and the jobs that the examples show."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from mmray.demo import find, learn, specs
from mmray.demo import stamps as stamps_module
from mmray.demo.find import Hit, Question, Questions, ask, questions
from mmray.demo.pack import pack
from mmray.demo.stamps import Picture, cache_folder, fetch_stamps, stamps, user_samples
from mmray.errors import MmrayError, RefusedError
from mmray.specs import load_spec
from mmray.storage import Storage
from tests import shards


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


@pytest.fixture
def stamp_folder(tmp_path: Path) -> Path:
    words = b"A blackbird.\nfr.utf8=Un merle.\nde.utf8=Eine Amsel.\n"
    return folder_of(
        tmp_path / "stamps",
        {
            "animals/birds/blackbird.png": shards.picture(1, format="PNG"),
            "animals/birds/blackbird.txt": words,
            "animals/birds/blackbird_mirror.png": shards.picture(2, format="PNG"),
            "animals/birds/blackbird_mirror.txt": words,
            "food/v1.5 apple.png": shards.picture(3, format="PNG"),
            "food/v1.5 apple.txt": b"An apple.",
            "food/no words.png": shards.picture(4, format="PNG"),
            "animals/birds/blackbird_desc.ogg": b"OggS english",
            "animals/birds/blackbird_desc_fr.ogg": b"OggS french",
            "animals/birds/blackbird.ogg": b"OggS it sings",
        },
    )


def test_stamps_have_english_captions_and_categories(stamp_folder: Path) -> None:
    found = list(stamps(stamp_folder))
    assert [(p.key, p.caption, p.category) for p in found] == [
        ("animals/birds/blackbird", "A blackbird.", "animals/birds"),
        ("food/v1_5 apple", "An apple.", "food"),
    ]
    assert json.loads(found[0].metadata) == {
        "caption": "A blackbird.",
        "category": "animals/birds",
        "speech_language": "en",
    }
    assert "speech_language" not in json.loads(found[1].metadata)
    assert (found[0].sound, found[1].sound) == (
        stamp_folder / "animals/birds/blackbird_desc.ogg",
        None,
    )


@pytest.mark.parametrize(
    ("files", "language"),
    [
        (["x_desc.ogg", "x_desc_fr.ogg", "x_desc_ca.ogg"], "en"),
        (["x_desc_ca.ogg", "x_desc_fr.ogg", "x_desc_zh_TW.ogg"], "fr"),
        (["x_desc_zh_TW.ogg", "x_desc_de.ogg"], "de"),
        (["x_desc_zh_TW.ogg"], "zh_TW"),
        (["x.ogg", "x_description.ogg", "x2_desc.ogg", "sub/x_desc.ogg"], None),
    ],
)
def test_the_spoken_description_is_english_where_there_is_one(
    tmp_path: Path, files: list[str], language: str | None
) -> None:
    stamp = {"x.png": shards.picture(1, format="PNG"), "x.txt": b"An x."}
    folder_of(tmp_path, stamp | dict.fromkeys(files, b"OggS"))
    (found,) = stamps(tmp_path)
    assert json.loads(found.metadata).get("speech_language") == language
    suffix = "" if language in (None, "en") else f"_{language}"
    assert found.sound == (tmp_path / f"x_desc{suffix}.ogg" if language else None)


def test_packing_is_deterministic_and_leaves_equal_shards_alone(
    stamp_folder: Path, tmp_path: Path
) -> None:
    storage, prefix = Storage(), str(tmp_path / "out")
    uris = pack(stamps(stamp_folder), storage, prefix, shards=8)
    assert [Path(uri).name for uri in uris] == ["00000.tar", "00001.tar"]
    before = [storage.stat(uri).etag for uri in uris]
    for path in stamp_folder.rglob("*"):
        os.utime(path)
    assert pack(stamps(stamp_folder), storage, prefix, shards=8) == uris
    assert [storage.stat(uri).etag for uri in uris] == before
    with tarfile.open(uris[0]) as archive:
        assert archive.getnames() == [
            f"animals/birds/blackbird.{e}" for e in ("png", "txt", "json", "ogg")
        ]
        speech = archive.extractfile("animals/birds/blackbird.ogg")
        assert speech is not None
        assert speech.read() == b"OggS english"
        assert {member.mtime for member in archive} == {0}


def test_packing_writes_to_s3(stamp_folder: Path, s3_uri: str) -> None:
    uris = pack(stamps(stamp_folder), Storage(), s3_uri, shards=1)
    assert [item.uri for item in Storage().list(s3_uri)] == uris
    with tarfile.open(fileobj=io.BytesIO(Storage().read_bytes(uris[0]))) as archive:
        assert len(archive.getnames()) == 7


def test_a_folder_of_ones_own(tmp_path: Path) -> None:
    folder = folder_of(
        tmp_path / "mine",
        {
            "a.JPG": shards.picture(1),
            "a.txt": b"first\n",
            "a.png": shards.picture(2, format="PNG"),
            "trip/b.webp": shards.picture(3, format="WEBP"),
            "trip/b.json": b'{"caption": "second", "year": 2026}',
            "trip/c.jpg": shards.picture(4),
            "trip/c.json": b"not json",
            "trip/c.wav": b"RIFF",
            "trip/c.OGG": b"OggS",
            "trip/v1.5 d.jpg": shards.picture(5),
            "trip/v1.5 d.MP3": b"ID3",
            "lonely.ogg": b"OggS",
            "notes.doc": b"ignored",
        },
    )
    found = {p.key: p for p in user_samples(folder)}
    assert list(found) == ["a", "a-2", "trip/b", "trip/c", "trip/v1_5 d"]
    assert found["a"].caption == "first"
    assert found["a"].extension == "jpg"
    assert json.loads(found["trip/b"].metadata)["year"] == 2026
    assert json.loads(found["trip/b"].metadata)["category"] == "trip"
    assert found["trip/b"].caption is None, "its words are in the metadata already"
    assert found["trip/c"].metadata == b"not json", "for the job to quarantine"
    assert found["trip/c"].sound == folder / "trip/c.OGG", "one sound a sample"
    assert found["trip/b"].sound is None
    (uri,) = pack(found.values(), Storage(), str(tmp_path / "out"), shards=1)
    with tarfile.open(uri) as archive:
        packed = [name for name in archive.getnames() if name.endswith((".ogg", ".mp3", ".wav"))]
    assert packed == ["trip/c.ogg", "trip/v1_5 d.mp3"]


@pytest.mark.parametrize("name", ["missing", "empty"])
def test_a_folder_without_pictures_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(RefusedError, match=name):
        list(user_samples(tmp_path / name))


def test_without_debian_the_way_out_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stamps_module.shutil, "which", lambda _: None)
    with pytest.raises(RefusedError, match="--data DIR"):
        fetch_stamps(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_old_package_list_is_renewed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With stand-ins for apt-get and dpkg-deb: the first download fails, an update helps."""
    tools = tmp_path / "bin"
    scripts = {
        "apt-get": f"""
            echo "$1" >> {tmp_path}/calls
            [ "$1" = update ] && exit 0
            [ -e {tmp_path}/once ] || {{ touch {tmp_path}/once; echo 'E: no list' >&2; exit 100; }}
            touch tuxpaint-stamps-default_1_all.deb""",
        "dpkg-deb": 'mkdir -p "$3/usr/share/tuxpaint/stamps"',
    }
    for name, text in scripts.items():
        script = folder_of(tools, {name: f"#!/bin/sh\n{text}\n".encode()}) / name
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setattr(stamps_module.os, "geteuid", lambda: 0)
    cache = tmp_path / "cache"
    assert fetch_stamps(cache).is_dir()
    assert fetch_stamps(cache).is_dir()
    assert (tmp_path / "calls").read_text().split() == ["download", "update", "download"]
    assert [p.name for p in cache.iterdir()] == ["tuxpaint-stamps-default"], "no scratch is left"


EXAMPLES = {
    "embed-demo": specs.EMBED,
    "index-demo": specs.INDEX,
    "train-demo": specs.TRAIN,
    "embed-joint": specs.JOINT_EMBED,
    "index-joint": specs.JOINT_INDEX,
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_examples_are_the_jobs_of_the_demo(example: str) -> None:
    path = Path(__file__).parents[2] / f"jobs/{example}.yaml"
    assert load_spec(path) == load_spec(EXAMPLES[example])


def picture(key: str, caption: str | None = None, sound: str | None = None) -> Picture:
    heard = Path(f"/in/{sound}") if sound else None
    return Picture(key, Path(f"/in/{key}.png"), caption, "", b"", heard)


def test_stamps_are_asked_with_words_that_suit_them() -> None:
    mine = [picture("a", "An a.", "a.ogg"), picture(find.PICTURE, "A penguin.", "penguin.ogg")]
    assert questions(mine, {"a", find.PICTURE}) == Questions(find.WORDS, mine[1], mine[1])
    mine[1] = picture(find.PICTURE, "A penguin.")
    assert questions(mine, {"a", find.PICTURE}).spoken is None


def test_other_pictures_are_asked_with_a_caption_of_theirs() -> None:
    mine = [picture("torn", "A torn one."), picture("a", None, "a.wav"), picture("b", "A b.")]
    assert questions(mine, {"a", "b"}) == Questions("A b.", mine[2], mine[1])
    assert questions(mine[:2], {"a", "b"}) == Questions("a", mine[1], mine[1])
    with pytest.raises(MmrayError, match="none of the pictures"):
        questions(mine, set())


def test_a_model_is_learned_of_what_the_pictures_have() -> None:
    stamps_like = [picture(str(n), "words", "sound.ogg") for n in range(learn.HELD_OUT)]
    assert learn.train_spec(stamps_like) == specs.TRAIN
    few_sounds = [picture(str(n), "words") for n in range(10)] + [picture("x", "x", "x.ogg")]
    spec = learn.train_spec(few_sounds)
    assert spec is not None
    assert list(spec["model"]["towers"]) == ["image", "text"]
    assert spec["data"]["split"]["test"] == 0, "too few to hold any out"
    load_spec(spec)
    assert specs.TRAIN["data"]["split"]["test"] == 0.2
    assert learn.train_spec([picture(str(n)) for n in range(10)]) is None


def test_a_search_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(MmrayError, match="exit code 2: .*no index is there"):
        ask(str(tmp_path / "nothing"), Question("words", "--text", "-x"), tmp_path / "page.html")


def test_a_search_is_told_as_it_is_typed() -> None:
    words, file = (
        Question("words", "--text", "a cow"),
        Question("a picture", "--image", "/in/c.png"),
    )
    assert words.typed("/index") == 'mmray search /index --text "a cow" -k 6'
    assert file.typed("/index") == "mmray search /index --image c.png -k 6"


def test_a_hit_without_a_caption_is_told_by_its_key() -> None:
    assert str(Hit(0.5, "food/apple", "")) == "0.500  food/apple"
    assert str(Hit(1.0, "food/apple", "An apple.")) == "1.000  An apple."


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="the stamps are a Debian package")
def test_the_real_stamps() -> None:
    if not (cache_folder() / stamps_module.PACKAGE).exists():
        pytest.skip("the stamps aren't in the cache: `make demo` fetches them")
    found = list(stamps(fetch_stamps()))
    assert len(found) > 700
    assert len({p.key for p in found}) == len(found)
    assert all(p.caption for p in found)
    assert sum(p.sound is not None for p in found) > 700
    with Image.open(io.BytesIO(found[0].read())) as image:
        assert image.mode in ("RGBA", "LA", "P", "RGB", "L")
