"""Progress of a run on standard error: a live bar on a terminal, plain lines anywhere else.

Standard output is never touched: with `--json` it belongs to the report.
"""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, TextIO

LINE_SECONDS = 10.0
"""Least time between two plain lines."""
RATE_SECONDS = 30.0
"""Rows per second are taken over this long, so that a slow start is soon forgotten."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the run stands."""

    rows: int
    quarantined: int | None
    """None: the job has no quarantine."""
    filtered: int
    """Left out by filters and as duplicates."""
    fraction: float | None
    """Of the work, 0 to 1; None where it isn't known."""
    stage: str
    seconds: float
    """Since the first update."""
    rate: float
    """Rows per second, lately."""
    eta: float | None
    """Seconds to go; None where it isn't known."""


class _View(Protocol):
    def show(self, standing: Standing) -> None: ...
    def say(self, text: str) -> None: ...
    def close(self, standing: Standing | None) -> None: ...


class Progress:
    """Shows how a run goes; a context manager, made by `progress()`. Threads may update it."""

    def __init__(self, view: _View, clock: Callable[[], float] = time.monotonic) -> None:
        self._view = view
        self._clock = clock
        self._lock = threading.Lock()
        self._rows = 0
        self._quarantined: int | None = None
        self._filtered = 0
        self._fraction: float | None = None
        self._stage = ""
        self._start: float | None = None
        """Time of the first update."""
        self._begun: tuple[float, float] | None = None
        """Time and value of the first fraction: a resumed run doesn't start at 0."""
        self._recent: deque[tuple[float, int]] = deque()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._lock:
            self._view.close(None if self._start is None else self._standing(self._clock()))

    def say(self, text: str) -> None:
        """Show a line of its own, now: "planning", "starting Ray"."""
        with self._lock:
            self._view.say(text)

    def update(
        self,
        *,
        rows: int | None = None,
        quarantined: int | None = None,
        filtered: int | None = None,
        fraction: float | None = None,
        stage: str | None = None,
    ) -> None:
        """Set what is known now; what is left out stays.

        Args:
            rows: rows so far in this run, read and settled.
            quarantined: those of them in quarantine; never given where a job has none.
            filtered: those of them that filters and duplicates left out.
            fraction: of the work that is done, 0 to 1.
            stage: a word or two on what goes on.
        """
        with self._lock:
            now = self._clock()
            self._rows = self._rows if rows is None else rows
            self._quarantined = self._quarantined if quarantined is None else quarantined
            self._filtered = self._filtered if filtered is None else filtered
            self._stage = self._stage if stage is None else stage
            if fraction is not None:
                self._fraction = min(1.0, max(0.0, fraction))
                self._begun = self._begun or (now, self._fraction)
            self._start = now if self._start is None else self._start
            if not self._recent or now - self._recent[-1][0] >= 0.5:
                self._recent.append((now, self._rows))
            while len(self._recent) > 1 and now - self._recent[1][0] >= RATE_SECONDS:
                self._recent.popleft()
            self._view.show(self._standing(now))

    def _standing(self, now: float) -> Standing:
        then, rows = self._recent[0] if self._recent else (now, self._rows)
        rate = (self._rows - rows) / (now - then) if now > then else 0.0
        eta = None
        if self._fraction is not None and self._begun is not None:
            since, begun = self._begun
            if self._fraction > begun:
                eta = (now - since) * (1.0 - self._fraction) / (self._fraction - begun)
        return Standing(
            rows=self._rows,
            quarantined=self._quarantined,
            filtered=self._filtered,
            fraction=self._fraction,
            stage=self._stage,
            seconds=0.0 if self._start is None else now - self._start,
            rate=max(0.0, rate),
            eta=eta,
        )


def progress(quiet: bool = False, stream: TextIO | None = None) -> Progress:
    """The progress display that fits `stream`, standard error if left out.

    Args:
        quiet: show nothing.
        stream: where to write.
    """
    if quiet:
        return Progress(_Silent())
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        from rich.console import Console

        console = Console(file=stream)
        if not console.is_dumb_terminal:
            return Progress(_Bar(console))
    return Progress(_Lines(stream))


class _Silent:
    """Nothing at all."""

    def show(self, standing: Standing) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""

    def close(self, standing: Standing | None) -> None:
        """Nothing."""


class _Lines:
    """Plain lines for a log file or a pipe."""

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._clock = clock
        self._due = clock()
        self._gone = False

    def show(self, standing: Standing) -> None:
        """A line, unless the last one was a moment ago."""
        if self._clock() >= self._due:
            self._due = self._clock() + LINE_SECONDS
            words = [*_facts(standing), _bad(standing), standing.stage]
            self.say(", ".join(word for word in words if word))

    def say(self, text: str) -> None:
        """A line."""
        if self._gone:
            return
        try:
            self._stream.write(f"mmray: {text}\n")
            self._stream.flush()
        except (OSError, ValueError):  # whoever read our lines left; the run goes on
            self._gone = True

    def close(self, standing: Standing | None) -> None:
        """How it ended."""
        if standing is not None:
            mean = standing.rows / standing.seconds if standing.seconds > 0 else 0.0
            words = [f"{standing.rows:,} rows in {clock_time(standing.seconds)}", _rate(mean)]
            words += _left_out(standing)
            if standing.quarantined is not None:
                words.append(f"{standing.quarantined:,} quarantined")
            self.say(", ".join(words))


class _Bar:
    """A live bar; Rich redraws it several times a second from a thread of its own."""

    def __init__(self, console: Any) -> None:
        from rich.progress import BarColumn, SpinnerColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._console = console
        self._rich = RichProgress(
            SpinnerColumn(style="cyan"),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[facts]}", markup=False),
            TextColumn("{task.fields[bad]}", style="yellow", markup=False),
            console=console,
            redirect_stdout=False,
            redirect_stderr=True,
        )
        self._task = self._rich.add_task("starting", total=None, facts="", bad="")
        self._rich.start()

    def show(self, standing: Standing) -> None:
        """Move the bar."""
        self._rich.update(
            self._task,
            description=standing.stage or "running",
            total=None if standing.fraction is None else 1.0,
            completed=standing.fraction or 0.0,
            facts="  ".join(_facts(standing)),
            bad=_bad(standing),
        )

    def say(self, text: str) -> None:
        """A line above the bar, which stays in the scrollback."""
        self._console.print(text, style="dim", markup=False, highlight=False)
        self._rich.update(self._task, description=text)

    def close(self, standing: Standing | None) -> None:
        """Leave the last state on the screen."""
        if standing is None:
            self._rich.update(self._task, visible=False)
        else:
            self.show(standing)
        self._rich.stop()


def _facts(standing: Standing) -> list[str]:
    words = [f"{standing.rows:,} rows", _rate(standing.rate)]
    if standing.fraction is not None:
        words.append(f"{standing.fraction:.0%}")
    if standing.eta is not None and standing.fraction != 1.0:
        words.append(f"ETA {clock_time(standing.eta)}")
    return words + _left_out(standing)


def _left_out(standing: Standing) -> list[str]:
    return [f"{standing.filtered:,} filtered"] if standing.filtered else []


def _bad(standing: Standing) -> str:
    return f"{standing.quarantined:,} quarantined" if standing.quarantined else ""


def _rate(rate: float) -> str:
    return f"{rate:,.0f} rows/s" if rate >= 10 else f"{rate:.1f} rows/s"


def clock_time(seconds: float) -> str:
    """Seconds for people: `42s`, `3:07`, `2:03:07`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
