"""Reading the folder of a run for the commands, and errors for options that do not fit its flow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cflow.data.faults import counted, is_finite
from cflow.data.tables import ENDINGS, TableFile
from cflow.guidance import ClassifierFree
from cflow.io import find

__all__ = [
    "CONTINUOUS", "bespoke_file", "contexts_of", "device_of", "folder_of", "guidance_of", "home_of", "labels_of",
    "report_of", "spare", "unused",
]  # fmt: skip


def folder_of(run: Path) -> Path:
    """Finds the saved flow of a run: its model, its newest checkpoint if it has not ended, or the folder itself."""
    try:
        return find(run)
    except FileNotFoundError as error:
        raise FileNotFoundError(str(error).replace("resume=True", "--resume")) from None


def spare(source: Path | None, output: Path, name: str) -> None:
    """Raises if the output would overwrite the input."""
    if source is not None and source.exists() and output.exists() and os.path.samefile(source, output):
        raise ValueError(f"--output {output}: this would overwrite the {name}; choose another file.")


def unused(output: Path) -> Path:
    """Returns the default file of a command; raises if it exists, as only a file that the user names is replaced."""
    if output.exists():
        raise ValueError(f"{output} exists; pass --output {output} to replace it, or another file.")
    return output


def home_of(folder: Path) -> Path:
    """Returns the folder for results: that of the run, or the parent of the folder of a saved flow."""
    home = folder.resolve().parent
    return home.parent if home.name == "checkpoints" else home


def bespoke_file(folder: Path) -> Path:
    """Returns the file of the solver fitted to a flow, next to the flow's folder, which has no other files."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.bespoke.json")


def guidance_of(flow, run: Path, guidance: float | None) -> dict:
    """Returns the guidance of a class-conditional flow, as keywords of ``sample``."""
    if flow.context_shape is None:
        if guidance is not None:
            raise ValueError(f"--guidance {guidance}: this flow was trained without classes; omit the option.")
        return {}
    if "guidance" not in flow.options_of("sample"):
        if guidance is not None:
            raise ValueError(f"--guidance {guidance}: a {type(flow).__name__} has no guidance; omit the option.")
        return {}
    guidance = report_of(run).get("guidance", 1.0) if guidance is None else guidance
    return {"guidance": ClassifierFree(guidance)} if guidance != 1 else {}


def report_of(run: Path) -> dict:
    """Reads the metrics of a run, also if ``run`` is its folder ``model``; empty if there are none."""
    for file in (run / "metrics.json", run.resolve().parent / "metrics.json"):
        if file.is_file() and (file.parent == run or run.resolve().name == "model"):
            return json.loads(file.read_text())
    return {}


def device_of(name: str) -> torch.device:
    """Returns the device; raises if it is not available."""
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not available ({str(error).splitlines()[0]}); use cpu.") from None
    return device


CONTINUOUS = "train a continuous flow (density.py has --flow flow-matching and --flow ffjord)"


def labels_of(flow, label: str | None, num: int, names: Sequence[str] = ()) -> Tensor | None:
    """Returns the class of every sample: one class, by its name (of ``names``) or its number, or all in turn."""
    classes = flow.classes
    if flow.context_shape is None:
        if label is not None:
            raise ValueError(f"--label {label}: this flow was trained without classes; omit the label.")
        return None
    if not classes:
        raise ValueError(
            f"this command has no option for contexts of shape {tuple(flow.context_shape)}; use `cflow sample "
            f"--context`, or Python."
        )
    if label is None:
        return torch.arange(num) % classes
    names = names if len(names) == classes else ()
    number = names.index(label) if label in names else int(label) if label.isascii() and label.isdecimal() else -1
    if not 0 <= number < classes:
        called = f" ({', '.join(names[:10])}{', ...' if classes > 10 else ''})" if names else ""
        raise ValueError(f"--label {label}: the classes of this flow are 0 to {classes - 1}{called}; pass one.")
    return torch.full((num,), number)


def contexts_of(flow, run: Path, context: str | None, header: bool | None = None) -> Tensor | None:
    """Reads contexts ``[N, *context_shape]`` from numbers or from a table; None for a flow without such contexts."""
    if flow.context_shape is None or flow.classes:
        if context is not None:
            instead = "choose a class by --label" if flow.classes else "omit the option"
            raise ValueError(f"--context {context}: the condition of this flow is not numbers; {instead}.")
        return None
    count = math.prod(flow.context_shape)
    names = report_of(run).get("condition") or [f"c{i}" for i in range(count)]
    if context is None:
        raise ValueError(
            f"sample {run}: the condition of this flow is {count} numbers ({', '.join(names)}); pass --context "
            f"{','.join('1.5' for _ in names)}, or a table as --context FILE."
        )
    if Path(context).suffix.lower() in ENDINGS:
        file = TableFile(context, header=header)
        if file.names is not None and set(names) <= set(file.names):
            file = file.choose(names)
        values = _sound(file, context)
    else:
        numbers = context.split(",")
        if not all(map(is_finite, numbers)):
            raise ValueError(
                f"--context {context}: neither numbers separated by commas nor a file; pass {', '.join(ENDINGS)}."
            )
        values = torch.tensor([[float(each) for each in numbers]], dtype=torch.float64)
    if values.shape[1] != count:
        raise ValueError(f"--context {context}: got {values.shape[1]} numbers; pass {count} ({', '.join(names)}).")
    return values.reshape(-1, *flow.context_shape)


def _sound(file: TableFile, context: str) -> Tensor:
    """Reads contexts; raises for any bad row, since samples are drawn for every row."""
    chunks = list(file.chunks())
    bad = [(chunk.places[position], fault) for chunk in chunks for position, fault in sorted(chunk.bad.items())]
    if bad:
        place, fault = bad[0]
        more = f" (and {counted(len(bad) - 1, 'more bad row')})" if len(bad) > 1 else ""
        raise ValueError(
            f"--context {context}: {file.unit} {place}: {fault}{more}; correct or delete it, as every row is used."
        )
    if not chunks:
        raise ValueError(f"--context {context}: there are no rows; write one row per line.")
    return torch.cat([chunk.values for chunk in chunks])
