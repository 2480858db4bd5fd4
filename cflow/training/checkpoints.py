"""Checkpoints: written whole or not at all, verified before they are loaded, the newest few kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import zlib
from pathlib import Path
from typing import Any

__all__ = ["Checkpoints"]

_NAME = re.compile(r"step-(\d+)")
_NOTE = "cflow.json"


class Checkpoints:
    """The checkpoints of one run, in ``out/checkpoints/step-000500/``.

    A checkpoint is accelerate's state (weights, optimizer, moving average) and a note with the step, the settings and
    the size and CRC-32 of every file. Global random states are not part of it: all draws are by counter.
    """

    def __init__(self, out: Path, accelerator: Any, keep: int) -> None:
        self.folder, self.accelerator, self.keep = out / "checkpoints", accelerator, keep

    def steps(self) -> list[int]:
        """Lists the steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def path(self, step: int) -> Path:
        """Gives the folder of a step's checkpoint."""
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, note: dict[str, Any]) -> Path:
        """Writes a checkpoint into a temporary folder, brings it to the disk and moves it into place."""
        final, part = self.path(step), self.folder / f"part-{step:06d}"
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir(parents=True)
        self.accelerator.wait_for_everyone()
        # Plain torch files: tied weights and extra state go through them unchanged.
        self.accelerator.save_state(str(part), safe_serialization=False)
        self.accelerator.wait_for_everyone()
        if main:
            for file in part.glob("random_states_*.pkl"):
                file.unlink()
            files = {str(file.relative_to(part)): _seal(file) for file in sorted(part.rglob("*")) if file.is_file()}
            (part / _NOTE).write_text(json.dumps({**note, "step": step, "files": files}, indent=1))
            _seal(part / _NOTE)
            _sync_folder(part)
            # The same step again (an interrupted run that ended on it): the new one replaces the old.
            shutil.rmtree(final, ignore_errors=True)
            os.replace(part, final)
            _sync_folder(self.folder)
            for old in self.steps()[: -self.keep]:
                shutil.rmtree(self.path(old))
        self.accelerator.wait_for_everyone()
        return final

    def read_note(self, step: int) -> dict[str, Any]:
        """Verifies a checkpoint's files and gives its note.

        Raises:
            ValueError: if a file is missing, cut short or changed; the message says which folder to delete.
        """
        folder = self.path(step)
        try:
            note = json.loads((folder / _NOTE).read_text())
            damaged = [name for name, seal in note["files"].items() if _seal(folder / name, sync=False) != seal]
        except (OSError, ValueError, KeyError) as error:
            damaged = [getattr(error, "filename", None) or _NOTE]
        if damaged:
            older = [each for each in self.steps() if each < step]
            then = f"the run then resumes from step {older[-1]}" if older else "the run then starts anew"
            raise ValueError(
                f"fit(resume=True): the checkpoint {folder} is damaged ({Path(damaged[0]).name} is missing, cut short "
                f"or changed), so training cannot go on from it; delete that folder, {then}."
            )
        return note

    def load(self, step: int) -> None:
        """Loads weights, optimizer and moving average."""
        self.accelerator.load_state(str(self.path(step)))


def check_settings(note: dict[str, Any], settings: dict[str, Any], folder: Path) -> None:
    """Raises where a run would not repeat the one that wrote a checkpoint, naming the setting."""
    before = note["settings"]
    for name in [*settings, *(name for name in before if name not in settings)]:
        if before.get(name) != settings.get(name):
            raise ValueError(
                f"fit(resume=True): {name} is {settings.get(name)!r} now and was {before.get(name)!r} in {folder}, so "
                f"the run cannot go on as it began; pass the former value, or another folder as out."
            )


def _seal(file: Path, sync: bool = True) -> list[int]:
    """Brings a file to the disk and gives its size and checksum."""
    size = checksum = 0
    with file.open("rb") as opened:
        while block := opened.read(1 << 22):
            size, checksum = size + len(block), zlib.crc32(block, checksum)
        if sync:
            os.fsync(opened.fileno())
    return [size, checksum]


def _sync_folder(folder: Path) -> None:
    """Brings a folder's entries to the disk (where the system lets folders be opened)."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
