"""Reading the folder of a run for the commands, and errors for options that do not fit its flow."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

import torch
from torch import Tensor

from cflow.data.faults import counted, is_finite
from cflow.data.tables import ENDINGS, TableFile
from cflow.guidance import ClassifierFree
from cflow.io import find
from cflow.solvers import METHODS, Bespoke, by_name

__all__ = [
    "CONTINUOUS", "bespoke_file", "contexts_of", "device_of", "folder_of", "guidance_of", "home_of", "labels_of",
    "needs_solver", "report_of", "sampler_of", "solver_of", "spare",
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


def needs_solver(flow, what: str, instead: str = "omit the option") -> None:
    """Raises if an option or command needs a solver, and the flow has none; ``instead`` is what to do."""
    if "solver" not in flow.options_of("sample"):
        raise ValueError(f"{what}: a {type(flow).__name__} has no solver and no steps; {instead}.")


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


def sampler_of(run: Path, folder: Path, name: str | None, **options: float | None) -> dict:
    """Builds the solver of samples: that of the options, or that with which the run drew its samples.

    The option ``steps`` alone changes the steps of the run's solver.
    """
    own = report_of(run).get("sampler")
    if name is None and own and {key for key, value in options.items() if value is not None} <= {"steps"}:
        name, options = own["solver"], own | ({} if options["steps"] is None else options)
        options = {key: value for key, value in options.items() if key != "solver"}
    return solver_of(folder, name, **options)


def solver_of(folder: Path, name: str | None, **options: float | None) -> dict:
    """Builds the solver of the options, as keywords of ``sample``; empty if there are no options."""
    options = {key: value for key, value in options.items() if value is not None}
    if name is not None and (name == "bespoke" or name.endswith(".json")):
        file = bespoke_file(folder) if name == "bespoke" else Path(name)
        if options:
            raise ValueError(
                f"--solver {name} --{next(iter(options))}: a fitted solver has fixed steps; omit the option."
            )
        if not file.is_file():
            raise FileNotFoundError(f"--solver {name}: there is no {file}; fit one by `cflow bespoke {folder}`.")
        return {"solver": Bespoke.read(file)}
    if name is None and not options:
        return {}
    if name is None:
        stochastic, counted = "diffusion" in options, "steps" in options
        name = "euler_maruyama" if stochastic else "heun" if counted else "dopri5"
    if "steps" not in options and any(
        each.name == "steps" and each.default is None for each in fields(METHODS.get(name, Bespoke))
    ):
        raise ValueError(f"--solver {name}: the number of steps is missing; pass for example --steps 20.")
    try:
        return {"solver": by_name(name, **options)}
    except ValueError as error:
        fitted = "" if name in METHODS else " Also bespoke, fitted by `cflow bespoke`, and its .json file."
        raise ValueError(f"{error}{fitted}") from None
