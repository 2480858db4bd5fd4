"""``cflow export``: exports a trained flow to torch.export or ONNX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import tyro

from cflow.cli.commands import command
from cflow.cli.runs import device_of, folder_of, guidance_of
from cflow.cli.samplers import needs_solver, sampler_of, solver_of
from cflow.io import load


@command
def export(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    what: Literal["network", "sampler", "log_prob"] = "sampler",
    solver: str | None = None,
    steps: int | None = None,
    guidance: float | None = None,
    batch: int | None = None,
    device: str = "cpu",
) -> None:
    """Export a part of a trained flow to a torch.export program (.pt2) or an ONNX model (.onnx).

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        output: The file, .pt2 or .onnx; a .json file next to it describes inputs and output.
        what: The sampler (base samples to samples), the network (the velocity), or the log-density.
        solver: Heun, euler, unipc and so on, bespoke (fitted by `cflow bespoke`), or a .json file of a fitted solver.
            Default: the solver of the run, or for a log-density that of the flow.
        steps: Steps of the solver, or of heun if --solver is omitted.
        guidance: Classifier-free guidance scale of a class-conditional flow (1 means no guidance). Default: that of the
            run.
        batch: Samples per batch. Default: any number.
        device: Device that will run the file, such as cpu or cuda.
    """
    from cflow.integrations import export as graphs

    folder = folder_of(run)
    flow = load(folder, device=device_of(device)).eval()
    asked = {"solver": solver, "steps": steps}
    given = [f"--{name} {value}" for name, value in asked.items() if value is not None]
    if given:
        needs_solver(flow, given[0])
    if given and what == "network":
        raise ValueError(f"{given[0]}: the network alone takes no steps; omit the option, or export the sampler.")
    options = sampler_of(flow, run, folder, **asked) if what == "sampler" else solver_of(folder, solver, steps=steps)
    if what != "log_prob":
        options |= guidance_of(flow, run, guidance)
    elif guidance is not None:
        raise ValueError(f"--guidance {guidance}: a log-density has no guidance; omit the option.")
    try:
        file = graphs.save(flow, output, what, batch=batch, **options)
    except ImportError as error:  # packages that only ONNX needs
        raise ValueError(str(error)) from error
    print(f"{file}: {what} of {folder}, described in {file.name}.json")
