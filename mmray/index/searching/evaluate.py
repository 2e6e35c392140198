"""A condition evaluated in a process of its own, which ends when its time is over.

DuckDB heeds an interrupt between some rows, while one row alone may take it for ever: a `like` of a
few wildcards tries each way to match. So the process is ended, from within by its own alarm.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from mmray.flow.processes import environment

if TYPE_CHECKING:
    import duckdb
    import numpy as np
    import pyarrow as pa

MEMORY = "1GiB"
_FOUND, _REFUSED = b"\0", b"\1"
"""How an answer begins: row numbers or DuckDB's words follow."""


class Refused(Exception):
    """DuckDB's words, or how the process ended."""


def evaluate(
    where: str, schema: "pa.Schema", batches: "Iterator[pa.RecordBatch]", seconds: float
) -> "np.ndarray":
    """int64 [n]: of the rows that meet `where`, what the last column says, in any order.

    Args:
        where: an expression that was taken apart and found harmless.
        schema: the columns that it names, then one of int64.
        batches: the rows.
        seconds: time that it may take.

    Raises:
        TimeoutError: it takes longer.
        Refused: it can't be evaluated.
    """
    import numpy as np
    import pyarrow as pa

    process = _start(seconds)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        with suppress(BrokenPipeError), process.stdin as out:  # it may end before it has read all
            out.write(json.dumps(where).encode() + b"\n")
            with pa.ipc.new_stream(out, schema) as stream:
                for batch in batches:
                    stream.write_batch(batch)
        answer, code = process.stdout.read(), process.wait()
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    if code == -signal.SIGALRM:
        raise TimeoutError
    if code:
        raise Refused(f"can't be evaluated: its process ended with exit code {code}")
    if answer[:1] == _REFUSED:
        raise Refused(answer[1:].decode())
    return np.frombuffer(answer, np.int64, offset=1)


def connection() -> "duckdb.DuckDBPyConnection":
    """DuckDB without files, extensions and settings."""
    import duckdb

    return duckdb.connect(
        ":memory:",
        config={
            "enable_external_access": "false",
            "autoinstall_known_extensions": "false",
            "autoload_known_extensions": "false",
            "memory_limit": MEMORY,
            "lock_configuration": "true",
        },
    )


def _start(seconds: float) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "mmray.index.searching.evaluate", str(seconds)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    )


def main(seconds: float) -> None:
    """Read a condition and rows from standard input, answer on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: who asked ends this process
    modules: dict[str, object] = sys.modules  # type: ignore[assignment]
    modules["pandas"] = None  # DuckDB imports it where it is, which takes longer than all else
    import duckdb
    import numpy as np
    import pyarrow as pa

    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    where = json.loads(sys.stdin.buffer.readline())
    rows, database = pa.ipc.open_stream(sys.stdin.buffer), connection()
    number = rows.schema.names[-1]
    try:
        condition = duckdb.SQLExpression(where)
        found = database.from_arrow(rows).filter(condition).project(f'"{number}"')
        answer = _FOUND + np.asarray(found.fetchnumpy()[number], np.int64).tobytes()
    except duckdb.Error as error:
        answer = _REFUSED + str(error).encode()
    sys.stdout.buffer.write(answer)
    sys.stdout.buffer.flush()
    os._exit(0)  # a thread of DuckDB's may be reading rows still


if __name__ == "__main__":
    main(float(sys.argv[1]))
