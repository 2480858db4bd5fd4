"""``cflow sample``: draws from a trained flow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from cflow.cli.commands import app
from cflow.cli.runs import device_of, folder_of, guidance_of, labels_of, needs_solver, solver_of
from cflow.io import load
from cflow.solvers import CudaGraph

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
    generator = torch.Generator(device=device_of(device))
    flow = load(folder, device=device).eval()
    seed = generator.seed() if seed is None else generator.manual_seed(seed).initial_seed()
    asked = {"solver": solver, "steps": steps, "rtol": rtol, "atol": atol, "diffusion": diffusion}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given or cuda_graph:
        needs_solver(flow, (given or ["--cuda-graph"])[0])
    chosen = solver_of(folder, solver, steps=steps, rtol=rtol, atol=atol, diffusion=diffusion)
    if cuda_graph:
        chosen = {"solver": CudaGraph(chosen.get("solver", flow.solver))}
    options = {"generator": generator, **chosen}
    labels = labels_of(flow, label, num)
    options |= guidance_of(flow, run, guidance)
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
    from cflow import plot

    if len(flow.event_shape) == 3 and flow.event_shape[0] in (1, 3):
        levels = flow.transform.levels
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
