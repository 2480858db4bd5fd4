"""What a run records: rows in memory, in history.csv and in TensorBoard."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

__all__ = ["COLUMNS", "Tracker"]

COLUMNS = ("step", "loss", "grad_norm", "lr", "seconds", "validation")


class Tracker:
    """Keeps the history of a run; writes it only where a folder is given.

    Rows are dicts with the keys ``step, loss, grad_norm, lr, seconds``, the names that the objective logs and, where
    it was measured, ``validation`` (and ``validation_...`` of what is logged). Floats are written in full, so that a
    resumed run reads back what it had.
    """

    def __init__(self, out: Path | None, resumed_from: int) -> None:
        self.history: list[dict[str, Any]] = []
        self._file = self._board = None
        self._out, self._resumed_from = out, resumed_from
        if out is not None and resumed_from > 0 and (path := out / "history.csv").exists():
            self.history = [row for row in _read(path) if row["step"] <= resumed_from]

    def begin(self, metric_names: Sequence[str] = ()) -> None:
        """Opens the files, with columns for what the objective logs."""
        if self._out is None:
            return
        # TensorBoard takes a second to import: only runs that write pay for it.
        from torch.utils.tensorboard import SummaryWriter

        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / "history.csv"
        columns = (*COLUMNS, *metric_names, *(f"validation_{name}" for name in metric_names))
        # Written anew and put in place in one move: a kill leaves the old file or the new one.
        fresh = path.with_suffix(".tmp")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.history)
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, path)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._board = SummaryWriter(str(self._out / "tensorboard"), purge_step=self._resumed_from + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Records one row."""
        self.history.append(row)
        if self._file is None:
            return
        self._writer.writerow(row)
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "seconds"):
                self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Puts the rows on the disk, before a checkpoint relies on them."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        if self._file is not None:
            self._file.close()
            self._board.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """Reads the rows that are whole: a kill may have cut the last one short."""
    lines = path.read_text().splitlines(keepends=True)
    rows = []
    for row in csv.DictReader(line for line in lines if line.endswith("\n")):
        rows.append({name: int(value) if name == "step" else float(value) for name, value in row.items() if value})
    return rows
