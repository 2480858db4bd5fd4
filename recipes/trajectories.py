"""Trajectories through snapshots: one flow through unpaired samples of a population at several times.

    python recipes/trajectories.py                             # a synthetic population that splits, about a minute
    python recipes/trajectories.py --data cells.npz --components 5         # arrays pcs [N, D] and sample_labels [N]
    python recipes/trajectories.py --data cells.csv --time-column day      # one row per cell, one column per feature

Each inner snapshot is left out once. A flow that was trained without it moves the snapshot before to that time, and the
distance to the snapshot (Wasserstein-1) is compared with two guesses that learn nothing: optimal-transport
interpolation between the snapshots before and after, which is hard to beat, and no motion at all.

Writes ``model/`` (trained on all snapshots), ``trajectories.png``, ``training.png`` and ``metrics.json`` into one
folder; the runs without a snapshot are in ``without-*/``.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed

import cflow
from cflow import bases, bijections, couplings, data, fields, metrics, objectives, plot, training
from cflow.cli import run_recipe

COUPLINGS = {"optimal transport": couplings.OptimalTransport(), "independent": couplings.Independent()}
METHODS = ("flow, optimal transport", "flow, independent", "OT interpolation", "no motion")
TIMES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of the synthetic snapshots
BLUE, ORANGE, GREY = "#2563a8", "#e07b39", "#a9afb7"


@dataclass
class Options:
    """Trains a flow through snapshots of a population, and measures how well it predicts a snapshot it never saw."""

    data: Path | None = None
    """A .npz or .csv file of samples with their times. Default: a synthetic population that splits in two."""
    components: int | None = None
    """Use the first so many columns, each scaled to unit variance. Default: all, unscaled."""
    values: tuple[str, ...] = ()
    """Name of the array (.npz), or names of the columns (.csv), of samples. Default: the usual names are tried."""
    time_column: str | None = None
    """Name of the array or column of times. Default: the usual names are tried."""
    drop_missing: bool = False
    """Omit rows with a missing value or time."""
    count: int = 1200
    """Points in the largest synthetic snapshot; the others are smaller."""
    interpolation: Literal["linear", "spline"] = "linear"
    """Curves through the coupled samples: straight from snapshot to snapshot, or smooth."""
    steps: int = 800
    """Training steps of each flow; there are two flows for each time left out, and one for all snapshots."""
    batch_size: int = 128
    """Samples of every snapshot per step; no more than the largest has."""
    hidden: tuple[int, ...] = (64, 64, 64)
    """Hidden layers of the network."""
    lr: float = 3e-3
    """Peak learning rate."""
    points: int = 2000
    """Most points of a snapshot to compare; the time for exact distances grows with their cube."""
    out: Path | None = None
    """Where everything is written. Default: runs/trajectories-<data>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def branching(count: int, t: float, generator: torch.Generator) -> torch.Tensor:
    """Draws from the synthetic population at time t: it moves right, splits 60 to 40 about t = 0.4, and spreads."""
    branch = torch.where(torch.rand(count, generator=generator) < 0.6, 1.0, -1.0)
    rest = min(max((t - 0.2) / 0.8, 0.0), 1.0)
    centre = torch.stack([torch.full((count,), 5.0 * t), 2.2 * branch * rest**2 * (3 - 2 * rest)], 1)
    return centre + (0.3 + 0.2 * t) * torch.randn(count, 2, generator=generator)


