"""Progress: plain lines to a pipe, a bar on a terminal, and never a word on standard output."""

import io
import subprocess
import sys
import threading

import pytest

from mmray.report.progress import Progress, Standing, _Lines, clock_time, progress


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Seen:
    """A view that remembers."""

    def __init__(self) -> None:
        self.standings: list[Standing] = []

    def show(self, standing: Standing) -> None:
        self.standings.append(standing)

    def say(self, text: str) -> None:
        pass

    def close(self, standing: Standing | None) -> None:
        pass


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_come_at_most_every_ten_seconds_and_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    with Progress(_Lines(stream, clock), clock) as show:
        show.say("planning")
        for second in range(25):
            clock.now = 100.0 + second
            show.update(rows=second * 100, quarantined=3, fraction=second / 50, stage="encoding")
    assert stream.getvalue().splitlines() == [
        "mmray: planning",
        "mmray: 0 rows, 0.0 rows/s, 0%, 3 quarantined, encoding",
        "mmray: 1,000 rows, 100 rows/s, 20%, ETA 40s, 3 quarantined, encoding",
        "mmray: 2,000 rows, 100 rows/s, 40%, ETA 30s, 3 quarantined, encoding",
        "mmray: 2,400 rows in 24s, 100 rows/s, 3 quarantined",
    ]


def test_only_a_job_that_has_a_quarantine_speaks_of_it() -> None:
    for quarantined, words in ((None, ""), (0, ", 0 quarantined"), (3, ", 3 quarantined")):
        stream, clock = io.StringIO(), Clock()
        with Progress(_Lines(stream, clock), clock) as show:
            show.update(rows=0)
            clock.now += 2
            show.update(rows=40, filtered=5, quarantined=quarantined)
        last = stream.getvalue().splitlines()[-1]
        assert last == f"mmray: 40 rows in 2s, 20 rows/s, 5 filtered{words}"


def test_a_run_without_updates_ends_without_a_line() -> None:
    stream = io.StringIO()
    with progress(stream=stream) as show:
        show.say("nothing to do")
    assert stream.getvalue() == "mmray: nothing to do\n"


def test_eta_counts_from_where_a_resumed_run_began() -> None:
    seen, clock = Seen(), Clock()
    with Progress(seen, clock) as show:
        show.update(rows=0)
        clock.now += 50  # starting up takes its time and says nothing of the speed
        show.update(fraction=0.8)
        clock.now += 10
        show.update(fraction=0.9)
    assert [each.eta for each in seen.standings[:2]] == [None, None]
    assert seen.standings[-1].eta == pytest.approx(10.0)


def test_the_rate_forgets_a_slow_start() -> None:
    seen, clock = Seen(), Clock()
    with Progress(seen, clock) as show:
        for second in range(200):
            clock.now += 1
            show.update(rows=max(0, second - 100) * 10)
    assert seen.standings[-1].rate == pytest.approx(10.0)
    assert len(show._recent) < 70


def test_what_is_left_out_stays_and_fractions_are_held_in_range() -> None:
    seen = Seen()
    with Progress(seen) as show:
        show.update(rows=5, quarantined=1, stage="reading")
        show.update(fraction=1.7)
    last = seen.standings[-1]
    assert (last.rows, last.quarantined, last.stage, last.fraction) == (5, 1, "reading", 1.0)


def test_a_terminal_gets_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    stream, out = Terminal(), sys.stdout
    with progress(stream=stream) as show:
        show.say("[red]planning")
        show.update(rows=1234, quarantined=7, fraction=0.5, stage="encoding [x]")
        assert sys.stdout is out
        print("the caller's own")
    assert "[red]planning" in stream.getvalue()
    for words in ("1,234 rows", "50%", "7 quarantined", "encoding [x]"):
        assert words in stream.getvalue()
    assert capsys.readouterr().out == "the caller's own\n"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    stream = Terminal()
    with progress(stream=stream) as show:
        show.say("planning")
    assert stream.getvalue() == "mmray: planning\n"


def test_quiet_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress(quiet=True) as show:
        show.say("planning")
        show.update(rows=1)
    assert capsys.readouterr() == ("", "")


def test_an_error_leaves_the_terminal_in_order() -> None:
    stream = Terminal()
    error, before = KeyError(), sys.stderr

    def fail() -> None:
        with progress(stream=stream) as show:
            show.update(rows=1)
            raise error

    with pytest.raises(KeyError):
        fail()
    assert sys.stderr is before
    assert stream.getvalue().rstrip().endswith("\x1b[?25h")  # the cursor is back


def test_a_reader_that_left_does_not_end_the_run() -> None:
    class Broken(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with progress(stream=Broken()) as show:
        show.say("planning")
        show.update(rows=1)


def test_threads_may_update() -> None:
    seen = Seen()
    with Progress(seen) as show:

        def work() -> None:
            for n in range(200):
                show.update(rows=n)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(seen.standings) == 800


def test_a_pipe_gets_lines_on_standard_error_only() -> None:
    code = (
        "import sys\n"
        "from mmray.report.progress import progress\n"
        "with progress() as show:\n"
        "    show.say('planning'); show.update(rows=3, fraction=1.0, stage='done')\n"
        "assert 'rich' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert "\x1b" not in done.stderr
    assert [line.split()[1] for line in done.stderr.splitlines()] == ["planning", "3", "3"]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "0s"), (42, "42s"), (187, "3:07"), (7387, "2:03:07")]
)
def test_clock_time(seconds: float, words: str) -> None:
    assert clock_time(seconds) == words
