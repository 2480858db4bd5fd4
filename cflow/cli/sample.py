"""``cflow sample``: draws samples from a trained flow."""

from __future__ import annotations

import csv
import math
import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from cflow.cli.commands import command
from cflow.cli.runs import (
    contexts_of,
    device_of,
    folder_of,
    guidance_of,
    labels_of,
    needs_solver,
    report_of,
    sampler_of,
    spare,
)  # fmt: skip
from cflow.data.faults import counted
from cflow.io import load
from cflow.solvers import CudaGraph

FORMATS = (".png", ".npy", ".npz", ".csv")


@command
def sample(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    num: Annotated[int | None, tyro.conf.arg(aliases=["-n"])] = None,
    solver: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    diffusion: float | None = None,
    cuda_graph: bool = False,
    label: str | None = None,
    context: Annotated[str | None, tyro.conf.arg(metavar="NUMBER,NUMBER|FILE")] = None,
    header: Literal["auto", "yes", "no"] = "auto",
    guidance: float | None = None,
    seed: int | None = None,
    batch: int = 250,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Draw samples from a trained flow.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        num: Number of samples. Default: 64, or one for every row of --context.
        solver: Euler, heun, adams_bashforth, dpm_solver_pp_2m, unipc, deis, rk4, dopri5, euler_maruyama and so on,
            bespoke (fitted by `cflow bespoke`), or a .json file of a fitted solver. Default: the solver of the run.
        steps: Steps of a fixed-grid solver.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        diffusion: Strength of the noise of a stochastic solver.
        cuda_graph: Replay each batch from a CUDA graph, which is faster for a small network on a large GPU.
        label: The class to sample, by its name or number. Default: every class in turn.
        context: The condition of a flow with a numeric condition: numbers, or a table (.csv, .npy and so on) of which
            each row is used in turn.
        header: Whether the text file of --context starts with names (auto decides from the first line).
        guidance: Classifier-free guidance scale of a class-conditional flow (1 means no guidance). Default: that of the
            run.
        seed: Seed of the samples. Default: a new one each time.
        batch: Samples per batch.
        device: Device such as cpu or cuda.
        output: A .png picture, or numbers as .npy, .npz or .csv, in which columns with discrete values in the data have
            these values again. Default: samples.png, or samples.csv if there is no picture.
    """
    if output is not None and output.suffix.lower() not in FORMATS:
        raise ValueError(f"--output {output}: this ending is not supported; choose {', '.join(FORMATS)}.")
    if (num is not None and num < 1) or batch < 1:
        raise ValueError(f"--num {num} --batch {batch}: both must be at least 1.")
    if seed is not None and seed < 0:
        raise ValueError(f"--seed {seed}: a seed must be 0 or more.")
    folder = folder_of(run)
    generator = torch.Generator(device=device_of(device))
    flow = load(folder, device=device).eval()
    seed = generator.seed() if seed is None else generator.manual_seed(seed).initial_seed()
    asked = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "diffusion": diffusion}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given or cuda_graph:
        needs_solver(flow, (given or ["--cuda-graph"])[0])
    chosen = sampler_of(run, folder, solver, steps=steps, rtol=rtol, atol=atol, diffusion=diffusion)
    if cuda_graph:
        chosen = {"solver": CudaGraph(chosen.get("solver", flow.solver))}
    options = {"generator": generator, **chosen}
    contexts = contexts_of(flow, run, context, {"auto": None, "yes": True, "no": False}[header])
    num = num or (64 if contexts is None or len(contexts) == 1 else len(contexts))
    if contexts is None:
        labels = labels_of(flow, label, num, report_of(run).get("classes", []))
    else:
        labels = contexts[torch.arange(num) % len(contexts)]
    options |= guidance_of(flow, run, guidance)
    output = Path("samples.png" if _has_picture(flow) else "samples.csv") if output is None else output
    spare(None if context is None else Path(context), output, "file of contexts")
    if output.suffix.lower() == ".png" and not _has_picture(flow):
        raise ValueError(
            f"--output {output}: samples of shape {tuple(flow.event_shape)} have no picture; use .npy, .npz or .csv."
        )
    output.parent.mkdir(parents=True, exist_ok=True)  # now, so that an error comes before the sampling
    parts = []
    for start in range(0, num, batch):
        count = min(batch, num - start)
        if labels is None:
            parts.append(flow.sample((count,), **options).cpu())
        else:
            parts.append(flow.sample((), labels[start : start + count].to(device), **options).cpu())
        print(f"\r{start + count} of {num} samples", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report = report_of(run)
    x = _on_lattice(torch.cat(parts), report)
    _write(flow, x, output, None if label is not None else labels, report)
    how = f", {chosen.get('solver', flow.solver)!r}" if "solver" in flow.options_of("sample") else ""
    print(f"{output}: {counted(num, 'sample')}, shape {tuple(x.shape[1:])}, seed {seed}{how}")


def _on_lattice(x: Tensor, report: dict) -> Tensor:
    """Rounds columns to the discrete values that they had before the run dequantised them."""
    lattice = report.get("dequantised") or {}
    for name, (first, step) in lattice.items():
        column = x[:, report["columns"].index(name)]
        # Twelve digits, so 14.26 rather than 14.25999999999993; the first value may be larger or finer than the step.
        decimals = 11 - math.floor(math.log10(max(abs(first), step)))
        exact = first + step * ((column.double() - first) / step).round()
        column.copy_(exact.round(decimals=decimals))
    return x


def _write(flow, x: Tensor, output: Path, labels: Tensor | None, report: dict) -> None:
    import numpy

    ending = output.suffix.lower()
    if ending == ".png":
        _draw(flow, x, output, labels if flow.classes else None)
    elif ending == ".npy":
        numpy.save(output, x.numpy())
    elif ending == ".npz":
        extra = {} if labels is None else {"labels" if flow.classes else "context": labels.numpy()}
        numpy.savez_compressed(output, samples=x.numpy(), **extra)
    else:
        columns, names = [x.flatten(1)], _names(x, report.get("columns"), "x")
        if labels is not None:
            columns.append(labels.reshape(len(x), -1))
            names += ["label"] if flow.classes else _names(labels, report.get("condition"), "c")
        with output.open("w", newline="", encoding="utf-8") as lines:
            writer = csv.writer(lines, lineterminator="\n")
            writer.writerow(names)
            for row in zip(*(each.numpy() for each in columns)):
                writer.writerow([str(value).removesuffix(".0") for part in row for value in part])


def _names(values: Tensor, noted: list[str] | None, letter: str) -> list[str]:
    """Returns names of columns: those of the run, or a letter with a number."""
    count = values.flatten(1).shape[1] if values.dim() > 1 else 1
    return list(noted) if noted and len(noted) == count else [f"{letter}{i}" for i in range(count)]


def _has_picture(flow) -> bool:
    shape = flow.event_shape
    return not isinstance(shape, dict) and (shape == (2,) or (len(shape) == 3 and shape[0] in (1, 3)))


def _draw(flow, x: Tensor, output: Path, labels: Tensor | None) -> None:
    from cflow import plot

    if len(flow.event_shape) == 3 and flow.event_shape[0] in (1, 3):
        levels = flow.transform.levels
        pixels = x.float() / (levels - 1) if levels else (x.float() + 1) / 2
        # A whole number of rounds of the classes per row: every column has one class, and the picture is nearly square.
        classes = len(labels.unique()) if labels is not None else 1
        columns = min(len(x), classes * max(1, round(len(x) ** 0.5 / classes)))
        plot.images(pixels.clamp(0, 1), output, columns=columns)
    else:
        plot.scatter(x, output)
