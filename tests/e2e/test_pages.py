"""Pages in a real browser, of `mmray search --html` and of a run: pictures are shown, nothing is
fetched, and foreign text stays text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from mmray.cli import app
from mmray.report.page import render
from tests import indexes, shards
from tests.indexes import TOY
from tests.unit.page import HOSTILE
from tests.unit.test_page import full, vectors
from tests.unit.test_report import example

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
COUNT = 9

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def hits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page of hits, by a picture and hostile words, whose captions are hostile."""
    folder = tmp_path_factory.mktemp("page")
    files = indexes.samples(COUNT)
    for name in [name for name in files if name.endswith(".txt")]:
        files[name] = f"{HOSTILE} {name}".encode()
    store = indexes.embedded(folder, files, TOY)
    indexes.index_of(store, "image_embedding", str(folder / "index"))
    (folder / "query.jpg").write_bytes(shards.picture(4, (40, 32)))
    page = folder / "hits.html"
    asked = ["--text", HOSTILE, "--image", str(folder / "query.jpg"), "--html", str(page)]
    done = CliRunner().invoke(app, ["search", str(folder / "index"), *asked])
    assert done.exit_code == 0, done.output
    return page


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's report, whose captions, keys and messages are hostile."""
    bad = example(source_uri=HOSTILE, source_key=HOSTILE, error_type=HOSTILE, message=HOSTILE)
    report = full(examples=[bad], errors={HOSTILE: 1})
    page = tmp_path_factory.mktemp("run") / "report.html"
    page.write_text(render(report, vectors(HOSTILE, shards.picture(4, (40, 32)))))
    return page


@pytest.fixture(scope="module", params=["hits", "run"])
def page_file(request: pytest.FixtureRequest) -> Path:
    """Each page."""
    found: Path = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    # Left to itself it asks its makers for updates; its sandbox refuses to run as root.
    quiet = ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    arguments = [*quiet, "--no-sandbox"] if os.geteuid() == 0 else quiet
    with sync_playwright() as started:
        found = started.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield found
        found.close()


class Watched:
    """A page that was opened, and what happened meanwhile."""

    def __init__(self, browser: Browser, file: Path) -> None:
        self.page: Page = browser.new_page(viewport={"width": 1200, "height": 900})
        self.requests: list[str] = []
        self.said: list[str] = []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda message: self.said.append(message.text))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on("dialog", self._dialog)
        self.page.goto(file.as_uri(), wait_until="load")

    def _dialog(self, dialog: object) -> None:
        self.said.append("a dialog opened")
        dialog.dismiss()  # type: ignore[attr-defined]

    def widths(self) -> list[int]:
        """Of the pictures as they were decoded; 0 is one that is not shown."""
        every = "images => Promise.all(images.map(i => i.decode().then(() => i.naturalWidth)))"
        found: list[int] = self.page.eval_on_selector_all("img", every)
        return found


@pytest.fixture
def watched(browser: Browser, page_file: Path) -> Iterator[Watched]:
    opened = Watched(browser, page_file)
    yield opened
    opened.page.close()


def test_pictures_are_shown(watched: Watched) -> None:
    assert min(watched.widths()) > 0
    watched.page.eval_on_selector_all("details", "all => all.forEach(each => each.open = true)")
    for box in (image.bounding_box() for image in watched.page.locator("img").all()):
        assert box is not None
        assert min(box["width"], box["height"]) > 20


def test_hits_are_beside_the_query(browser: Browser, hits: Path) -> None:
    opened = Watched(browser, hits)
    assert len(opened.widths()) == COUNT + 1, "the query's picture, and each hit's"
    assert opened.page.locator("ol.hits > li").count() == COUNT
    assert opened.page.locator("h1").inner_text() == HOSTILE
    captions = opened.page.locator("ol.hits .cap").all_inner_texts()
    assert len(captions) == COUNT
    assert all(each.startswith(HOSTILE) for each in captions)
    opened.page.close()


def test_a_run_is_drawn(browser: Browser, run: Path) -> None:
    opened = Watched(browser, run)
    assert len(opened.widths()) == 8 * 7, "a picture and its six nearest, eight times"
    curve = opened.page.locator("svg").first.bounding_box()
    assert curve is not None
    assert min(curve["width"], curve["height"]) > 100
    assert HOSTILE in opened.page.locator("body").inner_text()
    opened.page.close()


def test_no_request_leaves_the_page(watched: Watched, page_file: Path) -> None:
    watched.widths()
    elsewhere = [url for url in watched.requests if not url.startswith("data:")]
    assert elsewhere == [page_file.as_uri()]


def test_foreign_text_stays_text(watched: Watched) -> None:
    watched.widths()
    assert watched.said == [], "no script ran, no dialog opened, and the policy refused nothing"
    assert watched.page.locator("script").count() == 0


def test_it_fits_a_narrow_window(watched: Watched) -> None:
    watched.page.set_viewport_size({"width": 380, "height": 800})
    wide = watched.page.evaluate("document.documentElement.scrollWidth")
    assert wide <= 380


def test_the_watch_sees_what_it_should(browser: Browser, hits: Path, tmp_path: Path) -> None:
    """The same page with a script and a picture from elsewhere, and no policy: all is noticed."""
    text = hits.read_text()
    policy = text[text.index('<meta http-equiv="Content-Security') : text.index("<meta name=")]
    bad = "<script>alert(1)</script><img src='http://127.0.0.1:9/x.png'>"
    torn = tmp_path / "torn.html"
    torn.write_text(text.replace(policy, "").replace("</main>", f"{bad}</main>"))
    opened = Watched(browser, torn)
    opened.page.close()
    assert "a dialog opened" in opened.said
    assert "http://127.0.0.1:9/x.png" in opened.requests
