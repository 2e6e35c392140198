"""The frame of every page: one HTML file that needs nothing else: no script, no font, no address.

Captions, keys and error messages are foreign text: each goes through `escape`, and the page's own
policy (CSP) lets a browser load nothing but the pictures and sounds that are in it.
"""

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from mmray.report.wording import name_of, sentence
from mmray.report.words import escape, section

if TYPE_CHECKING:
    from mmray.report import Report

POLICY = "default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'"

Figure = tuple[str, str, bool]
"""Name, value, and whether it is bad news; all plain text."""


def document(title: str, header: str, sections: Iterable[str]) -> str:
    """The page, complete and in UTF-8.

    Args:
        title: for the window, plain text.
        header: HTML, from `masthead` or `report_header`.
        sections: HTML, from top to bottom; empty ones are left out.
    """
    body = "\n".join(filter(None, sections))
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="referrer" content="no-referrer">'
        f"<title>{escape(title)}</title><style>{_style()}</style></head>\n"
        f"<body><main>{header}\n{body}\n</main></body></html>\n"
    )


@cache
def _style() -> str:
    return Path(__file__).with_name("page.css").read_text(encoding="utf-8")


def masthead(kind: str, mark: str, title: str, rest: str) -> str:
    """The top of a page.

    Args:
        kind: what page it is, such as `embed report`; plain text.
        mark: HTML beside it, from `status`.
        title: plain text.
        rest: HTML below the title.
    """
    return (
        f'<header><p class="eyebrow"><b>mmray</b><span>{escape(kind)}</span>{mark}</p>'
        f"<h1>{escape(title)}</h1>{rest}</header>"
    )


def status(text: str, good: bool = True) -> str:
    """A word or two in a pill."""
    return f'<span class="status{"" if good else " bad"}">{escape(text)}</span>'


def report_title(report: "Report") -> str:
    """A report's title for the window."""
    return f"{report.job} · {name_of(report)}"


def report_header(report: "Report", figures: Iterable[Figure]) -> str:
    """The top of a report: how the run ended, what it did, and its figures."""
    good = report.status == "done"
    why = "" if good or not report.message else callout(report.message)
    cells = "".join(
        f'<div class="{"bad" if bad else "good"}"><dt>{escape(name)}</dt>'
        f"<dd>{escape(value)}</dd></div>"
        for name, value, bad in figures
    )
    lead = f'<p class="lead">{escape(sentence(report))}</p>'
    return masthead(
        f"{report.job} report",
        status(report.status, good),
        name_of(report),
        f'{lead}{why}<dl class="figures">{cells}</dl>',
    )


def facts(title: str, rows: Iterable[tuple[str, str]]) -> str:
    """A section of names and values; names are plain text, values HTML, empty ones left out."""
    cells = "".join(f"<dt>{escape(name)}</dt><dd>{value}</dd>" for name, value in rows if value)
    return section(title, "", f'<dl class="facts">{cells}</dl>') if cells else ""


def value(text: object) -> str:
    """A fact's value; what is a place or a hash stands in letters of one width."""
    words = str(text)
    coded = " " not in words and ("/" in words or len(words) >= 24)
    return code(words) if coded else escape(words)


def code(text: object) -> str:
    """Text in letters of one width; nothing for no text."""
    return f"<code>{escape(text)}</code>" if str(text) else ""


def callout(text: str) -> str:
    """A warning."""
    return f'<p class="callout">{escape(text)}</p>'
