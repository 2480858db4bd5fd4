"""``cflow info``: shows what a run holds."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import torch
import tyro
from torch import Tensor

from cflow.cli.commands import app
from cflow.cli.runs import folder_of, report_of
from cflow.io import FILE, load
from cflow.registry import configuration


@app.command
def info(run: tyro.conf.Positional[Path], /) -> None:
    """Show what a run holds: the flow, how it was trained, what was measured.

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
    """
    folder = folder_of(run)
    flow = load(folder)
    count = sum(each.numel() for each in flow.parameters())
    weights = (folder / FILE).stat().st_size
    print(f"{type(flow).__name__} in {folder}: {count:,} parameters, {weights / 2**20:.1f} MiB")
    if folder.parent.name == "checkpoints":
        print("  a checkpoint: the flow as the run would have left it at that step")
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
    """Names the members of a list by their classes, each with its number."""
    counts = Counter(type(each).__name__ for each in modules)
    return " + ".join(f"{count} {name}" for name, count in counts.items())


def _short(value) -> str:
    if isinstance(value, Tensor) and value.numel() > 4:
        return f"tensor of shape {list(value.shape)}"
    try:
        number = float(value)
    except (TypeError, ValueError):
        text = str(value)
        return text if len(text) <= 60 else text[:57] + "..."
    return f"{number:.5g}"
