"""Angles: the density of torsion angles on a torus, by geodesic flow matching, with Ramachandran pictures.

    python recipes/angles.py                                            # a mixture of wrapped normals made on the spot
    python recipes/angles.py --data torsions.csv --columns phi psi      # angles in degrees, one row per residue
    python recipes/angles.py --data torsions.csv --columns phi psi chi1 # three angles
    cflow score runs/angles-torsions new.csv --output scores.csv        # then, for new rows

Angles are in degrees, of any range; 190 is the same as -170. The rows are split at random: 80 % to train, 10 % to
decide when to stop, 10 % to report. Held-out log-densities are in nats per radian to the power of the number of angles,
the unit of published figures; ``flow.log_prob`` and ``cflow score`` are per degree, since that is what the file has.

Writes ``model/`` (a flow of angles in degrees), ``density.png`` (for two angles), ``samples.png``, ``held-out.png``,
``training.png`` and ``metrics.json`` into one folder.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path

import kernel_density
import torch
from common import MAIN, claim, end_run, run_folder, say
from earth_data import split
from manifold_training import estimate, train

import cflow
from cflow import bijections, couplings, data, fields, manifolds, objectives, paths, plot, solvers
from cflow.cli import counted, run_recipe

MADE = "wrapped-normals"  # the name of the data that are made on the spot
WEIGHTS = (0.35, 0.25, 0.2, 0.15, 0.05)
MEANS = ((-1.1, -0.7), (-1.2, 2.4), (-2.3, 2.7), (-1.6, 0.1), (1.0, 0.8))  # one cluster crosses the seam
WIDTHS = ((0.15, 0.2), (0.25, 0.3), (0.4, 0.45), (0.35, 0.4), (0.2, 0.25))


@dataclass
class Options:
    """Estimates the density of angles."""

    data: Path | None = None
    """A .csv, .tsv, .npy or .npz table of angles in degrees. Default: a mixture of wrapped normals made on the spot."""
    columns: tuple[str, ...] = ()
    """Names (or numbers, from 0) of the angles, two or more. Default: all columns."""
    drop_missing: bool = False
    """Omit rows with a missing value."""
    count: int = 20_000
    """Rows of the mixture that is made on the spot."""
    harmonics: int = 4
    """Multiples of each angle whose sines and cosines the network reads."""
    transport: bool = False
    """Pair base and data samples of each batch by optimal transport."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Hidden layers of the network."""
    steps: int = 4000
    """Training steps, at most."""
    batch_size: int = 256
    """Rows per step, on each process."""
    lr: float = 2e-3
    """Peak learning rate (warm-up, then cosine to zero)."""
    patience: int = 8
    """Training stops after so many validations, a twentieth of the steps apart, without improvement."""
    resolution: int = 120
    """Squares of the picture's grid along each angle."""
    num: int = 5000
    """Samples for the pictures."""
    out: Path | None = None
    """Where everything is written. Default: runs/angles-<data>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def made(count: int, generator: torch.Generator) -> torch.Tensor:
    """Draws angles in degrees from the mixture of wrapped normals, float64 ``[count, 2]``."""
    which = torch.multinomial(torch.tensor(WEIGHTS), count, replacement=True, generator=generator)
    noise = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    x = torch.tensor(MEANS, dtype=torch.float64)[which] + torch.tensor(WIDTHS, dtype=torch.float64)[which] * noise
    return torch.remainder(torch.rad2deg(x) + 180, 360) - 180


def true_log_prob(x: torch.Tensor) -> torch.Tensor:
    """Computes the log-density ``[N]`` of the mixture at angles in radians, per radian squared."""
    means, widths = (torch.tensor(each, dtype=torch.float64) for each in (MEANS, WIDTHS))
    turns = 2 * math.pi * torch.arange(-2, 3, dtype=torch.float64)
    away = (x[:, None, None] - means[:, None] + turns[:, None]) / widths[:, None]  # [N, components, turns, 2]
    each = (-away.square() / 2 - widths[:, None].log() - math.log(2 * math.pi) / 2).logsumexp(2).sum(-1)
    return (each + torch.tensor(WEIGHTS, dtype=torch.float64).log()).logsumexp(1)


def read(options: Options) -> tuple[torch.Tensor, list[str], list[str]]:
    """Reads angles in degrees ``[N, D]`` from -180 to 180; returns them, their names and notes."""
    if options.data is None:
        return made(options.count, torch.Generator().manual_seed(options.seed)), ["phi", "psi"], []
    file = data.TableFile(options.data)
    table = file.choose(options.columns or file.columns).read(drop_missing=options.drop_missing)
    values = table.values
    notes = [f"dropped {counted(table.dropped, 'row')} with missing values"] if table.dropped else []
    if values.shape[1] < 2:
        raise ValueError(f"--data {options.data}: {counted(values.shape[1], 'column')}; pass two --columns or more.")
    if len(values) < 100:
        raise ValueError(f"--data {options.data}: {counted(len(values), 'row')}; a density takes 100 or more.")
    if float(values.abs().max()) <= 2 * math.pi:
        raise ValueError(
            f"--data {options.data}: no angle is larger than {float(values.abs().max()):.3g}, so these are radians; "
            f"multiply them by 180 / pi."
        )
    if repeated := len(values) - len(values.unique(dim=0)):
        notes.append(f"{counted(repeated, 'row')} of {len(values)} repeat others; held-out copies have a high density")
    names = list(table.names or map(str, options.columns or range(values.shape[1])))
    return torch.remainder(values + 180, 360) - 180, names, notes


def build(dim: int, options: Options) -> tuple[cflow.ContinuousFlow, objectives.Objective]:
    """Builds the flow of angles in radians, and the objective."""
    torch.manual_seed(options.seed)  # the network's initial weights
    torus = manifolds.FlatTorus(dim)
    field = fields.PeriodicMLP(dim, hidden=options.hidden, harmonics=options.harmonics)
    flow = cflow.ContinuousFlow(field, manifolds.Uniform(torus), path=paths.Geodesic())
    return flow, objectives.FlowMatching(couplings.OptimalTransport(cost=torus.cost) if options.transport else None)


def main(options: Options) -> None:
    started = time.perf_counter()
    values, names, notes = read(options)
    name, source = (MADE, MADE) if options.data is None else (options.data.stem, options.data)
    out = run_folder(options.out, f"angles-{name}", source, options.resume)
    parts, dim = split(values, options.seed), values.shape[1]
    say(f"{name}, {', '.join(names)}: {', '.join(f'{len(x):,} to {part}' for part, x in parts.items())}")
    for note in notes:
        say(note)
    flow, objective = build(dim, options)
    whole = flow.with_transform(bijections.Standardise(dim, scale=180 / math.pi))  # shares the network
    count = sum(each.numel() for each in flow.parameters())
    say(f"{count:,} parameters, {options.steps} steps at most; writing to {out}/")
    claim(out, source)
    run = train(whole, objective, parts, options, out)
    if not MAIN:
        return
    plot.training(run, out / "training.png", title="loss: velocity, squared error per angle")

    whole = whole.double().eval()
    radians = {part: torch.deg2rad(x) for part, x in parts.items()}
    test = radians["test"]
    kernels = kernel_density.torus(*(radians[part].numpy() for part in ("train", "validation")))
    with torch.no_grad():
        scores = {"flow": torch.cat([flow.log_prob(part) for part in test.split(2048)])}
    scores["kernels"] = torch.from_numpy(kernels.log_prob(test.numpy()))
    scores["uniform"] = torch.full_like(test[:, 0], -flow.manifold.log_volume)
    if options.data is None:
        scores["true density"] = true_log_prob(test)
    found = {key: estimate(each) for key, each in scores.items()}
    report = {
        "columns": names,
        "notes": notes,
        "steps": run.steps,
        "best_step": run.best_step,
        "training_seconds": run.seconds,
        "nats_per_radian": {key: {"mean": mean, "error": error} for key, (mean, error) in found.items()},
        "kernels": {"width": kernels.width, "uniform_share": kernels.share},
        "log_prob_held_out": found["flow"][0] + dim * math.log(math.pi / 180),
    }
    say(f"{len(test):,} held-out rows, nats per radian^{dim} (more is better), ± one standard error")
    about = {"kernels": f"kernels of {math.degrees(kernels.width):.1f} degrees", "uniform": "uniform on the torus"}
    for key, (mean, error) in found.items():
        say(f"  {about.get(key, key):28s} {mean:8.3f} ± {error:.3f}")
    mean, error = estimate(scores["flow"] - scores["kernels"])
    say(f"  {'flow over kernels':28s} {mean:+8.3f} ± {error:.3f}")
    say(f"per degree^{dim}, as cflow score reports: {report['log_prob_held_out']:.3f}")

    fast = solvers.RK4(steps=16)  # a picture needs three digits; the figures above use the flow's own solver
    generator = torch.Generator().manual_seed(options.seed + 1)
    drawn = flow.sample((options.num,), solver=fast, generator=generator)
    plot.torus(drawn, out / "samples.png", names=names, title=f"{options.num} samples")
    plot.torus(test, out / "held-out.png", names=names, title=f"{len(test)} held-out rows")
    pictures = ["samples.png", "held-out.png", "training.png"]
    if dim == 2:
        flow.float()
        plot.torus(
            lambda x: flow.log_prob(x, solver=fast),
            out / "density.png",
            samples=test[:1500],
            names=names,
            resolution=options.resolution,
            title=f"{name}: density and held-out rows",
        )
        pictures.insert(0, "density.png")
    end_run(
        out,
        report,
        started,
        pictures,
        f"more rows: cflow sample {out} --num 1000 --output more.csv",
        f"scores of new rows, per degree: cflow score {out} new.csv --output scores.csv",
    )


if __name__ == "__main__":
    run_recipe(main, Options, "angles.py")
