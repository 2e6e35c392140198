"""What workers and the driver tell each other: through an actor, so that none waits for the other.

Workers tell what a `Watch` is told, what they say to a person, and what they fail on. The driver
tells them to stop.
"""

import time
from collections.abc import Callable
from typing import Any

from mmray.train.course import Ended, Watch

Told = tuple[str, tuple[Any, ...]]
"""`failed`, `say` or the name of a `Watch`'s method, and its arguments."""

TELL_SECONDS = 0.2


def put_up() -> Any:
    """A new board, on the driver's node: other nodes may go."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    actor: Any = ray.remote(num_cpus=0)(Board)
    node = ray.get_runtime_context().get_node_id()
    return actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node, False)).remote()


class Board:
    """The actor."""

    def __init__(self) -> None:
        self._told: list[Told] = []
        self._signum = 0
        self._ended: Ended | None = None

    def tell(self, told: list[Told]) -> int:
        """Hang up what a worker tells; the signal to stop by, or 0."""
        self._told += told
        return self._signum

    def take(self) -> list[Told]:
        """Take down what was told since."""
        told, self._told = self._told, []
        return told

    def stop(self, signum: int) -> None:
        """Tell workers to stop."""
        self._signum = signum

    def stopped(self) -> bool:
        """Whether workers were told to stop."""
        return bool(self._signum)

    def end(self, ended: Ended) -> None:
        """Say how the training ended; rank 0 does."""
        self._ended = ended

    def ended(self) -> Ended | None:
        """How the training ended, if it did."""
        return self._ended


class Heard:
    """What workers told since they were started."""

    def __init__(self, watch: Watch, say: Callable[[str], None]) -> None:
        self.watch, self._say = watch, say
        self.begun = False
        self.furthest = -1
        """The last step that was done."""
        self.failure: Exception | None = None
        """The first that a worker raised of its own."""

    def take(self, told: list[Told]) -> None:
        """Pass on what a board had."""
        for name, values in told:
            if name == "failed":
                self.failure = self.failure or values[0]
            elif name == "say":
                self._say(*values)
            else:
                self.begun = True
                if name == "stepped":
                    self.furthest = values[0]
                getattr(self.watch, name)(*values)


class Telling:
    """A worker's watch: what happens goes to the board a few times a second, and no step waits."""

    def __init__(self, board: Any) -> None:
        self._board = board
        self._held: list[Told] = []
        self._sent: Any = None
        self._last = 0.0
        self._signum = 0

    def begun(self, step: int, steps: int, batch: int) -> None:
        """The loop goes on after `step` of `steps`."""
        self.tell("begun", step, steps, batch)

    def stepped(self, step: int, loss: float, told: dict[str, float]) -> None:
        """A step is done."""
        self.tell("stepped", step, loss, told)

    def measured(self, metrics: dict[str, float]) -> None:
        """An epoch is done."""
        self.tell("measured", dict(metrics))

    def say(self, words: str) -> None:
        """Words for a person."""
        self.tell("say", words)

    def signal(self) -> int:
        """The signal to stop by, or 0, as the board last said."""
        self._send(time.monotonic())
        return self._signum

    def tell(self, name: str, *values: Any) -> None:
        """What is told under any name."""
        self._held.append((name, values))

    def flush(self) -> None:
        """Bring what is held to the board, and wait for it."""
        import ray

        self._answer(wait=True)
        ray.get(self._board.tell.remote(self._held))
        self._held = []

    def _send(self, now: float) -> None:
        if self._answer() and now - self._last >= TELL_SECONDS:
            self._sent = self._board.tell.remote(self._held)
            self._held, self._last = [], now

    def _answer(self, wait: bool = False) -> bool:
        """Take up what the board answered; whether nothing is under way."""
        import ray

        if self._sent is None:
            return True
        ready, _ = ray.wait([self._sent], timeout=None if wait else 0)
        if ready:
            self._signum = ray.get(self._sent)
            self._sent = None
        return bool(ready)
