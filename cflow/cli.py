"""The command line: draw from a trained flow, fit a solver of few steps to it, and look at what a run holds.

cflow sample runs/images-digits --num 64 --solver heun --steps 8 --label 3 --output x.png
cflow bespoke runs/images-digits --steps 6
cflow sample runs/images-digits --num 64 --solver bespoke
cflow info runs/images-digits
"""

from __future__ import annotations

import csv
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from .guidance import ClassifierFree
from .io import load
from .registry import configuration
from .solvers import METHODS, Bespoke, CudaGraph, by_name

__all__ = ["main"]

app = tyro.extras.SubcommandApp()
FORMATS = (".png", ".npy", ".npz", ".csv")


@app.command
def sample(
    run: tyro.conf.Positional[Path],
    /,
    num: Annotated[int, tyro.conf.arg(aliases=["-n"])] = 64,
    solver: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    diffusion: float | None = None,
    cuda_graph: bool = False,
    label: int | None = None,
    guidance: float | None = None,
    seed: int | None = None,
    batch: int = 250,
    device: str = "cpu",
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("samples.png"),
) -> None:
    """Draw samples from a trained flow.

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
        num: How many samples.
        solver: Euler, heun, adams_bashforth, dpm_solver_pp_2m, unipc, deis, rk4, dopri5, euler_maruyama and so on;
            bespoke for what `cflow bespoke` fitted, or its .json file; the flow's own unless given.
        steps: Steps of a fixed-grid solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        diffusion: Strength of the noise of a stochastic solver.
        cuda_graph: Replay each batch of samples from a CUDA graph; for a network that is small beside its GPU.
        label: The class to draw; every class in turn unless given.
        guidance: Classifier-free guidance scale of a class-conditional flow, 1 is none; the run's own unless given.
        seed: Seed of the draws; a new one each time unless given.
        batch: Samples carried at once.
        device: Where to compute, such as cuda.
        output: A .png picture, or the numbers as .npy, .npz or .csv.
    """
    if output.suffix.lower() not in FORMATS:
        raise ValueError(
            f"--output {output}: samples are written as {', '.join(FORMATS)}; choose one of these endings."
        )
    if num < 1 or batch < 1:
        raise ValueError(f"--num {num} --batch {batch}: both are at least 1.")
    if seed is not None and seed < 0:
        raise ValueError(f"--seed {seed}: a seed is 0 or more.")
    folder = folder_of(run)
    generator = torch.Generator(device=_device(device))
    flow = load(folder, device=device).eval()
    seed = generator.seed() if seed is None else generator.manual_seed(seed).initial_seed()
    asked = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "diffusion": diffusion}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given or cuda_graph:
        _needs_solver(flow, (given or ["--cuda-graph"])[0])
    chosen = _solver(folder, solver, steps=steps, rtol=rtol, atol=atol, diffusion=diffusion)
    if cuda_graph:
        chosen = {"solver": CudaGraph(chosen.get("solver", flow.solver))}
    options = {"generator": generator, **chosen}
    labels = _labels(flow, label, num)
    options |= _guided(flow, run, guidance)
    output.parent.mkdir(parents=True, exist_ok=True)  # what cannot be written is known before it is drawn
    parts = []
    for start in range(0, num, batch):
        count = min(batch, num - start)
        if labels is None:
            parts.append(flow.sample((count,), **options).cpu())
        else:
            parts.append(flow.sample((), labels[start : start + count].to(device), **options).cpu())
        print(f"\r{start + count} of {num} samples", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    x = torch.cat(parts)
    _write(flow, x, output, None if label is not None else labels)
    print(f"{output}: {num} samples, shape {tuple(x.shape[1:])}, seed {seed}")


@app.command
def bespoke(
    run: tyro.conf.Positional[Path],
    /,
    steps: int = 6,
    guidance: float | None = None,
    seed: int = 0,
    iterations: int = 400,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Fit a solver with few steps to a trained flow and save it beside the model.

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
        steps: Calls of the network.
        guidance: Classifier-free guidance scale of a class-conditional flow, 1 is none; the run's own unless given.
        seed: Seed of the fit.
        iterations: Optimizer steps.
        device: Where to compute, such as cuda.
        output: The .json file; beside the model unless given, where `cflow sample --solver bespoke` finds it.
    """
    from .training import fit_bespoke

    folder = folder_of(run)
    flow = load(folder, device=_device(device)).eval()
    _needs_solver(flow, f"bespoke {run}")
    context = _labels(flow, None, _classes(flow))
    options = _guided(flow, run, guidance)
    solver = fit_bespoke(
        flow, steps, seed=seed, context=context, iterations=iterations, progress=sys.stderr.isatty(), **options
    )
    file = solver.write(_bespoke_file(folder) if output is None else output)
    print(f"{file}: {steps} steps, root mean square error {solver.error:.4g} (generic: {solver.error_before:.4g})")


@app.command
def info(run: tyro.conf.Positional[Path], /) -> None:
    """Show what a run holds: the flow, how it was trained, what was measured.

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
    """
    folder = folder_of(run)
    flow = load(folder)
    count = sum(each.numel() for each in flow.parameters())
    weights = (folder / "flow.safetensors").stat().st_size
    print(f"{type(flow).__name__} in {folder}: {count:,} parameters, {weights / 2**20:.1f} MiB")
    for name, value in configuration(flow).items():
        if name == "transform":
            value = ", ".join(type(each).__name__ for each in value) or None
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
    history, report = run / "history.csv", _report(run)
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


def folder_of(run: Path) -> Path:
    """Finds the saved flow of a run: its folder ``model``, or the folder itself."""
    for folder in (run / "model", run):
        if (folder / "flow.json").is_file():
            return folder
    if (run / "checkpoints").is_dir() or (run / "history.csv").is_file():
        raise FileNotFoundError(
            f"{run}: the run ended before its model was written; continue it with --resume (or begin it again)."
        )
    raise FileNotFoundError(f"{run}: no saved flow there (flow.json is missing); pass the folder that a recipe wrote.")


def _bespoke_file(folder: Path) -> Path:
    """Gives where the solver fitted to a flow is: beside the flow's folder, which holds nothing else."""
    folder = folder.resolve()
    return folder.with_name(f"{folder.name}.bespoke.json")


def _guided(flow, run: Path, guidance: float | None) -> dict:
    """Chooses the guidance of a class-conditional flow."""
    if flow.context_shape is None:
        if guidance is not None:
            raise ValueError(
                f"--guidance {guidance}: this flow was trained without classes; there is nothing to guide to."
            )
        return {}
    guidance = _report(run).get("guidance", 1.0) if guidance is None else guidance
    return {"guidance": ClassifierFree(guidance)} if guidance != 1 else {}


def _report(run: Path) -> dict:
    """Reads what the recipe measured, where it did."""
    file = run / "metrics.json"
    return json.loads(file.read_text()) if file.is_file() else {}


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"--device {name}: not to be had here ({str(error).splitlines()[0]}); use cpu.") from None
    return device


def _solver(folder: Path, name: str | None, **options: float | None) -> dict:
    options = {key: value for key, value in options.items() if value is not None}
    if name is not None and (name == "bespoke" or name.endswith(".json")):
        file = _bespoke_file(folder) if name == "bespoke" else Path(name)
        if options:
            raise ValueError(
                f"--solver {name} --{next(iter(options))}: a fitted solver has its own steps and tolerances; leave "
                "the option away."
            )
        if not file.is_file():
            raise FileNotFoundError(f"--solver {name}: there is no {file}; fit one by `cflow bespoke {folder}`.")
        return {"solver": Bespoke.read(file)}
    if name is None and not options:
        return {}
    if name is None:
        stochastic, counted = "diffusion" in options, "steps" in options
        name = "euler_maruyama" if stochastic else "heun" if counted else "dopri5"
    try:
        return {"solver": by_name(name, **options)}
    except ValueError as error:
        fitted = "" if name in METHODS else " Here bespoke is one too, which `cflow bespoke` fits, and so is its .json."
        raise ValueError(f"{error}{fitted}") from None


def _needs_solver(flow, what: str) -> None:
    """Raises where something is asked of a solver, and the flow has none."""
    if "solver" not in flow.options:
        raise ValueError(
            f"{what}: a {type(flow).__name__} is no differential equation, so it has no solver and no steps; draw from "
            f"it by `cflow sample` without options of a solver."
        )


def _classes(flow) -> int:
    """Gives how many classes a flow knows; 0 for one without labels."""
    return getattr(getattr(flow, "field", None), "classes", 0)


def _labels(flow, label: int | None, num: int) -> Tensor | None:
    classes = _classes(flow)
    if flow.context_shape is None:
        if label is not None:
            raise ValueError(f"--label {label}: this flow was trained without classes; leave the label away.")
        return None
    if not classes:
        raise ValueError(
            f"this flow is conditioned on a context of shape {tuple(flow.context_shape)}, which the command line has "
            "no option for; use flow.sample(context=...) in Python."
        )
    if label is None:
        return torch.arange(num) % classes
    if not 0 <= label < classes:
        raise ValueError(f"--label {label}: the classes of this flow are 0 to {classes - 1}.")
    return torch.full((num,), label)


def _write(flow, x: Tensor, output: Path, labels: Tensor | None) -> None:
    import numpy

    ending = output.suffix.lower()
    if ending == ".png":
        _draw(flow, x, output, labels)
    elif ending == ".npy":
        numpy.save(output, x.numpy())
    elif ending == ".npz":
        extra = {} if labels is None else {"labels": labels.numpy()}
        numpy.savez_compressed(output, samples=x.numpy(), **extra)
    else:
        numpy.savetxt(output, x.flatten(1).numpy(), delimiter=",", fmt="%.9g")


def _draw(flow, x: Tensor, output: Path, labels: Tensor | None) -> None:
    from . import plot

    if len(flow.event_shape) == 3 and flow.event_shape[0] in (1, 3):
        levels = next((each.levels for each in flow.transform if hasattr(each, "levels")), None)
        pixels = x.float() / (levels - 1) if levels else (x.float() + 1) / 2
        columns = len(labels.unique()) if labels is not None else min(len(x), round(len(x) ** 0.5))
        plot.images(pixels.clamp(0, 1), output, columns=columns)
    elif flow.event_shape == (2,):
        plot.scatter(x, output)
    else:
        raise ValueError(
            f"--output {output}: events of shape {tuple(flow.event_shape)} have no picture; write numbers to a .npy, "
            ".npz or .csv file."
        )


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


def main(args: list[str] | None = None) -> None:
    """Runs the command line; mistakes of the user end in one line and exit status 2."""
    try:
        app.cli(prog="cflow", args=args)
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"cflow: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
