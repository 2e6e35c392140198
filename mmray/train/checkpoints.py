"""Checkpoints on disk or object storage: whole or not there, written beside training.

    <output>/checkpoint.json                  which step is the last, and which the best
    <output>/checkpoints/step-00000120/
      model/                                  an encoder: config, safetensors, tokenizers
      course.json, course.safetensors         optimizer, position, history (random numbers are a
                                              function of seed, step, sample and rank)
      manifest.json                           every file's size and SHA-256; written last

A folder without a manifest is none. A file that isn't as the manifest says makes its checkpoint a
torn one: it is told, and the one before is taken.
"""

import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mmray.errors import JobFailed, RefusedError
from mmray.models.joint import FROZEN
from mmray.storage import Storage, blobs, join
from mmray.storage.blobs import File

FORMAT = 1
POINTER = "checkpoint.json"
FOLDER = "checkpoints"
MODEL = "model"
COURSE = "course"
BEFORE = 2
"""The last so many are kept, and the best."""

_MANIFEST = re.compile(rf"{FOLDER}/step-(\d{{8}})/manifest\.json$")


@dataclass(frozen=True, slots=True)
class Saved:
    """A checkpoint that was written as a whole."""

    step: int
    files: tuple[File, ...]

    @property
    def path(self) -> str:
        """Below the output."""
        return path_of(self.step)


def path_of(step: int) -> str:
    """Folder of a step's checkpoint, below the output."""
    return f"{FOLDER}/step-{step:08d}"


class Checkpoints:
    """The checkpoints of one output. Only one process may write at a time."""

    def __init__(self, storage: Storage, output: str) -> None:
        self._storage, self._output = storage, output.rstrip("/")
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._under_way: Future[None] | None = None
        self._last: Saved | None = None

    def found(self) -> list[Saved]:
        """Those with a manifest, newest first."""
        saved = []
        for item in self._storage.list(join(self._output, FOLDER)):
            match = _MANIFEST.search(item.uri)
            if match:
                with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
                    told = json.loads(self._storage.read_bytes(item.uri))
                    listed = tuple(File(**each) for each in told["files"])
                    saved.append(Saved(int(match[1]), listed))
        return sorted(saved, key=lambda each: -each.step)

    def newest(self, say: Callable[[str], None], into: Path) -> tuple[Saved, Path] | None:
        """The newest whole one and a local folder of it, laid out in `into` where it's remote.

        Torn ones are told and passed over.
        """
        for saved in self.found():
            try:
                folder = self.fetch(saved, into)
            except RefusedError as error:
                say(f"passing over {saved.path}: {error}")
            else:
                self._last = saved
                return saved, folder
        return None

    def fetch(self, saved: Saved, into: Path) -> Path:
        """A checkpoint as a local folder, every file checked. Raises RefusedError."""
        folder = into / f"step-{saved.step:08d}"
        own = [replace(each, path=each.path.removeprefix(saved.path + "/")) for each in saved.files]
        blobs.lay_out(self._storage, join(self._output, saved.path), own, folder)
        return folder

    def save(self, step: int, write: Callable[[Path, bool], None], best: int | None) -> None:
        """Write a checkpoint in the background, after the one before is done.

        Args:
            step: steps that are done.
            write: fills a folder; must use copies of what training changes. It may leave out the
                files of frozen weights where it's told so: they are there from the one before.
            best: the step of the best checkpoint, this one or an earlier one.
        """
        self.wait()
        self._under_way = self._pool.submit(self._save, step, write, best)

    def wait(self) -> None:
        """Wait for what is being written, and raise what went wrong with it."""
        under_way, self._under_way = self._under_way, None
        if under_way is not None:
            under_way.result()

    def finish(self, step: int, best: int | None) -> None:
        """Mark the training as done after `step`; the pointer of a run that was killed as it wrote
        its last checkpoint still names the one before."""
        self.wait()
        kept = path_of(step if best is None else best)
        self._point({"last": path_of(step), "best": kept, "done": True})

    def pointer(self) -> dict[str, Any] | None:
        """`checkpoint.json`: `last` and `best` are paths of checkpoints, `done` says if training
        ended. None where there's none."""
        return read_pointer(self._storage, self._output)

    def _save(self, step: int, write: Callable[[Path, bool], None], best: int | None) -> None:
        self._require_under_way()
        path = path_of(step)
        again = self._frozen(path)
        with blobs.scratch() as folder:
            write(folder, bool(again))
            written = [
                blobs.put(self._storage, local, self._output, f"{path}/{local.relative_to(folder)}")
                for local in sorted(folder.rglob("*"))
                if local.is_file()
            ]
        found = {each.path: each for each in again + written}.values()
        self._last = Saved(step, tuple(found))
        manifest = {"format": FORMAT, "step": step, "files": [asdict(each) for each in found]}
        place = join(self._output, path, "manifest.json")
        self._storage.write_bytes(place, json.dumps(manifest).encode())
        kept = path_of(step if best is None else best)
        self._require_under_way()
        self._point({"last": path, "best": kept, "done": False})
        self._prune(step, kept)

    def _require_under_way(self) -> None:
        """Raises JobFailed where another run has ended this training: what it learned stays."""
        if (self.pointer() or {}).get("done"):
            raise JobFailed(f"another run has ended the training of {self._output} meanwhile")

    def _frozen(self, path: str) -> list[File]:
        """The files of frozen weights, copied from the checkpoint before; none where that can't be
        done. A large model with small adapters would be written anew at each step otherwise."""
        known = self.found() if self._last is None else [self._last]
        last = next((each for each in known if each.path != path), None)
        if last is None:
            return []
        names = {f"{last.path}/{MODEL}/{name}": name for name in FROZEN}
        there = [file for file in last.files if file.path in names]
        if len(there) < len(FROZEN):
            return []
        try:
            return [
                blobs.copy(self._storage, self._output, file, f"{path}/{MODEL}/{names[file.path]}")
                for file in there
            ]
        except RefusedError:  # it was torn since
            return []

    def _point(self, told: dict[str, Any]) -> None:
        data = json.dumps({"format": FORMAT, **told}, indent=2).encode()
        self._storage.write_bytes(join(self._output, POINTER), data)

    def _prune(self, step: int, best: str) -> None:
        """Remove earlier ones, manifests first, so that none is ever whole in name only. Later ones
        are torn, or another run's that is ahead."""
        before = [each.step for each in self.found() if each.step <= step][:BEFORE]
        kept = {best, *(path_of(each) for each in before)}
        gone: dict[str, list[str]] = {}
        root = self._storage.normalise(join(self._output, FOLDER))
        for item in self._storage.list(root):
            name = f"{FOLDER}/{item.uri.removeprefix(root).lstrip('/').partition('/')[0]}"
            if name not in kept and name < path_of(step):
                gone.setdefault(name, []).append(item.uri)
        for name, uris in gone.items():
            for uri in sorted(uris, key=lambda each: not each.endswith("/manifest.json")):
                self._storage.delete(uri)
            local = Path(root).parent / name
            if not root.startswith("s3://") and local.is_dir():
                shutil.rmtree(local, ignore_errors=True)


def read_pointer(storage: Storage, output: str) -> dict[str, Any] | None:
    """The `checkpoint.json` of an output, if there is one. Raises RefusedError for a broken one."""
    try:
        found = json.loads(storage.read_bytes(join(output, POINTER)))
        if not isinstance(found, dict):
            raise ValueError("no mapping")
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise RefusedError(f"{join(output, POINTER)} is broken: {error}") from error
    return found
