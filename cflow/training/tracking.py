"""The history of a run: rows in memory, in history.csv, in TensorBoard and in other trackers."""

from __future__ import annotations

import contextlib
import csv
import inspect
import os
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cflow.storage import written
from cflow.training.options import Options

__all__ = ["COLUMNS", "Boards", "Tracker", "check_boards", "check_callbacks", "is_watched"]

COLUMNS = ("step", "loss", "grad_norm", "lr", "seconds", "validation")


class Boards:
    """The trackers of accelerate in a run (``fit(log_with=...)``); each receives every row."""

    def __init__(self, accelerator: Any, options: Options) -> None:
        self.accelerator, self.options, self.started = accelerator, options, False

    def begin(self) -> None:
        """Starts a run on every tracker, with the name of the folder and the options of ``fit``."""
        if not self.options.log_with:
            return
        plain = lambda value: value if isinstance(value, str | int | float) else repr(value)
        config = {
            name: plain(value) for name, value in vars(self.options).items() if name not in ("log_with", "callbacks")
        }
        self.started = True
        self.accelerator.init_trackers("cflow" if self.options.out is None else self.options.out.name, config)

    def add(self, row: dict[str, Any]) -> None:
        """Sends a row."""
        if self.started:
            self.accelerator.log({name: value for name, value in row.items() if name != "step"}, step=row["step"])

    def close(self) -> None:
        """Ends the runs on the trackers; unlike accelerate's own end of training, it does not end the processes."""
        for each in self.accelerator.trackers if self.started else ():
            each.finish()
        self.started = False


def check_boards(log_with: tuple, out: Path | None) -> None:
    """Raises if a tracker is unknown, not installed, or needs a folder and there is none."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, get_available_trackers

    installed = sorted(str(each) for each in get_available_trackers())
    for each in log_with:
        if isinstance(each, GeneralTracker):
            continue
        if each is None or isinstance(each, type):
            given = "None" if each is None else f"the class {each.__name__}"
            raise TypeError(
                f"fit(log_with={given}): pass a name such as 'tensorboard', an "
                f"accelerate.tracking.GeneralTracker, or omit log_with."
            )
        if each not in installed:
            known = isinstance(each, str) and each in map(str, LOGGER_TYPE_TO_CLASS)
            what = f"its package is not installed; pip install {each}" if known else "accelerate has no such tracker"
            raise ValueError(
                f"fit(log_with={each!r}): {what}. Available: {', '.join(installed)}, or a custom "
                f"accelerate.tracking.GeneralTracker."
            )
        if LOGGER_TYPE_TO_CLASS[each].requires_logging_directory and out is None:
            raise ValueError(f"fit(log_with={each!r}, out=None): this tracker writes to a folder; pass out=... too.")


def check_callbacks(callbacks: Any) -> tuple:
    """Returns the callbacks as a tuple; raises a TypeError if one cannot be called with a step, a flow and a row."""
    if callable(callbacks) or not isinstance(callbacks, Iterable):
        name = getattr(callbacks, "__name__", repr(callbacks))
        raise TypeError(f"fit(callbacks={name:.60}): this is not a list; pass callbacks=[...].")
    callbacks = tuple(callbacks)
    for each in callbacks:
        name = getattr(each, "__qualname__", repr(each))
        wrong = "it cannot be called" if not callable(each) else None
        # The signature of a builtin may be unknown.
        with contextlib.suppress(ValueError):
            try:
                if wrong is None:
                    inspect.signature(each).bind(0, None, None)
            except TypeError as error:
                wrong = str(error)
        if wrong is not None:
            raise TypeError(
                f"fit(callbacks=[{name:.60}]): {wrong}; pass a function that is called as callback(step, flow, row)."
            )
    return callbacks


def is_watched() -> bool:
    """Returns whether the output of this process is shown to a person, in a terminal or in a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or "IPKernelApp" in getattr(shell, "config", ())


class Tracker:
    """Keeps the history of a run, and writes it if there is a folder.

    Rows are dicts with the keys ``step, loss, grad_norm, lr, seconds``, the metrics of the objective and, after a
    validation, ``validation`` (and ``validation_...`` for each metric). Floats are written with all digits, so a
    resumed run reads the same values.
    """

    def __init__(self, out: Path | None, resumed_from: int, boards: Boards) -> None:
        self._boards = boards
        self.history: list[dict[str, Any]] = []
        self._file = self._board = None
        self._out, self._resumed_from = out, resumed_from
        if out is not None and resumed_from > 0 and (path := out / "history.csv").exists():
            self.history = [row for row in _read(path) if row["step"] <= resumed_from]

    def begin(self, metric_names: Sequence[str] = ()) -> None:
        """Opens the files, with a column for each metric of the objective."""
        self._boards.begin()
        if self._out is None:
            return
        # The import of TensorBoard takes a second, so only runs that write import it.
        from torch.utils.tensorboard import SummaryWriter

        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / "history.csv"
        columns = (*COLUMNS, *metric_names, *(f"validation_{name}" for name in metric_names))
        with written(path) as fresh, fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(self.history)
        self._file = path.open("a", newline="")
        self._writer = csv.DictWriter(self._file, columns, restval="")
        self._board = SummaryWriter(str(self._out / "tensorboard"), purge_step=self._resumed_from + 1)

    def add(self, row: dict[str, Any]) -> None:
        """Records one row."""
        self.history.append(row)
        self._boards.add(row)
        if self._file is None:
            return
        self._writer.writerow(row)
        self._file.flush()
        for name, value in row.items():
            if name not in ("step", "seconds"):
                self._board.add_scalar(name, value, row["step"])

    def sync(self) -> None:
        """Writes the rows to disk, before a checkpoint that needs them."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self._board.flush()

    def close(self) -> None:
        """Closes the files."""
        self._boards.close()
        if self._file is not None:
            self._file.close()
            self._board.close()


def _read(path: Path) -> list[dict[str, Any]]:
    """Reads the complete rows; the last one is incomplete if the run was killed.

    Raises:
        ValueError: if the file is not a history.
    """
    number = lambda name, value: int(value) if name == "step" else float(value)
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = list(csv.DictReader(line for line in lines if line.endswith("\n")))
        rows = [{name: number(name, value) for name, value in row.items() if value} for row in rows]
        if all("step" in row for row in rows):
            return rows
        raise ValueError("a row without a step")
    except (ValueError, TypeError, csv.Error) as error:
        raise ValueError(
            f"fit(resume=True): {path} is damaged ({error}); fix this line, or delete the file and lose its rows."
        ) from None
