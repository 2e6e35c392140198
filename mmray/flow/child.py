"""A process of its own that decodes and encodes, so that whatever ends it ends nothing else.

It gets fragments through a pipe and says there when it goes on from decoding to encoding: what was
written to a pipe outlives its writer, so the stage that it ended in is known.
"""

import signal
import subprocess
import sys
import traceback
import weakref
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from mmray.errors import JobFailed, MmrayError, Stage
from mmray.flow.batch import FAULT, Answer, Timer
from mmray.flow.processes import environment
from mmray.sources.fragment import Fragment

if TYPE_CHECKING:
    from mmray.flow.stages import Stages

_SIGNALS = {each.value: each.name for each in signal.Signals}
END_SECONDS = 30.0
"""How long a process whose pipe has closed may take to end."""


class Died(Exception):
    """The process ended with something in hand; the text says how."""

    def __init__(self, stage: Stage, how: str) -> None:
        self.stage = stage
        super().__init__(how)


class Child:
    """The process, with its encoder loaded. It ends with this object.

    Raises:
        Died: it ended while the encoder was loaded.
        JobFailed: the encoder does not load.
    """

    def __init__(self, stages: "Stages") -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            process = _start(theirs)
        self._end = weakref.finalize(self, _end, self._pipe, process)
        self._told(stages)

    def ask(self, fragment: Fragment, uri: str) -> Answer:
        """Decode and encode a fragment of the shard `uri`.

        Raises:
            Died: the process ended; there is no more to be had of it.
            JobFailed: a fault in mmray.
        """
        answer: Answer = self._told((fragment, uri))
        return answer

    def _told(self, question: object) -> Any:
        stage: Stage = "decode"
        try:
            self._pipe.send(question)
            while (found := self._pipe.recv()) == "encode":
                stage = "encode"
        except (EOFError, OSError) as error:
            raise Died(stage, self._end() or "") from error
        if isinstance(found, JobFailed):
            raise found
        return found


def _start(pipe: Connection) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-X", "faulthandler", "-m", "mmray.flow.child", str(pipe.fileno())],
        stdin=subprocess.DEVNULL,
        env=environment(),
        pass_fds=[pipe.fileno()],
    )


def _end(pipe: Connection, process: "subprocess.Popen[bytes]") -> str:
    """See to it that the process ends; how it did."""
    pipe.close()
    try:
        code = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        code = process.wait()
    if code >= 0:
        return f"exit code {code}"
    name = _SIGNALS.get(-code, f"signal {-code}")
    return f"{name}, for want of memory as a rule" if name == "SIGKILL" else name


def main(pipe: Connection) -> None:
    """Answer questions until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the driver says when to stop
    try:
        stages: Stages = pipe.recv()
        encoder = stages.encoder()
        pipe.send(None)
        while (question := _next(pipe)) is not None:
            timer = Timer()
            batch = stages.decode(*question, timer)
            pipe.send("encode")
            encoded = stages.encode(batch, encoder, timer)
            pipe.send(Answer(batch, encoded, timer.take()))
    except MmrayError as error:
        pipe.send(JobFailed(str(error)))
    except Exception:  # noqa: BLE001 (a fault of ours: it must not pass for a sample that kills)
        pipe.send(JobFailed(f"{FAULT}\n{traceback.format_exc()}"))


def _next(pipe: Connection) -> tuple[Fragment, str] | None:
    try:
        question: tuple[Fragment, str] = pipe.recv()
    except (EOFError, ConnectionError):  # whoever asked is gone
        return None
    return question


if __name__ == "__main__":
    main(Connection(int(sys.argv[1])))
