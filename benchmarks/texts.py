"""Captions of mixed length from real English: what the standard library says about itself.

Docstrings are on every machine that can run the benchmarks. Lengths follow a log-normal with a
median of 11 words, the shape of alt texts on the web: most are short, some are long paragraphs.
"""

from __future__ import annotations

import ast
import random
import re
import sysconfig
from functools import cache
from pathlib import Path

MEDIAN_WORDS = 11
SIGMA = 0.85
MOST_WORDS = 180


def mixed_captions(count: int, seed: int) -> list[str]:
    """`count` texts: runs of consecutive words, each starting at the start of a sentence."""
    words, starts = _words()
    draw = random.Random(seed)
    captions = []
    for _ in range(count):
        length = min(MOST_WORDS, max(2, round(draw.lognormvariate(0, SIGMA) * MEDIAN_WORDS)))
        start = draw.choice(starts)
        captions.append(" ".join(words[start : start + length]))
    return captions


@cache
def _words() -> tuple[list[str], list[int]]:
    """All words in order, and the positions at which sentences start."""
    words: list[str] = []
    starts: list[int] = []
    for text in _docstrings():
        for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
            found = [word for word in sentence.split() if re.search(r"\w", word) and len(word) < 25]
            if len(found) >= 3 and found[0][0].isupper():
                starts.append(len(words))
            words += found
    return words, starts[:-MOST_WORDS]


def _docstrings() -> list[str]:
    library = Path(sysconfig.get_path("stdlib"))
    found = []
    for path in sorted([*library.glob("*.py"), *library.glob("*/*.py")]):
        if "site-packages" in path.parts or "test" in path.parts:
            continue
        try:
            tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                found.append(ast.get_docstring(node) or "")  # noqa: PERF401 (three levels deep)
    return found