def load(options: Options, generator: torch.Generator) -> data.Snapshots:
    if options.data is None:
        sizes = [options.count * (4 + k) // 8 for k in range(len(TIMES))]
        return data.Snapshots([branching(n, t, generator) for n, t in zip(sizes, TIMES)], TIMES)
    values = (options.values[0] if len(options.values) == 1 else options.values) or None
    snapshots = data.read_snapshots(
        options.data, values=values, times=options.time_column, drop_missing=options.drop_missing
    )
    if snapshots.dropped:
        say(f"dropped {snapshots.dropped} row{'s' * (snapshots.dropped != 1)} with missing values")
    samples = [each.flatten(1).float() for each in snapshots.samples]
    if options.components is not None:
        if not 1 <= options.components <= samples[0].shape[1]:
            raise ValueError(f"--components {options.components}: the samples have {samples[0].shape[1]} columns.")
        samples = [each[:, : options.components] for each in samples]
        whiten = bijections.Standardise.fit(torch.cat(samples))
        samples = [whiten.encode(each)[0] for each in samples]
    return data.Snapshots(samples, snapshots.times)


def train(
    snapshots: data.Snapshots, coupling, options: Options, out: Path
) -> tuple[cflow.ContinuousFlow, training.Run]:
    """Trains a flow through snapshots with times from 0 to 1."""
    scale = bijections.Standardise.fit(
        torch.cat(snapshots.samples), pooled=(-1,)
    )  # one scale: distances keep their ratios
    torch.manual_seed(options.seed)  # the network's initial weights
    flow = cflow.ContinuousFlow(
        fields.MLP(snapshots.event_shape[0], hidden=options.hidden),
        bases.Empirical(scale.encode(snapshots.samples[0])[0]),
    ).with_transform(scale)
    run = training.fit(
        flow,
        objectives.MultiMarginal(snapshots.times, coupling, interpolation=options.interpolation),
        snapshots,
        steps=options.steps,
        batch_size=min(options.batch_size, len(snapshots)),
        lr=options.lr,
        schedule=training.Cosine(warmup=50),
        checkpoint_every=max(1, options.steps // 2),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    return flow.cpu().eval(), run


def move(flow: cflow.ContinuousFlow, x: torch.Tensor, start: float, stop: float) -> torch.Tensor:
    """Moves samples from one time to another along the flow, from data to data."""
    return flow.trajectory(flow.preprocess(x)[0], times=[start, stop])[-1]


def leave_out(snapshots: data.Snapshots, k: int, options: Options, out: Path, generator: torch.Generator):
    """Predicts snapshot k from the others: ``(guesses, distances, distances between halves)``, by method.

    Distances between samples never reach zero, and are larger for fewer points. So the floor is a distance between as
    many points: one half of the snapshot to the other, where the truth is known by samples alone.
    """
    some = lambda x: x[torch.randperm(len(x), generator=generator)[: options.points]]
    rest = snapshots.without(k)
    before, truth, after = (some(snapshots.samples[j]) for j in (k - 1, k, k + 1))
    start, at, stop = snapshots.times[k - 1 : k + 2]
    guesses = {}
    for name, coupling in COUPLINGS.items():
        say(f"training without t = {at:.3g}, coupling: {name}")
        flow, _ = train(rest, coupling, options, out / f"without-{k}-{name.replace(' ', '-')}")
        guesses[f"flow, {name}"] = move(flow, before, start, at)
    if not MAIN:
        return {}, {}, {}
    guesses["OT interpolation"] = metrics.ot_interpolation(
        before, after, (at - start) / (stop - start), len(before), generator=generator
    )
    guesses["no motion"] = before
    distances = {name: metrics.wasserstein1(guess, truth) for name, guess in guesses.items()}
    if options.data is None:
        distances["floor"] = metrics.wasserstein1(branching(len(before), at, generator), truth)
    half, other = truth.tensor_split(2)
    size = min(len(before), len(other))
    candidates = {**guesses, "floor": other}
    halves = {name: metrics.wasserstein1(guess[:size], half) for name, guess in candidates.items()}
    return guesses, distances, halves


def mean(rows: dict[int, dict[str, float]]) -> dict[str, float]:
    return {name: sum(row[name] for row in rows.values()) / len(rows) for name in next(iter(rows.values()))}


def table(rows: dict[str, dict[str, float]]) -> str:
    names = [*METHODS, "floor"]
    lines = [f"{'left out':14s}  " + "  ".join(names)]
    for label, row in rows.items():
        cells = (f"{row[name]:.3f}" if name in row else "" for name in names)
        lines.append(f"{label:14s}  " + "  ".join(f"{cell:>{len(name)}s}" for cell, name in zip(cells, names)))
    return "\n".join(lines)


def picture(snapshots, guesses, distances, trajectory, times, path: Path) -> None:
    """Draws the snapshots with paths of the flow, and each left-out snapshot with the predictions of it."""
    from matplotlib.figure import Figure

    plane = lambda x, t: x[:, :2] if x.shape[1] > 1 else torch.cat([torch.full_like(x, t), x], 1)
    columns = math.ceil(math.sqrt(1 + len(guesses)))
    lines = math.ceil((1 + len(guesses)) / columns)
    figure = Figure(figsize=(4.4 * columns, 4.0 * lines), dpi=130, layout="constrained")
    axes = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flatten()
    paths = torch.stack([plane(x, t) for x, t in zip(trajectory, times)])
    axes[0].plot(*paths.permute(2, 0, 1), color="black", lw=0.4, alpha=0.35)
    for t, x in zip(snapshots.times, snapshots.samples):
        shown = plane(x[:600], t)
        label = f"t = {t:.3g}" if len(snapshots.times) <= 8 else None
        axes[0].scatter(*shown.T, s=5, lw=0, alpha=0.6, c=[t] * len(shown), cmap="viridis", vmin=0, vmax=1, label=label)
    axes[0].set_title("snapshots, and paths of the flow through all", fontsize=9)
    for axis, (k, by_method) in zip(axes[1:], guesses.items()):
        t, row = snapshots.times[k], distances[k]
        axis.scatter(*plane(snapshots.samples[k][:600], t).T, s=18, lw=0, color=GREY, label="left out")
        for name, colour in ((METHODS[2], ORANGE), (METHODS[0], BLUE)):
            shown = plane(by_method[name][:600], t)
            axis.scatter(*shown.T, s=4, lw=0, alpha=0.7, color=colour, label=name.split(",")[0])
        values = f"$W_1$: flow {row[METHODS[0]]:.2f}, OT interpolation {row[METHODS[2]]:.2f}"
        axis.set_title(f"t = {t:.3g} left out; {values}", fontsize=9)
    for axis in axes[: 1 + len(guesses)]:
        axis.grid(alpha=0.2, lw=0.6)
        axis.set_axisbelow(True)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[:2]:
        for handle in axis.legend(fontsize=8, loc="best", framealpha=0.85, edgecolor="none").legend_handles:
            handle.set(alpha=1.0, sizes=[16.0])
    for axis in axes[1 + len(guesses) :]:
        axis.set_visible(False)
    figure.savefig(path)


def main(options: Options) -> None:
    started = time.perf_counter()
    name = "branching" if options.data is None else options.data.stem
    out = run_folder(options.out, f"trajectories-{name}", options.data or name, options.resume)
    generator = torch.Generator().manual_seed(options.seed)
    measured = load(options, generator)
    snapshots = measured.normalised()
    inner = range(1, len(snapshots.times) - 1)
    if not inner:
        raise ValueError(f"{name}: there are two snapshots, so none lies between others; three are needed.")
    say(f"{name}: {measured}; writing to {out}/")

    claim(out, options.data or name)
    guesses, distances, halves = {}, {}, {}
    for k in inner:
        guesses[k], distances[k], halves[k] = leave_out(snapshots, k, options, out, generator)
    say("training on all snapshots, coupling: optimal transport")
    flow, run = train(snapshots, COUPLINGS["optimal transport"], options, out)
    if options.resume:
        say_resumed(run)
    if not MAIN:
        return
    plot.training(run, out / "training.png", title="loss: mean squared error of the velocity")
    first = snapshots.samples[0][:150]
    trajectory = flow.trajectory(flow.preprocess(first)[0], times=41)
    moments = [i / 40 for i in range(41)]
    picture(snapshots, guesses, distances, trajectory, moments, out / "trajectories.png")

    rows = {f"t = {measured.times[k]:.4g}": row for k, row in distances.items()} | {"mean": mean(distances)}
    report = {
        "times": measured.times,
        "sizes": [len(each) for each in measured.samples],
        "wasserstein1": rows,
        "wasserstein1_of_halves": mean(halves),
        "best": min(METHODS, key=rows["mean"].get),
        "steps": run.steps,
    }
    shown = rows | {"mean of halves": report["wasserstein1_of_halves"]}
    say(f"Wasserstein-1 distance to the snapshot left out:\n{table(shown)}")
    truth = "; above, a second sample of the true population" if options.data is None else ""
    say(f"floor: for halves, one half of the snapshot to the other{truth}. Fewer points are farther apart.")
    say(f"nearest on the mean: {report['best']}")
    end_run(out, report, started, ["trajectories.png", "training.png"])


if __name__ == "__main__":
    run_recipe(main, Options, "trajectories.py", {"times": "time_column"})
