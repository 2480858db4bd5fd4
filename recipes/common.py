"""What the recipes share, and no more: speaking once, a folder for every data set, the end of a run.

This module is not a recipe. Nothing of data, flows or training is here; see the recipes.
"""

import csv
import json
import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch

from cflow import training

# Under a launcher every process runs the recipe: all of them train, the main one prints, draws and measures.
MAIN = training.is_main()
NOTE = "data.json"  # in the folder of a run: which data it is of


def say(*what) -> None:
    """Prints, once however many processes there are."""
    if MAIN:
        print(*what, flush=True)


def plain(value: float, digits: int = 17) -> str:
    """Returns a number as a table would have it: whole ones without a point, others as short as they can be."""
    if value == round(value) and abs(value) < 1e15:
        return str(round(value))
    return repr(value) if digits >= 17 else f"{value:.{digits}g}"


def digits_of(table: torch.Tensor) -> list[int]:
    """Counts the significant digits that show six digits of the spread of each column of ``[N, D]``; at most 17."""
    offset = table.abs().max(0).values / table.std(0, correction=0)
    # A constant column has no spread, and shows every digit; a column of zeros needs none.
    offset = offset.nan_to_num(nan=1.0, posinf=1e11).clamp(1.0, 1e11)
    return [6 + math.floor(math.log10(each)) for each in offset.tolist()]


def write_table(file: Path, names: list[str], rows: Iterable[Sequence[str]]) -> None:
    """Writes a .csv file with a line of names."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(names)
        writer.writerows(rows)


def run_folder(out: Path | None, name: str, data: Path | str, resume: bool = False) -> Path:
    """Chooses the folder of a run, so that two data sets never share one.

    Args:
        out: the option --out; the folder itself, where it is given.
        name: a short name of recipe and data. The folder is ``runs/<name>``, or ``runs/<name>-2`` and so on where the
            ones before belong to other data: another file of the same name, say.
        data: the file or folder that the data are read from, or a word for data that are generated.
        resume: the option --resume.

    Raises:
        ValueError: if ``out`` holds a run of other data, or there is no run of these data to resume.
    """
    own = _place(data)
    if out is not None:
        if _data_of(out) not in (None, own) and not resume:
            raise ValueError(f"--out {out}: this folder holds a run of other data ({_data_of(out)}); choose another.")
        return out
    first = found = Path("runs") / name
    number = 1
    while _data_of(found) not in (None, own):
        number += 1
        found = first.with_name(f"{name}-{number}")
    if number > 1 and _data_of(found) is None:
        if resume:
            raise ValueError(
                f"--resume: {first} holds a run of {_data_of(first)}, and no folder there one of {own}; pass --out "
                f"with the folder of the run, if its data have moved."
            )
        say(f"{first}/ holds a run of other data ({_data_of(first)}), so this run gets a folder of its own")
    return found


def claim(out: Path, data: Path | str) -> None:
    """Writes into the folder of a new run which data it is of, for :func:`run_folder`; called before training."""
    if MAIN and not (out / NOTE).exists() and not (out / "checkpoints").exists():
        out.mkdir(parents=True, exist_ok=True)
        part = out / f".{NOTE}"  # other processes must not read half a note
        part.write_text(json.dumps({"data": _place(data)}) + "\n", encoding="utf-8")
        part.replace(out / NOTE)


def say_resumed(run: training.Run) -> None:
    """Prints what --resume found."""
    start = f"continued from step {run.resumed_from}" if run.resumed_from else "found no checkpoint, started at step 0"
    say(f"--resume: {start}")


def write_report(out: Path, report: dict) -> None:
    """Writes what was measured into ``metrics.json``, which ``cflow sample`` and ``cflow score`` read."""
    (out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def end_run(out: Path, report: dict, started: float, files: list[str], *then: str) -> None:
    """Ends a run: writes ``metrics.json``, prints the time, the files to look at, and what to do next.

    Args:
        out: the folder of the run.
        report: what was measured; ``seconds`` is added.
        started: ``time.perf_counter()`` at the start of the run.
        files: names of pictures and tables in the folder, the most telling first.
        then: lines with the next commands.
    """
    report["seconds"] = time.perf_counter() - started
    write_report(out, report)
    say(f"{report['seconds']:.0f} s in all; look at {out}/{', '.join(files)}")
    for line in then:
        say(line)


def _place(data: Path | str) -> str:
    """Returns a file or folder by its full path, and a word as it is."""
    return str(data.resolve()) if isinstance(data, Path) else data


def _data_of(folder: Path) -> str | None:
    """Reads which data the run in a folder is of; None where there is no note."""
    note = folder / NOTE
    return json.loads(note.read_text(encoding="utf-8"))["data"] if note.is_file() else None
