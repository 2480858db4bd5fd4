"""``cflow export``: writes a trained flow as one graph of operations."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from cflow.cli.commands import app
from cflow.cli.runs import device_of, folder_of, guidance_of, needs_solver, sampler_of, solver_of
from cflow.io import load


@app.command
def export(
    run: tyro.conf.Positional[Path],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    what: Literal["network", "sampler", "log_prob"] = "sampler",
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> None:
    """Write a part of a trained flow as a torch.export program (.pt2) or an ONNX model (.onnx).

    Args:
        run: A run's folder, or a folder that cflow.save wrote.
        output: The file, .pt2 or .onnx; what it holds is described beside it in a .json.
        what: The sampler (draws of the base to samples), the network (its velocity), or the log-density.
        solver: Heun, euler, unipc and so on with their steps; bespoke for what `cflow bespoke` fitted, or its .json
            file; unless given, what the run drew its samples by, and for a log-density the flow's own.
        steps: Steps of the solver, heun unless another is named.
        guidance: Classifier-free guidance scale of a class-conditional flow, 1 is none; the run's own unless given.
        batch: Samples in a batch; any number unless given.
        device: Where the file is to run, such as cuda.
    """
    from cflow.integrations import export as graphs

    folder = folder_of(run)
    flow = load(folder, device=device_of(device)).eval()
    asked = {"solver": solver, "steps": steps}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given:
        needs_solver(flow, given[0])
    if given and what == "network":
        raise ValueError(f"{given[0]}: a network by itself takes no steps; omit the option, or export the sampler.")
    options = (
        sampler_of(run, folder, solver, steps=steps) if what == "sampler" else solver_of(folder, solver, steps=steps)
    )
    if what != "log_prob":
        options |= guidance_of(flow, run, guidance)
    elif guidance is not None:
        raise ValueError(f"--guidance {guidance}: a log-density is that of the flow itself; omit the option.")
    try:
        file = graphs.save(flow, output, what, batch=batch, **options)
    except ImportError as error:  # packages that only ONNX takes
        raise ValueError(str(error)) from error
    print(f"{file}: {what} of {folder}, described in {file.name}.json")
