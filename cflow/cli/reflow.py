"""``cflow reflow``: straightens a trained flow, and distils it to few steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from cflow import metrics, plot
from cflow.cli.commands import command
from cflow.cli.runs import CONTINUOUS, device_of, folder_of, guidance_of, home_of, labels_of
from cflow.cli.samplers import needs_solver
from cflow.io import load, save
from cflow.solvers import Euler, by_name
from cflow.storage import read_json, write_json, written
from cflow.training import Constant, Pairs, distill, generate_pairs, is_main
from cflow.training import reflow as straighten

NOTE = "reflow.json"


@command
def reflow(
    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")],
    /,
    rounds: int = 1,
    pairs: int = 20_000,
    steps: int = 5000,
    distil: Annotated[int, tyro.conf.arg(name="distill")] = 0,
    solver: str = "heun",
    solver_steps: int = 20,
    guidance: float | None = None,
    batch_size: int = 256,
    lr: float = 1e-3,
    evaluations: tuple[int, ...] = (1, 2, 4, 8, 32),
    samples: int = 1000,
    seed: int = 0,
    device: str = "cpu",
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"])] = None,
) -> None:
    """Straighten a trained flow, so that it can be sampled in few steps, and measure the quality of few steps.

    Each round draws pairs of noise and sample and trains the next flow on them. After an interruption, the same command
    continues.

    Args:
        run: The folder of a run, or a folder that cflow.save wrote.
        rounds: Number of rounds.
        pairs: Pairs per round.
        steps: Training steps per round, and of the distillation.
        distil: Distil the flow of the last round to this number of network evaluations (0 means no distillation).
        solver: Solver that draws the pairs, such as heun, euler or rk4.
        solver_steps: Steps of that solver.
        guidance: Classifier-free guidance scale for the pairs of the first round. Default: that of the run.
        batch_size: Pairs per training step, and per batch of drawing.
        lr: Learning rate.
        evaluations: Numbers of network evaluations to measure.
        samples: Samples for each measurement.
        seed: Seed of all random numbers.
        device: Device such as cpu or cuda.
        output: The folder. Default: `reflow` next to the model.
    """
    folder = folder_of(run)
    flow = load(folder, device=device_of(device)).eval()
    needs_solver(flow, f"reflow {run}", CONTINUOUS)
    if min(rounds, pairs, steps, solver_steps, samples, *evaluations) < 1 or distil < 0:
        raise ValueError(
            f"--rounds {rounds} --pairs {pairs} --steps {steps} --evaluations {evaluations}: all must be at least 1."
        )
    out = home_of(folder) / "reflow" if output is None else output
    how = by_name(solver, steps=solver_steps)
    guided = guidance_of(flow, run, guidance).get("guidance")
    settings = {
        "pairs": pairs, "steps": steps, "solver": repr(how), "guidance": repr(guided), "batch_size": batch_size,
        "lr": lr, "seed": seed,
    }  # fmt: skip
    _claim(out, settings)
    options = {"steps": steps, "batch_size": batch_size, "lr": lr, "schedule": Constant(warmup=steps // 20)}
    options |= {"seed": seed, "device": device_of(device), "resume": True}
    flows, last = {"flow": flow}, flow
    for number in range(1, rounds + 1):
        # The first pairs include the guidance, so a flow that learns from them needs no guidance.
        chosen = {"guidance": guided} if number == 1 else {}
        made = _pairs(last, pairs, out / f"pairs-{number}", how, seed + number, batch_size, chosen)
        last = _trained(out / f"round-{number}", straighten, (last, made), options)
        flows[f"round {number}"] = last
    if distil:
        made = _pairs(last, pairs, out / f"pairs-{rounds + 1}", how, seed + rounds + 1, batch_size, {})
        flows[f"distilled {distil}"] = _trained(out / f"distilled-{distil}", distill, (last, made, distil), options)
    if is_main():
        shown = sorted({*evaluations, distil} - {0})
        _report(flows, shown, samples, how, guided, seed, out)


def _claim(out: Path, settings: dict) -> None:
    """Writes the settings to the folder, or raises if the folder has other settings."""
    file = out / NOTE
    if file.is_file():
        try:
            before = read_json(file)
        except ValueError as error:
            raise ValueError(f"{error} Pass another --output, or remove the folder.") from None
        changed = [name for name in settings if before.get(name) != settings[name]]
        if changed:
            raise ValueError(
                f"{out}: started with --{changed[0].replace('_', '-')} {before.get(changed[0])}, not "
                f"{settings[changed[0]]}; pass the same, or another --output."
            )
        return
    if is_main():
        write_json(file, settings)


def _pairs(flow, num: int, place: Path, solver, seed: int, batch_size: int, options: dict) -> Pairs:
    print(f"{place}: drawing {num} pairs", file=sys.stderr)
    return generate_pairs(flow, num, place, solver=solver, seed=seed, batch_size=batch_size, **options)


def _trained(place: Path, train, given: tuple, options: dict):
    """Trains into a folder, or loads the result of an earlier call."""
    if not (place / "done").is_file():
        print(f"{place}: training", file=sys.stderr)
        flow = train(*given, out=place, **options)
        if is_main():
            save(flow, place / "model")  # again: now with the solver of the distilled flow
            (place / "done").touch()
    return load(place / "model", device=options["device"]).eval()


@torch.no_grad()
def _report(flows: dict, evaluations, count: int, solver, guided, seed: int, out: Path) -> None:
    """Compares samples of every flow, drawn with few Euler steps, with samples of the first flow and its solver."""
    first = flows["flow"]
    draw = lambda flow, solver, number, guidance: _draw(flow, solver, count, seed + number, guidance)[1]
    reference, again = (draw(first, solver, number, guided) for number in (1_000_001, 1_000_002))
    floor = metrics.energy_distance(reference.flatten(1), again.flatten(1), empirical=True).value  # never below zero
    table, pictures, straightness, cost = {}, [], {}, {}
    for name, flow in flows.items():
        guidance = guided if name == "flow" else None
        distilled = name.startswith("distilled")
        table[name] = {}
        for calls in evaluations:
            if distilled and calls != flow.solver.steps:
                continue
            x = draw(flow, Euler(steps=calls), 1_000_003, guidance)
            table[name][calls] = metrics.energy_distance(x.flatten(1), reference.flatten(1), empirical=True).value
            pictures.append((f"{name}, {calls} evaluation{'s' * (calls > 1)}", x))
        grid = [k / 32 for k in range(33)]
        steps_of = flow.solver if distilled else Euler(steps=32)
        x0, x1, *states = _draw(
            flow, steps_of, min(count, 256), seed + 1_000_004, guidance, at=None if distilled else grid
        )
        cost[name] = metrics.transport_cost(x0, x1)
        if states:  # a distilled flow has no paths between its steps
            straightness[name] = metrics.straightness(*states, torch.tensor(grid))
    report = {"floor": floor, "energy_distance": table}
    report |= {"straightness": {name: vars(each) for name, each in straightness.items()}}
    report |= {"transport_cost": {name: vars(each) for name, each in cost.items()}}
    with written(out / "metrics.json") as part:
        part.write_text(json.dumps(report, indent=1) + "\n")
    print(f"energy distance to samples of the first flow by {solver!r} (between two sets of these: {floor:.4f})")
    heads = "".join(f"{calls:>10d}" for calls in evaluations)
    print(f"{'evaluations':14s}{heads}{'straightness':>20s}{'transport cost':>20s}")
    for name, row in table.items():
        shown = "".join("          " if calls not in row else f"{row[calls]:10.4f}" for calls in evaluations)
        print(f"{name:14s}{shown}{straightness.get(name, '-')!s:>20s}{cost[name]!s:>20s}")
    picture = _picture(first, pictures, reference, len(evaluations), out)
    places = [str(out / name.replace(" ", "-")) for name in flows if name != "flow"]
    print(f"models: {', '.join(places)}" + (f"; picture: {picture}" if picture else ""))


def _draw(flow, solver, count: int, seed: int, guidance, at=None) -> tuple[Tensor, ...]:
    """Draws samples in model space, every class in turn: starts of the paths, their ends, and states in between."""
    labels = labels_of(flow, None, count)
    generator = torch.Generator(device=flow.device).manual_seed(seed)
    x0 = flow.cast(flow.base.sample((count,), generator=generator))
    labels = None if labels is None else labels.to(x0.device)
    parts = [
        flow.transport(x0[i : i + 256], 0.0, 1.0, None if labels is None else labels[i : i + 256], solver=solver,
                       guidance=guidance, at=at)
        for i in range(0, count, 256)
    ]  # fmt: skip
    ends = x0.cpu(), torch.cat([part.y for part in parts]).cpu()
    return ends if at is None else (*ends, torch.cat([part.trajectory for part in parts], 1).cpu())


def _picture(flow, pictures: list[tuple[str, Tensor]], reference: Tensor, columns: int, out: Path) -> Path | None:
    """Draws a picture: ten images per row, or points in the plane; None for other events."""
    place = out / "few-steps.png"
    data = lambda x: flow.postprocess(x, labels_of(flow, None, len(x)))[0]  # labels as when drawn: every class in turn
    if len(flow.event_shape) == 3 and flow.event_shape[0] in (1, 3):
        pixels = torch.cat([data(x[:10]).float() for _, x in pictures])
        low, high = pixels.min(), pixels.max()
        names = [name for name, _ in pictures]
        plot.images((pixels - low) / (high - low), place, columns=10, rows=names)
        return place
    if flow.event_shape == (2,):
        points = {name: data(x) for name, x in pictures}
        plot.scatters(points, place, reference=data(reference), columns=columns)
        return place
    return None
