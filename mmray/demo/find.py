"""What the demo looks for in its indexes, by the command that a person would type.

Words have none of the caption that they should find; a picture has to find itself; a spoken
description is another way to ask for its picture.
"""

import json
import subprocess
import sys
from collections.abc import Container, Sequence
from dataclasses import dataclass
from pathlib import Path

from mmray.demo.stamps import Picture
from mmray.errors import MmrayError

HITS = 6
WORDS = "a musical instrument with strings"
PICTURE = "animals/birds/penguin"
"""The key of a stamp."""


@dataclass(frozen=True, slots=True)
class Hit:
    """A row that was found."""

    score: float
    key: str
    caption: str

    def __str__(self) -> str:
        return f"{self.score:.3f}  {self.caption or self.key}"


@dataclass(frozen=True, slots=True)
class Question:
    """What one search asks with."""

    by: str
    """`words`, `a picture` or `a spoken word`."""
    option: str
    """`--text`, `--image` or `--audio`."""
    value: str

    def typed(self, index: str) -> str:
        """The command that a person would type; of a file its name alone."""
        value = f'"{self.value}"' if self.option == "--text" else Path(self.value).name
        return f"mmray search {index} {self.option} {value} -k {HITS}"


@dataclass(frozen=True, slots=True)
class Questions:
    """What to look for."""

    words: str
    picture: Picture
    spoken: Picture | None
    """A picture whose sound is asked with."""


def questions(pictures: Sequence[Picture], found: Container[str]) -> Questions:
    """Words, a picture and a sound to look for: those that suit the stamps, else of a picture that
    the index has.

    `found` are the keys that it has. Raises `MmrayError` where none of the pictures is among them.
    """
    there = [each for each in pictures if each.key in found]
    if not there:
        raise MmrayError("the index has none of the pictures")
    stamp = next((each for each in there if each.key == PICTURE), None)
    if stamp is not None:
        return Questions(WORDS, stamp, stamp if stamp.sound else None)
    told = next((each for each in there if each.caption), there[0])
    spoken = next((each for each in there if each.sound), None)
    return Questions(told.caption or told.path.stem, told, spoken)


def ask(index: str, question: Question, page: Path) -> list[Hit]:
    """`mmray search` in a process of its own; writes the page of hits.

    Raises `MmrayError` where the command fails.
    """
    # Joined by `=`, so that words may begin with a dash.
    asked = [
        index,
        f"{question.option}={question.value}",
        f"-k{HITS}",
        "--json",
        "--html",
        str(page),
    ]
    command = [sys.executable, "-m", "mmray", "search", *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        words = (done.stderr or done.stdout).strip().splitlines() or ["it said nothing"]
        raise MmrayError(f"`mmray search` ended with exit code {done.returncode}: {words[-1]}")
    hits = json.loads(done.stdout.splitlines()[-1])["hits"]
    return [Hit(each["score"], each["source_key"], each["caption"] or "") for each in hits]
