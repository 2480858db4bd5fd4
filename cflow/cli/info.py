"""``cflow info``: shows the contents of a run."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from cflow.cli.commands import command
from cflow.cli.runs import folder_of, report_of
from cflow.cli.samplers import described
from cflow.data.faults import counted
from cflow.io import FILE, load
from cflow.registry import configuration


@command
def info(run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")], /) -> None:
    """Show the flow of a run, the end of its training and its metrics.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
    """
    folder = folder_of(run)
    flow = load(folder)
    count = sum(each.numel() for each in flow.parameters())
    weights = (folder / FILE).stat().st_size
    print(f"{type(flow).__name__} in {folder}: {count:,} parameters, {weights / 2**20:.1f} MiB")
    if folder.parent.name == "checkpoints":
        print("  a checkpoint: the flow at that step of the run")
    for name, value in configuration(flow).items():
        if name == "transform":
            value = ", ".join(type(each).__name__ for each in value.maps) or None
        elif isinstance(value, torch.nn.Module):
            arguments = {
                key: _counted(each) if isinstance(each, torch.nn.ModuleList) else each
                for key, each in configuration(value).items()
                if isinstance(each, torch.nn.ModuleList) or not isinstance(each, torch.nn.Module)
            }
            value = f"{type(value).__name__}({', '.join(f'{key}={_short(each)}' for key, each in arguments.items())})"
        elif name == "alphabet" and value is not None:
            value = f"{counted(value.size, 'token')}: {_short(repr(value))}"
        elif name == "sampler" and value is not None:
            value = described(name, value)
        elif isinstance(value, torch.Size):
            value = tuple(value)
        if value is not None:
            print(f"  {name:14s} {value}")
    print(f"  {'event':14s} {tuple(flow.event_shape)}, likelihood {flow.likelihood}")
    history, report = run / "history.csv", report_of(run)
    if history.is_file():
        with history.open() as lines:
            rows = list(csv.DictReader(lines))
        if rows:
            shown = {key: value for key, value in rows[-1].items() if value}
            print("training: " + ", ".join(f"{key} {_short(value)}" for key, value in shown.items()))
    if report:
        print("metrics:")
        for name, value in report.items():
            print(f"  {name:44s} {_short(value)}")


def _counted(modules) -> str:
    """Lists the classes of modules, each with its count."""
    counts = Counter(type(each).__name__ for each in modules)
    return " + ".join(f"{count} {name}" for name, count in counts.items())


def _short(value) -> str:
    value = tuple(value) if isinstance(value, torch.Size) else value
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"tensor of shape {list(value.shape)}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        text = str(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"{number:.5g}"
