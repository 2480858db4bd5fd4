"""Places on the earth: the density of points on a sphere, by geodesic flow matching.

    python recipes/earth.py                                        # 28,000 airports (pip install 'cflow[earth]')
    python recipes/earth.py --data fires.csv                       # a table with columns latitude and longitude
    python recipes/earth.py --data sites.csv --columns y x --distinct          # each place once
    python recipes/earth.py --data fires.csv --objective ffjord --steps 500    # by maximum likelihood
    cflow score runs/earth-airports new.csv --output scores.csv    # then, for new places

The rows are split at random: 80 % to train, 10 % to decide when to stop, 10 % to report. Held-out log-densities are in
nats against the area of the sphere, per steradian: the unit of published figures. ``flow.log_prob`` and ``cflow score``
are per square degree of latitude and longitude, since that is what the file has.

Writes ``model/`` (a flow of latitude and longitude in degrees), ``density.png`` (a map with the held-out places),
``samples.png``, ``training.png`` and ``metrics.json`` into one folder.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import earth_data
import kernel_density
import torch
from common import MAIN, claim, end_run, run_folder, say
from manifold_training import estimate, train

import cflow
from cflow import bijections, couplings, fields, manifolds, objectives, paths, plot, solvers
from cflow.cli import run_recipe

SPHERE = manifolds.Sphere(2)


@dataclass
class Options:
    """Estimates the density of places on the earth."""

    data: str = "airports"
    """A .csv, .tsv, .npy or .npz table with latitude and longitude in degrees, or airports."""
    columns: tuple[str, ...] = ()
    """Names (or numbers, from 0) of latitude and longitude. Default: the usual names are tried."""
    drop_missing: bool = False
    """Omit rows with a missing value."""
    distinct: bool = False
    """Use each place once; a held-out copy of a training row has too high a density."""
    objective: Literal["matching", "ffjord"] = "matching"
    """Geodesic flow matching, or maximum likelihood, which solves an ODE in every step."""
    coupling: Literal["independent", "optimal-transport"] = "independent"
    """How base and data samples are paired in a batch."""
    harmonics: int = 16
    """Sines and cosines of each coordinate that the network reads, which resolve narrow peaks; 0 reads coordinates."""
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    """Hidden layers of the network."""
    steps: int = 6000
    """Training steps, at most."""
    batch_size: int = 256
    """Places per step, on each process."""
    lr: float = 2e-3
    """Peak learning rate (warm-up, then cosine to zero)."""
    patience: int = 8
    """Training stops after so many validations, a twentieth of the steps apart, without improvement."""
    resolution: int = 120
    """Rows of the map's grid, from pole to pole."""
    num: int = 5000
    """Samples for the picture."""
    out: Path | None = None
    """Where everything is written. Default: runs/earth-<data>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def build(options: Options) -> tuple[cflow.ContinuousFlow, objectives.Objective]:
    """Builds the flow on unit vectors, and the objective."""
    torch.manual_seed(options.seed)  # the network's initial weights
    if options.harmonics < 0:
        raise ValueError(f"--harmonics {options.harmonics}: pass 0 or more, such as 16.")
    if options.harmonics:  # coordinates are in [-1, 1], so a period of 4 repeats nothing
        field = fields.PeriodicMLP(3, hidden=options.hidden, harmonics=options.harmonics, period=4.0)
    else:
        field = fields.MLP(3, hidden=options.hidden)
    flow = cflow.ContinuousFlow(field, manifolds.Uniform(SPHERE), path=paths.Geodesic())
    if options.objective == "ffjord":
        if options.coupling != "independent":
            raise ValueError(
                f"--objective ffjord --coupling {options.coupling}: a likelihood pairs nothing; omit the latter."
            )
        return flow, objectives.FFJORD()
    transport = options.coupling == "optimal-transport"
    return flow, objectives.FlowMatching(couplings.OptimalTransport(cost=SPHERE.cost) if transport else None)


@torch.no_grad()
def per_steradian(flow, x: torch.Tensor, solver=None) -> torch.Tensor:
    """Computes log-densities ``[N]`` of places in degrees, in nats against the area of the unit sphere."""
    area = lambda part: flow.preprocess(part)[1]
    options = {} if solver is None else {"solver": solver}
    return torch.cat([flow.log_prob(part, **options) - area(part) for part in x.split(2048)])


def main(options: Options) -> None:
    started = time.perf_counter()
    places = earth_data.read(options.data, options.columns, options.drop_missing, options.distinct, options.seed)
    ending = "-distinct" * options.distinct + "-ffjord" * (options.objective == "ffjord")
    out = run_folder(options.out, f"earth-{places.name}{ending}", places.source, options.resume)
    sizes = ", ".join(f"{len(places.x[part]):,} to {use}" for part, use in earth_data.USES.items())
    say(f"{places.name}: {sizes}")
    for note in places.notes:
        say(note)
    flow, objective = build(options)
    whole = flow.with_transform(bijections.LatLon())  # shares the network
    count = sum(each.numel() for each in flow.parameters())
    say(f"{options.objective}: {count:,} parameters, {options.steps} steps at most; writing to {out}/")
    claim(out, places.source)
    run = train(whole, objective, places.x, options, out)
    if not MAIN:
        return
    what = "velocity, squared error per dimension"
    if options.objective == "ffjord":
        what = "negative log-density, nats per square degree"
    plot.training(run, out / "training.png", title=f"loss: {what}")

    whole = whole.double().eval()
    test = places.x["test"]
    kernels = kernel_density.sphere(*(units(places.x[part]) for part in ("train", "validation")))
    scores = {
        "flow": per_steradian(whole, test),
        "kernels": torch.from_numpy(kernels.log_prob(units(test))),
        "uniform": torch.full((len(test),), -SPHERE.log_volume, dtype=torch.float64),
    }
    found = {name: estimate(each) for name, each in scores.items()}
    degrees = whole.preprocess(test)[1]
    report = {
        "columns": places.columns,
        "repeated_rows": places.repeated,
        "test_rows_in_training": places.seen,
        "notes": places.notes,
        "steps": run.steps,
        "best_step": run.best_step,
        "training_seconds": run.seconds,
        "nats_per_steradian": {name: {"mean": mean, "error": error} for name, (mean, error) in found.items()},
        "kernels": {"width": kernels.width, "uniform_share": kernels.share},
        "log_prob_held_out": float((scores["flow"] + degrees).mean()),
    }
    say(f"{len(test):,} held-out places, nats per steradian (more is better), ± one standard error")
    about = {"kernels": f"kernels of {math.degrees(kernels.width):.1f} degrees", "uniform": "uniform on the sphere"}
    for name, (mean, error) in found.items():
        say(f"  {about.get(name, name):28s} {mean:8.3f} ± {error:.3f}")
    mean, error = estimate(scores["flow"] - scores["kernels"])
    say(f"  {'flow over kernels':28s} {mean:+8.3f} ± {error:.3f}")
    say(f"per square degree, as cflow score reports: {report['log_prob_held_out']:.3f}")

    fast = solvers.RK4(steps=16)  # a picture needs three digits; the figures above use the flow's own solver
    flow = flow.float().eval()
    plot.sphere(
        lambda x: flow.log_prob(x.float(), solver=fast),
        out / "density.png",
        samples=test[:1500],
        resolution=options.resolution,
        title=f"{places.name}: density and held-out places",
    )
    generator = torch.Generator().manual_seed(options.seed + 1)
    samples = whole.sample((options.num,), solver=fast, generator=generator)
    plot.sphere(samples, out / "samples.png", title=f"{options.num} samples")
    end_run(
        out,
        report,
        started,
        ["density.png", "samples.png", "training.png"],
        f"more places: cflow sample {out} --num 1000 --output more.png",
        f"scores of new places, per square degree: cflow score {out} new.csv --output scores.csv",
    )


def units(x: torch.Tensor):
    """Returns unit vectors ``[N, 3]`` of places in degrees, for scikit-learn."""
    return bijections.LatLon().encode(x)[0].numpy()


if __name__ == "__main__":
    run_recipe(main, Options, "earth.py")
