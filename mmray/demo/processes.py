"""Free ports, process identities and private files: what a server of one's own needs.

A process is named by its id and its start time together: ids come back.
"""

from __future__ import annotations

import json
import os
import random
import socket
from collections.abc import Iterable
from pathlib import Path

import psutil

from mmray.errors import RefusedError

HOST = "127.0.0.1"

# `weed` opens a gRPC port at each HTTP port + 10000. Both stay below 32768, where Linux starts to
# hand out ports for outgoing connections, so that none is taken between the check and the start.
GRPC_OFFSET = 10_000
PORTS = range(11_000, 22_000)
ROLES = ("s3", "master", "volume", "filer", "admin")


def free_ports() -> dict[str, int]:
    """A port per role of the server, each free on loopback together with its port + 10000."""
    chosen: dict[str, int] = {}
    candidates = random.SystemRandom().sample(PORTS, 200)
    for port in candidates:
        if ports_are_free([port]):
            chosen[ROLES[len(chosen)]] = port
        if len(chosen) == len(ROLES):
            return chosen
    raise RefusedError(f"no free ports between {PORTS.start} and {PORTS.stop + GRPC_OFFSET}")


def ports_are_free(ports: Iterable[int]) -> bool:
    """Whether nothing listens on `ports` of loopback, nor on each + 10000."""
    for port in ports:
        for number in (port, port + GRPC_OFFSET):
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, number))
                except OSError:
                    return False
    return True


def write_private(path: Path, value: object) -> None:
    """Writes JSON that only this user may read."""
    partial = path.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    with os.fdopen(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(value, file)
    partial.replace(path)


def identity_of(pid: int | None) -> tuple[int, float] | None:
    """Process id and start time; `None` for no process."""
    return (pid, psutil.Process(pid).create_time()) if pid else None


def find_process(identity: Iterable[float] | None) -> psutil.Process | None:
    """The process that `identity_of` named, where it still runs."""
    if identity is None:
        return None
    pid, started = identity
    try:
        process = psutil.Process(int(pid))
        return process if process.create_time() == started else None
    except psutil.NoSuchProcess:
        return None
