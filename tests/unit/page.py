"""A page as a browser would find it, and what every page must be."""

import re
from html.parser import HTMLParser

from mmray.report.document import POLICY

HOSTILE = "\"><script>alert(1)</script><img src=https://evil.example/x onerror=alert(1)>'&amp;"
VOID = {"meta", "img"}
"""Without an end; what SVG has without one says so."""


class Page(HTMLParser):
    """What a browser would find; fails on tags that don't nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: dict[str, list[str]] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.words.setdefault(self.open[-1], []).append(data)

    def count(self, tag: str, kind: str | None = None) -> int:
        """How many tags there are, of one class where it is given."""
        return sum(name == tag and kind in (None, attrs.get("class")) for name, attrs in self.tags)


def assert_safe(text: str) -> None:
    """Nothing runs and nothing is loaded from elsewhere, whatever foreign text is in the page."""
    page = Page(text)
    assert "script" not in {tag for tag, _ in page.tags}
    assert not any(name.startswith("on") for _, attrs in page.tags for name in attrs)
    for _, attrs in page.tags:
        for name in ("src", "href", "srcset", "action", "data", "poster"):
            assert (attrs.get(name) or "data:").startswith("data:")
    assert not re.search(r"url\(|@import", text)
    assert [a["content"] for t, a in page.tags if a.get("http-equiv")] == [POLICY]
