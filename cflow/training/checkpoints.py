"""Checkpoints: written completely or not at all, and verified before they are loaded; the newest few are kept."""

from __future__ import annotations

import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cflow.io import FILE
from cflow.registry import uncompiled_name
from cflow.storage import read_json, seal, sync_folder, write_json
from cflow.training.best import Best
from cflow.training.differences import first_difference
from cflow.training.ema import Average
from cflow.training.processes import Processes

__all__ = ["Checkpoints", "State", "check_settings"]

_NAME = re.compile(r"step-(\d+)")
_NOTE = "cflow.json"


class Checkpoints:
    """The checkpoints of one run, in ``out/checkpoints/step-000500/``.

    Each process writes its part with ``torch.distributed.checkpoint``: weights, optimizer and moving average, by name,
    so that another number of processes, sharded or not, can read them. The folder also has the flow as it would be at
    the end of the run, for ``cflow.load``, and a note with the step, the settings, and size and CRC-32 of every file.
    Global random states are not saved, since all draws are by counter.
    """

    def __init__(self, out: Path, processes: Processes, keep: int) -> None:
        self.folder, self.processes, self.keep = out / "checkpoints", processes, keep

    def steps(self) -> list[int]:
        """Returns the steps of the complete checkpoints, oldest first."""
        if not self.folder.is_dir():
            return []
        found = [_NAME.fullmatch(entry.name) for entry in self.folder.iterdir() if entry.is_dir()]
        return sorted(int(match[1]) for match in found if match)

    def clear(self) -> None:
        """Removes incomplete checkpoints of a killed run."""
        for each in self.folder.glob("part-*"):
            shutil.rmtree(each)

    def path(self, step: int) -> Path:
        """Returns the folder of the checkpoint of a step."""
        return self.folder / f"step-{step:06d}"

    def save(self, step: int, note: dict[str, Any], state: State, write_flow: Callable[[Path], None]) -> None:
        """Writes a checkpoint into a temporary folder on disk, then renames the folder.

        All processes call ``write_flow(file)``; only the main one writes.
        """
        import torch.distributed.checkpoint as storage

        part = self.folder / f"part-{step:06d}"
        self.processes.from_main(lambda: _clear(part))
        with self.processes.together(), _quiet():
            storage.save(state.tensors(), checkpoint_id=part, process_group=self.processes.group)
        write_flow(part / FILE)
        self.processes.from_main(lambda: self._seal(step, part, note))

    def _seal(self, step: int, part: Path, note: dict[str, Any]) -> None:
        files = {str(file.relative_to(part)): seal(file) for file in sorted(part.rglob("*")) if file.is_file()}
        write_json(part / _NOTE, {**note, "step": step, "files": files})
        os.replace(part, self.path(step))
        sync_folder(self.folder)
        for old in self.steps()[: -self.keep]:
            gone = self.folder / f"part-{old:06d}"  # so a kill leaves no partial checkpoint under its name
            os.replace(self.path(old), gone)
            shutil.rmtree(gone)

    def read_note(self, step: int) -> dict[str, Any]:
        """Verifies the files of a checkpoint and returns its note.

        Raises:
            ValueError: if a file is missing, incomplete or changed; the message states which folder to delete.
        """
        folder = self.path(step)
        try:
            note = read_json(folder / _NOTE)
            damaged = [name for name, sealed in note["files"].items() if seal(folder / name, sync=False) != sealed]
        except (OSError, ValueError, KeyError, AttributeError) as error:
            damaged = [getattr(error, "filename", None) or _NOTE]
        if damaged:
            older = [each for each in self.steps() if each < step]
            then = f"to resume from step {older[-1]}" if older else "to start from step 0"
            raise ValueError(
                f"fit(resume=True): the checkpoint {folder} is damaged ({Path(damaged[0]).name} is missing or "
                f"changed); delete this folder {then}."
            )
        return note

    def load(self, step: int, state: State) -> None:
        """Loads weights, optimizer and moving average, also from another number of processes."""
        import torch.distributed.checkpoint as storage

        held = set(storage.FileSystemReader(self.path(step)).read_metadata().state_dict_metadata)
        tensors = state.tensors(held)
        with _quiet():
            storage.load(tensors, checkpoint_id=self.path(step), process_group=self.processes.group)
        state.take(tensors)


class State:
    """The state of a run in a checkpoint, by stable names: ``model``, ``optimizer``, ``average`` and ``best``."""

    def __init__(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, best: Best | None = None
    ) -> None:
        self.module, self.optimizer = module, optimizer
        self.extra = {name: part for name, part in (("average", average), ("best", best)) if part is not None}

    def tensors(self, held: set[str] | None = None) -> dict[str, Any]:
        """Returns the tensors in memory; of the optimizer's only those that a checkpoint has (``held``)."""
        import torch.distributed.checkpoint.state_dict as by_name

        self.options = by_name.StateDictOptions(flatten_optimizer_state_dict=True)
        self.every = by_name.get_optimizer_state_dict(self.module, self.optimizer, options=self.options)
        # Learning rates and the like are arguments of fit; parameters without a gradient so far have no state.
        states = {
            name: value
            for name, value in self.every.items()
            if name.startswith("state.") and (held is None or f"optimizer.{name}" in held)
        }
        tensors = {"model": by_name.get_model_state_dict(self.module), "optimizer": states}
        return tensors | {name: part.state_dict() for name, part in self.extra.items()}

    def take(self, tensors: dict[str, Any]) -> None:
        """Restores the state from tensors that were loaded into :meth:`tensors`."""
        import torch.distributed.checkpoint.state_dict as by_name

        by_name.set_model_state_dict(self.module, tensors["model"])
        whole = {**self.every, **tensors["optimizer"]}
        by_name.set_optimizer_state_dict(self.module, self.optimizer, whole, options=self.options)
        for name, each in self.module.named_parameters():
            name = uncompiled_name(name).removeprefix("module.")
            if each in self.optimizer.state and f"state.{name}.step" not in tensors["optimizer"]:
                del self.optimizer.state[each]
        for name, part in self.extra.items():
            part.load_state_dict(tensors[name])


def check_settings(note: dict[str, Any], settings: dict[str, Any], folder: Path, several: bool) -> None:
    """Raises if a setting differs from that of the run that wrote a checkpoint."""
    before = note["settings"]
    for name in [*settings, *(name for name in before if name not in settings)]:
        if before.get(name) != settings.get(name):
            where, now, then = first_difference(name, settings.get(name), before.get(name))
            what = f"{name} (of all processes)" if name == "batch_size" and several else where
            if name == "data content":  # a checksum, of no use in a message
                raise ValueError(
                    f"fit(resume=True): the data content has changed since {folder} (values, rows or their order); "
                    f"pass the former data, or another folder (out=...)."
                )
            cause = " (warmup may follow from steps=...)" if name == "schedule" else ""
            raise ValueError(
                f"fit(resume=True): {what} is {now!r} now and was {then!r} in {folder}{cause}; pass the former value, "
                f"or another folder (out=...)."
            )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences torch's warning that there is only one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
        yield


def _clear(part: Path) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
