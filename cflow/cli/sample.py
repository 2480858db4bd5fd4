"""``cflow sample``: draws samples from a trained flow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from cflow.cli import outputs
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

PRINTED = 8  # so many texts are printed, too


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
        output: A .png picture, a .txt text (of a flow with an alphabet), or numbers as .npy, .npz or .csv, in which
            columns with discrete values in the data have these values again. Default: samples.txt, .png or .csv, the
            first that the flow can be written to; up to 8 texts are printed, too.
    """
    if (num is not None and num < 1) or batch < 1:
        raise ValueError(f"--num {num} --batch {batch}: both must be at least 1.")
    if seed is not None and seed < 0:
        raise ValueError(f"--seed {seed}: a seed must be 0 or more.")
    folder = folder_of(run)
    generator = torch.Generator(device=device_of(device))
    flow = load(folder, device=device).eval()
    file = outputs.choose(flow, output)
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
    spare(None if context is None else Path(context), file, "file of contexts")
    file.parent.mkdir(parents=True, exist_ok=True)  # now, so that an error comes before the sampling
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
    x = outputs.on_lattice(torch.cat(parts), report)
    shown = None if label is not None else labels
    outputs.write(flow, x, file, shown, report)
    if output is None and file.suffix == ".txt" and num <= PRINTED:
        outputs.show(flow, x, shown)
    how = f", {chosen.get('solver', flow.solver)!r}" if "solver" in flow.options_of("sample") else ""
    print(f"{file}: {counted(num, 'sample')}, shape {tuple(x.shape[1:])}, seed {seed}{how}")
