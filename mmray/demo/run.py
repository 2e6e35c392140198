"""`mmray demo`: the main jobs on real pictures and speech, on a local S3 server, step by step.

Everything lands under `out/demo`, which each demo starts anew; downloads are kept in the cache.
"""

import os
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mmray
from mmray.demo import learn, specs
from mmray.demo.find import Hit, Question, Questions, ask, questions
from mmray.demo.objectstore import LocalS3
from mmray.demo.pack import pack
from mmray.demo.stamps import Picture, fetch_stamps, stamps, user_samples
from mmray.errors import MmrayError
from mmray.report import Report
from mmray.storage import Storage

OUT = Path("out") / "demo"
SHARDS = 8
SAME = 0.999
"""A picture's cosine with itself, at the least."""
FOREIGN = ("AWS_PROFILE", "AWS_SESSION_TOKEN")
"""What a shell may hold that would lead to another server."""


def main(data: Path | None = None, out: Path = OUT) -> Report:
    """Pack, embed, show, search, learn, search with what was learned, and do the same jobs again.
    The report is of the embed job.

    Raises:
        RefusedError: the pictures can't be had, or `data` holds none.
        MmrayError: a step did not do what the demo says it does.
    """
    began = time.monotonic()
    print("get pictures with captions and speech")
    folder = data or fetch_stamps()
    pictures = list(user_samples(folder)) if data else drawings(folder)
    heard = sum(each.sound is not None for each in pictures)
    print(f"  {len(pictures):,} pictures, {heard:,} of them with sound, in {folder}")
    training = learn.train_spec(pictures)
    say = _Steps(12 if training else 7)

    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    say("start an S3 server (SeaweedFS) on loopback and pack all into tars on it")
    with LocalS3(out / "s3") as server, _environment(server):
        server.make_bucket("demo")
        tars = pack(pictures, Storage(), "s3://demo/pictures", SHARDS)
        print(f"  {len(tars)} tars under s3://demo/pictures at {server.endpoint}")

        say("embed pictures, captions and speech into one store: mmray run jobs/embed-demo.yaml")
        report = mmray.run(specs.EMBED)
        _tell(report)

        say("look at the store: mmray store info s3://demo/stores/pictures")
        _show_store()

        say("keep the report: its page shows what is near what, and plays it")
        _keep(report, out / "report.html")

        say("build an index of the pictures: mmray run jobs/index-demo.yaml")
        _tell_index(mmray.run(specs.INDEX))

        asked = questions(pictures, _keys())
        index, question = specs.INDEX["output"], Question("words", "--text", asked.words)
        say(f"find pictures by {question.by}: {question.typed(index)}")
        _tell_hits(ask(index, question, out / "search.html"), out / "search.html")

        if training is None:
            print(f"\nno model is learned: fewer than {learn.ENOUGH} captions, as many sounds")
        else:
            _learn(training, asked, out, say)

        say("run all jobs again: nothing is done twice")
        _again(training)
    pages = ", ".join(page.name for page in sorted(out.glob("*.html")))
    took = time.monotonic() - began
    print(f"\ndone in {took:.0f} s. Open the pages in {out} in a browser: {pages}.")
    return report


