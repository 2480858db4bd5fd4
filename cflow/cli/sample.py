"""``cflow sample``: draws samples from a trained flow."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

from cflow.cli import outputs
from cflow.cli.commands import command
from cflow.cli.infilling import sentence_of
from cflow.cli.runs import contexts_of, device_of, folder_of, guidance_of, labels_of, report_of, spare
from cflow.cli.samplers import check_method, described, kind_of, sampler_of
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
    sampler: str | None = None,
    steps: int | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    diffusion: float | None = None,
    temperature: float | None = None,
    cuda_graph: bool = False,
    label: str | None = None,
    context: Annotated[str | None, tyro.conf.arg(metavar="NUMBER,NUMBER|FILE")] = None,
    header: Literal["auto", "yes", "no"] = "auto",
    guidance: float | None = None,
    infill: str | None = None,
    blank: str = "_",
    seed: int | None = None,
    batch: int = 250,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Draw samples from a trained flow.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        num: Number of samples. Default: 64, or one for every row of --context, or 4 with --infill.
        solver: Euler, heun, adams_bashforth, dpm_solver_pp_2m, unipc, deis, rk4, dopri5, euler_maruyama and so on,
            bespoke (fitted by `cflow bespoke`), or a .json file of a fitted solver. Default: the solver of the run.
        sampler: Analytic, euler, first_hitting and so on, for a flow over tokens. Default: the sampler of the run.
        steps: Steps of a fixed-grid solver, or of a sampler.
        rtol: Relative tolerance of an adaptive solver.
        atol: Absolute tolerance of an adaptive solver.
        diffusion: Strength of the noise of a stochastic solver.
        temperature: Temperature of a sampler of tokens; below 1, likely tokens become more likely.
        cuda_graph: Replay each batch from a CUDA graph, which is faster for a small network on a large GPU.
        label: The class to sample, by its name or number. Default: every class in turn.
        context: The condition of a flow with a numeric condition: numbers, or a table (.csv, .npy and so on) of which
            each row is used in turn.
        header: Whether the text file of --context starts with names (auto decides from the first line).
        guidance: Classifier-free guidance scale of a class-conditional flow (1 means no guidance). Default: that of the
            run.
        infill: A sentence with blanks to fill, such as "The ___ of", for a flow with an alphabet. A short sentence is
            continued up to the length of the samples. The results are printed, and written to --output, if it is there.
        blank: The character that marks one blank token in --infill.
        seed: Seed of the samples. Default: a new one each time.
        batch: Samples per batch.
        device: Device such as cpu or cuda.
        output: A .png picture, a .txt text (of a flow with an alphabet), or numbers as .npy, .npz or .csv, in which
            columns with discrete values in the data have these values again. Default: samples.txt, .png or .csv, the
            first that the flow can be written to, if there is no such file; up to 8 texts are printed, too.
    """
    if (num is not None and num < 1) or batch < 1:
        raise ValueError(f"--num {num} --batch {batch}: both must be at least 1.")
    if seed is not None and seed < 0:
        raise ValueError(f"--seed {seed}: a seed must be 0 or more.")
    folder = folder_of(run)
    generator = torch.Generator(device=device_of(device))
    flow = load(folder, device=device).eval()
    file = outputs.choose(flow, output) if infill is None or output is not None else None
    seed = generator.seed() if seed is None else generator.manual_seed(seed).initial_seed()
    asked = {"solver": solver, "sampler": sampler, "steps": steps, "rtol": rtol, "atol": atol}
    asked |= {"diffusion": diffusion, "temperature": temperature}
    check_method(flow, asked | {"cuda_graph": cuda_graph})
    chosen = sampler_of(flow, run, folder, **asked)
    if cuda_graph:
        chosen = {"solver": CudaGraph(chosen.get("solver", flow.solver))}
    options = {"generator": generator, **chosen}
    contexts = contexts_of(flow, run, context, {"auto": None, "yes": True, "no": False}[header])
    many = 64 if infill is None else 4
    num = num or (many if contexts is None or len(contexts) == 1 else len(contexts))
    if contexts is None:
        labels = labels_of(flow, label, num, report_of(run).get("classes", []))
    else:
        labels = contexts[torch.arange(num) % len(contexts)]
    options |= guidance_of(flow, run, guidance)
    if infill is None:
        draw = flow.sample
    else:
        draw = partial(flow.infill, *sentence_of(flow, infill, blank, device))
    if file is not None:
        spare(None if context is None else Path(context), file, "file of contexts")
        file.parent.mkdir(parents=True, exist_ok=True)  # now, so that an error comes before the sampling
    parts = []
    for start in range(0, num, batch):
        count = min(batch, num - start)
        if labels is None:
            parts.append(draw((count,), **options).cpu())
        else:
            parts.append(draw((), labels[start : start + count].to(device), **options).cpu())
        print(f"\r{start + count} of {num} samples", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    report = report_of(run)
    x = outputs.on_lattice(torch.cat(parts), report)
    shown = None if label is not None else labels
    if file is not None:
        outputs.write(flow, x, file, shown, report)
    if infill is not None or (output is None and file.suffix == ".txt" and num <= PRINTED):
        outputs.show(flow, x, shown, report)
    kind = kind_of(flow)
    how = "" if kind is None else f", {described(kind, chosen.get(kind, getattr(flow, kind)))}"
    print(
        f"{'' if file is None else f'{file}: '}{counted(num, 'sample')}, shape {tuple(x.shape[1:])}, seed {seed}{how}"
    )
