"""``cflow bespoke``: fits a solver of few steps to a trained flow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from cflow.cli.commands import app
from cflow.cli.runs import CONTINUOUS, bespoke_file, device_of, folder_of, guidance_of, labels_of, needs_solver
from cflow.io import load


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
    from cflow.training import fit_bespoke

    folder = folder_of(run)
    flow = load(folder, device=device_of(device)).eval()
    needs_solver(flow, f"bespoke {run}", CONTINUOUS)
    context = labels_of(flow, None, flow.classes)
    options = guidance_of(flow, run, guidance)
    solver = fit_bespoke(flow, steps, seed=seed, context=context, iterations=iterations, **options)
    file = solver.write(bespoke_file(folder) if output is None else output)
    print(f"{file}: {steps} steps, root mean square error {solver.error:.4g} (generic: {solver.error_before:.4g})")
