"""Two-dimensional toys: train a flow on a known distribution, look at its samples, density and trajectories.

    python recipes/toys.py                                   # moons, optimal-transport flow matching, about a minute
    python recipes/toys.py --data checkerboard --coupling independent --path cosine --predict x1

Leaves ``model/``, ``samples.png``, ``density.png``, ``trajectories.png``, ``training.png`` and ``metrics.json`` in one
folder.
"""

import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro

import cflow
from cflow import bases, couplings, data, fields, metrics, objectives, paths, plot, solvers, training

PATHS = {
    "linear": paths.Linear,
    "polynomial": lambda predict: paths.Polynomial(2.0, predict),
    "cosine": paths.Cosine,
    "variance-preserving": paths.VariancePreserving,
}

# Under a launcher every process runs this script: all train, one speaks, draws and measures.
MAIN = os.environ.get("RANK", "0") == "0"


@dataclass
class Options:
    """Trains a flow matching model on points in the plane."""

    data: Literal["eight-gaussians", "moons", "s-curve", "checkerboard", "pinwheel", "spirals"] = "moons"
    """Which distribution."""
    coupling: Literal["independent", "optimal-transport"] = "optimal-transport"
    """How base and data samples are paired within a batch."""
    path: Literal["linear", "polynomial", "cosine", "variance-preserving"] = "linear"
    """The schedule between base and data."""
    predict: Literal["velocity", "x1", "noise", "score"] = "velocity"
    """What the network predicts."""
    count: int = 10_000
    """Training points."""
    steps: int = 4000
    """Training steps."""
    batch_size: int = 256
    """Points per step, on each process."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Hidden layers of the network."""
    lr: float = 2e-3
    """Peak learning rate."""
    solver_steps: int = 50
    """Heun steps for the samples."""
    out: Path | None = None
    """Where everything is written; runs/toys-<data> unless given."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def say(*what) -> None:
    """Prints, once however many processes there are."""
    if MAIN:
        print(*what, flush=True)


def main(options: Options) -> None:
    began = time.perf_counter()
    out = options.out or Path("runs") / f"toys-{options.data}"
    name = options.data.replace("-", "_")
    generator = torch.Generator().manual_seed(options.seed)
    train, test = data.toys.sample(name, options.count + 5000, generator=generator).split([options.count, 5000])

    torch.manual_seed(options.seed)  # the network's initial weights
    flow = cflow.ContinuousFlow(
        fields.MLP(2, hidden=options.hidden), bases.Normal(2), path=PATHS[options.path](options.predict)
    ).with_transform(data.Standardise.fit(train, pooled=(-1,)))
    pairing = {"independent": couplings.Independent(), "optimal-transport": couplings.OptimalTransport()}
    # A velocity near the data's end, and with it the density, amplifies errors of x1; training must weigh them so.
    weight = objectives.VelocityWeight() if options.predict == "x1" else None
    say(f"{options.data}: {len(train)} points, {options.coupling} coupling, {flow.path}; writing to {out}/")
    run = training.fit(
        flow,
        objectives.FlowMatching(coupling=pairing[options.coupling], weight=weight),
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        lr=options.lr,
        schedule=training.Cosine(warmup=100),
        checkpoint_every=max(1, options.steps // 4),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        begun = f"went on from step {run.resumed_from}" if run.resumed_from else "found no checkpoint and began anew"
        say(f"--resume: {begun}")
    if not MAIN:
        return
    flow = flow.cpu().eval()
    plot.training(run.history, out / "training.png")

    solver = solvers.Heun(steps=options.solver_steps)
    samples = flow.sample((5000,), solver=solver, generator=generator)
    plot.scatter(samples, out / "samples.png", reference=test)
    span = float(test.abs().max()) * 1.15
    fast = solvers.RK4(steps=16)  # a picture needs three digits; the figures below use the flow's own solver
    plot.density(
        lambda x: flow.log_prob(x, solver=fast),
        out / "density.png",
        bounds=(-span, span),
        samples=test[:1000],
        resolution=160,
    )
    frames = flow.trajectory(flow.base.sample((300,), generator=generator), times=41, solver=solvers.Heun(steps=40))
    plot.trajectories(frames, out / "trajectories.png")

    z = flow.base.sample((5000,), generator=generator)
    solution = flow.transport(z, 0.0, 1.0, quadratures=("kinetic",), solver=solver)
    with torch.no_grad():
        logp = flow.log_prob(test[:1000])
    model = flow.preprocess(test)[0]
    report = {
        "wasserstein2": metrics.wasserstein2(samples[:2000], test[:2000]),
        "wasserstein2_floor": metrics.wasserstein2(train[:2000], test[:2000]),
        "log_prob_held_out": float(logp.mean()),
        "log_prob_standard_error": float(logp.std() / len(logp) ** 0.5),
        "normalised_path_energy": float(
            metrics.normalised_path_energy(solution.quadratures["kinetic"][:2000], z[:2000], model[:2000])
        ),
        "steps": run.steps,
        "training_seconds": run.seconds,
        "seconds": time.perf_counter() - began,
    }
    if name in data.toys.LOG_PROBS:
        report["log_prob_true"] = float(data.toys.log_prob(name, test[:1000]).mean())
    (out / "metrics.json").write_text(json.dumps(report, indent=1) + "\n")
    for key, value in report.items():
        print(f"  {key:28s} {value:.4g}")
    print(f"pictures: {out}/samples.png, density.png, trajectories.png, training.png")


if __name__ == "__main__":
    try:
        main(tyro.cli(Options, console_outputs=MAIN))
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        sys.exit(f"toys.py: {error}" if MAIN else f"toys.py, process {os.environ['RANK']}: {error}")
    except KeyboardInterrupt as stop:
        sys.exit(f"toys.py: {stop or 'interrupted'}" if MAIN else 1)
