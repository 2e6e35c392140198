"""Runs of the command line as a user starts them, and the account of what a store holds after."""

from __future__ import annotations

import importlib.resources
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import duckdb
import yaml
from deltalake import DeltaTable

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 240.0

Spec = dict[str, Any]


def embed_spec(source: str, store: str, **changes: Any) -> Spec:
    """A spec over WebDataset tars with the toy encoder; `changes` replace whole fields."""
    spec: Spec = {
        "job": "embed",
        "source": {"kind": "webdataset", "uri": source},
        "encoder": {"kind": "import", "model": "tests.toys:Toy"},
        "store": {"uri": store},
        "keep": ["caption", "category"],
    }
    return spec | changes


def slow(delay: float, **options: Any) -> dict[str, Any]:
    """The toy encoder, made slow enough to be killed."""
    return {
        "kind": "import",
        "model": "tests.toys:Toy",
        "options": {"delay": delay, **options},
    }


class Run:
    """One `mmray run` in a process of its own."""

    def __init__(
        self, spec: Spec, folder: Path, *arguments: str, env: Mapping[str, str] | None = None
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "spec.yaml"
        path.write_text(yaml.safe_dump(spec))
        self.log = folder / f"stderr-{time.monotonic_ns()}.txt"
        self.out = self.log.with_name(self.log.name.replace("stderr", "stdout"))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), **(env or {})}
        # Files, not pipes: Ray's processes hold what they inherit for longer than the driver lives.
        with self.log.open("wb") as log, self.out.open("wb") as out:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mmray", "run", str(path), "--json", *arguments],
                stdout=out,
                stderr=log,
                env=environment,
                cwd=ROOT,
            )

    def finish(self, code: int = 0) -> dict[str, Any]:
        """Wait for the end; the report from the last line. Fails unless it exits with `code`."""
        self.process.wait(timeout=TIMEOUT)
        errors = self.log.read_text()
        assert self.process.returncode == code, f"exit {self.process.returncode}\n{errors}"
        lines = self.out.read_text().splitlines()
        return json.loads(lines[-1]) if lines else {}

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.poll() is None

    def signal(self, number: int) -> None:
        """Send a signal to the driver alone, by its own process id."""
        self.process.send_signal(number)

    def kill(self) -> None:
        """SIGKILL to the driver alone; returns when it is gone."""
        self.process.kill()
        self.process.wait(timeout=TIMEOUT)

    def workers(self, name: str = "MapWorker") -> list[int]:
        """Process ids of this run's actors of Ray Data; with `RayTrainWorker`, of Ray Train."""
        import psutil

        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if name in " ".join(child.cmdline()):
                    found.append(child.pid)
            except psutil.Error:
                continue
        return found

    def wait_for_version(self, store: str, version: int, options: Mapping[str, str]) -> None:
        """Wait until the store has at least this version, or the run ends."""
        deadline = time.monotonic() + TIMEOUT
        while self.running and store_version(store, options) < version:
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.1)


def run(spec: Spec, folder: Path, *arguments: str, code: int = 0, **more: Any) -> dict[str, Any]:
    """One run to its end."""
    return Run(spec, folder, *arguments, **more).finish(code)


def store_version(store: str, options: Mapping[str, str]) -> int:
    """The store's version, -1 where there is none."""
    try:
        return DeltaTable(store, storage_options=dict(options)).version()
    except Exception:
        return -1


def delta_options(environment: Mapping[str, str]) -> dict[str, str]:
    """What deltalake wants for a test server's environment."""
    if not environment:
        return {}
    return {**environment, "AWS_ALLOW_HTTP": "true"}


def duck(environment: Mapping[str, str] | None = None) -> duckdb.DuckDBPyConnection:
    """DuckDB with its own Delta reader, and a secret for the test server."""
    connection = duckdb.connect()
    for extension in ("delta", "httpfs"):  # from packages: DuckDB itself would download them
        folder = importlib.resources.files(f"duckdb_extension_{extension}")
        file = folder / "extensions" / f"v{duckdb.__version__}" / f"{extension}.duckdb_extension"
        connection.execute(f"LOAD '{file}'")
    if environment:
        endpoint = environment["AWS_ENDPOINT_URL"].removeprefix("http://")
        connection.execute(
            f"CREATE SECRET s (TYPE s3, KEY_ID '{environment['AWS_ACCESS_KEY_ID']}', "
            f"SECRET '{environment['AWS_SECRET_ACCESS_KEY']}', REGION 'us-east-1', "
            f"ENDPOINT '{endpoint}', URL_STYLE 'path', USE_SSL false)"
        )
    return connection


def places(store: str, environment: Mapping[str, str] | None = None) -> list[tuple[str, str]]:
    """(source_uri, source_key) of every row of the store and of its quarantine, by DuckDB."""
    connection = duck(environment)
    rows = connection.execute(f"SELECT source_uri, source_key FROM delta_scan('{store}')")
    found = [(str(uri), str(key)) for uri, key in rows.fetchall()]
    quarantine = f"{store}/_mmray/quarantine"
    if store_version(quarantine, delta_options(environment or {})) >= 0:
        rows = connection.execute(f"SELECT source_uri, source_key FROM delta_scan('{quarantine}')")
        found += [(str(uri), str(key)) for uri, key in rows.fetchall()]
    return sorted(found)


def verify(store: str, code: int = 0) -> dict[str, Any]:
    """`mmray store verify`; fails unless it exits with `code`."""
    done = subprocess.run(
        [sys.executable, "-m", "mmray", "store", "verify", store, "--json"],
        capture_output=True,
        timeout=TIMEOUT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == code, done.stderr.decode() + done.stdout.decode()
    result: dict[str, Any] = json.loads(done.stdout.decode().splitlines()[-1])
    return result
