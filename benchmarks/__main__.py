"""`python -m benchmarks [NAME...]`: figures as JSON lines, and a table on standard error."""

from __future__ import annotations

import argparse
import importlib
import os
import time

from benchmarks.measure import Figure, Options, line, machine, say

NAMES = (
    "nearfree",
    "audio",
    "video",
    "rows",
    "images",
    "captions",
    "plan",
    "memory",
    "rerun",
    "resume",
    "index",
    "train",
)


def main() -> None:
    """Run the named benchmarks, all when none is named."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("--small", action="store_true", help="only see that everything runs")
    parser.add_argument("--pairs", type=int, default=3, help="runs of each side (3)")
    given = parser.parse_args()
    for name in given.names:
        if name not in NAMES:
            parser.error(f"no benchmark {name!r}; there are {', '.join(NAMES)}")
    options = Options(small=given.small, pairs=1 if given.small else given.pairs)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    found: list[Figure] = []
    for name in given.names or NAMES:
        say(f"{name}:")
        start = time.monotonic()
        for figure in importlib.import_module(f"benchmarks.{name}").figures(options):
            found.append(figure)
            print(line(figure), flush=True)
        say(f"  {time.monotonic() - start:.0f} s")
    say(f"\n{machine()}\n")
    for figure in found:
        verdict = "" if figure.met else "  MISSED"
        say(
            f"{figure.name:68} {figure.value:9.4g} {figure.unit:8}"
            f"{figure.sign} {figure.target:g}{verdict}"
        )


if __name__ == "__main__":
    main()