def _learn(training: dict[str, Any], asked: Questions, out: Path, say: "_Steps") -> None:
    """Train the joint model, embed with it, and search by words, pictures and speech."""
    say("learn one space for all of it: mmray run jobs/train-demo.yaml")
    trained = mmray.run(training)
    for line in learn.told(trained):
        print(f"  {line}")
    _keep(trained, out / "training.html")

    say("embed again, with the model that was learned: mmray run jobs/embed-joint.yaml")
    _tell(mmray.run(specs.JOINT_EMBED))
    _tell_index(mmray.run(specs.JOINT_INDEX))

    index = specs.JOINT_INDEX["output"]
    asking = {
        "words": Question("words", "--text", asked.words),
        "picture": Question("a picture", "--image", str(asked.picture.path)),
    }
    if asked.spoken is not None and "audio" in training["model"]["towers"]:
        asking["spoken"] = Question("a spoken word", "--audio", str(asked.spoken.sound))
    # Each is a process that takes most of its time to start: they start side by side.
    with ThreadPoolExecutor() as pool:
        found = {
            name: pool.submit(ask, index, question, out / f"joint-{name}.html")
            for name, question in asking.items()
        }
    for name, question in asking.items():
        say(f"find pictures by {question.by}: {question.typed(index)}")
        _tell_hits(found[name].result(), out / f"joint-{name}.html")
    if max((hit.score for hit in found["picture"].result()), default=0.0) < SAME:
        raise MmrayError(f"{asked.picture.path} is in the index, but did not find itself")
    if "spoken" not in asking:
        say("no sounds to find pictures by")


def _again(training: dict[str, Any] | None) -> None:
    """Run all jobs once more. Raises MmrayError where one finds something to do."""
    jobs = [specs.EMBED, specs.INDEX]
    if training is not None:
        jobs += [training, specs.JOINT_EMBED, specs.JOINT_INDEX]
    for spec in jobs:
        report = mmray.run(spec)
        print(f"  {spec['job']}: {report.rows_read:,} rows read, {report.rows_skipped:,} skipped")
        if report.rows_read:
            raise MmrayError(f"the second run read {report.rows_read} rows that were done")


def drawings(folder: Path) -> list[Picture]:
    """The stamps without the letters of the alphabets, whose neighbours are letters."""
    return [each for each in stamps(folder) if "alphabet" not in each.category]


class _Steps:
    """Numbers the steps."""

    def __init__(self, total: int) -> None:
        self._total, self._number = total, 0

    def __call__(self, text: str) -> None:
        self._number += 1
        print(f"\n[{self._number}/{self._total}] {text}", flush=True)


@contextmanager
def _environment(server: LocalS3) -> Iterator[None]:
    """The server's address and keys in the environment, where jobs look for them."""
    before = {name: os.environ.get(name) for name in (*server.environment, *FOREIGN)}
    os.environ.update(server.environment)
    for name in FOREIGN:
        os.environ.pop(name, None)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _tell(report: Report) -> None:
    print(
        f"  {report.rows_written:,} rows written, {report.rows_skipped:,} skipped, "
        f"{report.rows_quarantined:,} quarantined in {report.seconds:.1f} s"
        + (f"; most time went into: {report.bottleneck}" if report.bottleneck else "")
    )
    for example in report.examples[:3]:
        print(f"    {example.source_key}: {example.error_type}: {example.message}")


def _show_store() -> None:
    info = mmray.open_store(specs.EMBED["store"]["uri"]).info()
    print(f"  {info.rows:,} rows in {info.parts} parts, version {info.version}")
    print(f"  made by {info.meta.encoder}, fingerprint {info.meta.fingerprint}")
    dims = ", ".join(f"{modality} {dim}" for modality, dim in info.meta.dims.items())
    print(f"  vectors: {dims}")


def _keys() -> set[str]:
    """Of the pictures in the store."""
    table = mmray.open_store(specs.EMBED["store"]["uri"]).to_arrow(["source_key"])
    return set(table["source_key"].to_pylist())


def _tell_index(report: Report) -> None:
    facts = report.metrics
    print(
        f"  {report.rows_written:,} vectors in a {facts['kind']} index, recall@{facts['k']} "
        f"{facts['recall']:g}, in {report.seconds:.1f} s"
    )


def _keep(report: Report, page: Path) -> None:
    """A report's page, on this machine."""
    page.write_bytes(Storage().read_bytes(str(report.outputs["page"])))
    print(f"  {page.absolute()}")


def _tell_hits(hits: list[Hit], page: Path) -> None:
    for hit in hits:
        print(f"  {hit}")
    print(f"  {page.absolute()}")
