"""``cflow bespoke``: fits a solver with few steps to a trained flow."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import tyro

from cflow.cli.commands import command
from cflow.cli.runs import CONTINUOUS, bespoke_file, device_of, folder_of, guidance_of, labels_of
from cflow.cli.samplers import needs_solver
from cflow.io import load


@command
def bespoke(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    steps: int = 6,
    guidance: float | None = None,
    seed: int = 0,
    iterations: int = 400,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Fit a solver with few steps to a trained flow and save it next to the model.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        steps: Network evaluations (NFE) per sample.
        guidance: Classifier-free guidance scale of a class-conditional flow (1 means no guidance). Default: that of the
            run.
        seed: Seed of the fit.
        iterations: Optimizer steps.
        device: Device such as cpu or cuda.
        output: The .json file. Default: next to the model, where `cflow sample --solver bespoke` finds it.
    """
    from cflow.training import fit_bespoke

    folder = folder_of(run)
    flow = load(folder, device=device_of(device)).eval()
    needs_solver(flow, f"bespoke {run}", CONTINUOUS)
    context = labels_of(flow, None, flow.classes)
    options = guidance_of(flow, run, guidance)
    print(
        f"{folder}: drawing reference samples with an accurate solver, then {iterations} iterations of the fit; "
        "this takes seconds for a small network, minutes for a large one",
        file=sys.stderr,
    )
    solver = fit_bespoke(flow, steps, seed=seed, context=context, iterations=iterations, **options)
    file = solver.write(bespoke_file(folder) if output is None else output)
    print(
        f"{file}: {steps} steps, root mean square error {solver.error:.4g} (best standard solver: "
        f"{solver.error_before:.4g})"
    )
