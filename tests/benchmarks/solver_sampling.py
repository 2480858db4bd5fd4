"""Samples of equal cost: what solvers make of 4, 8, 16 and 32 calls of a trained network.

    OMP_NUM_THREADS=1 python tests/benchmarks/solver_sampling.py                          # 2-D alone, two minutes
    OMP_NUM_THREADS=1 python tests/benchmarks/solver_sampling.py --model runs/images-digits   # and the digits
    OMP_NUM_THREADS=1 python tests/benchmarks/solver_sampling.py --parts digits           # trains them first

Every solver starts from the same base samples. The first table is the root mean square distance to where 1000 calls of
RK4 (250 steps) end; the second compares the samples with new data: exact W2 in two dimensions, the energy distance of
the digits, where the last line is the reference itself. ``bespoke`` is fitted to the flow for each number of calls,
on base samples of its own (its seconds are printed). The digits are drawn with classifier-free guidance as the recipe
does (``--guidance 1`` for none). It may be stopped and run again: every number of calls is a cell of its own in
``--out``, and so is the reference (of the digits, most of the time).
"""

import argparse
import os
import statistics
import time
from pathlib import Path

import cells
import numpy as np
import torch

import cflow
from cflow import (
    bases,
    bijections,
    couplings,
    data,
    fields,
    guidance,
    metrics,
    objectives,
    paths,
    solvers,
    times,
    training,
)

CALLS = (4, 8, 16, 32)
GENERIC = {
    "Euler": solvers.Euler,
    "Heun": lambda calls: solvers.Heun(nfe=calls),
    "RK4": lambda calls: solvers.RK4(nfe=calls),
    "AB2": solvers.AdamsBashforth,
    "AB3": lambda calls: solvers.AdamsBashforth(calls, order=3),
    "DPM++2M": solvers.DPMSolverPP2M,
    "UniPC2": solvers.UniPC,
    "UniPC3": lambda calls: solvers.UniPC(calls, order=3),
    "DEIS2": solvers.DEIS,
    "DEIS3": lambda calls: solvers.DEIS(calls, order=3),
}


def two_dimensional(options):
    """Trains moons as the README does, but with independent pairs, whose paths bend more."""
    torch.manual_seed(options.seed)
    points = data.toys.moons(10_000, generator=torch.Generator().manual_seed(options.seed))
    path = getattr(paths, options.path)(options.predict)
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(64, 64, 64)), bases.Normal(2), path=path)
    coupling = couplings.OptimalTransport() if options.transport else couplings.Independent()
    objective = objectives.FlowMatching(coupling=coupling, times=times.Uniform())
    training.fit(flow, objective, points, steps=options.steps, batch_size=256, lr=1e-3, seed=options.seed)
    fresh = data.toys.moons(options.samples, generator=torch.Generator().manual_seed(options.seed + 1))
    return flow.eval(), None, None, lambda x: metrics.wasserstein2(x, fresh)


def digits(options):
    """Loads the digits' model, or trains it as ``recipes/images.py`` does."""
    images = data.digits()
    if options.model is not None:
        folder = options.model / "model"
        flow = cflow.load(folder if folder.is_dir() else options.model).eval()
    else:
        torch.manual_seed(options.seed)
        shape = images.event_shape
        field = fields.UNet(shape[0], shape[1], width=32, attention=(), classes=10)
        flow = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Linear(), context_shape=())
        flow = flow.with_transform(bijections.Dequantise(shape, images.levels), bijections.Rescale(shape))
        objective = objectives.FlowMatching(times=times.Stratified(times.Uniform()), condition_dropout=0.1)
        training.fit(
            flow, objective, (images.train, images.train_labels), steps=700, batch_size=128, lr=2e-3, seed=options.seed,
            schedule=training.Cosine(warmup=100), ema=training.EMA(decay=0.99), progress=True,
        )  # fmt: skip
        flow = flow.eval()
    labels = torch.arange(options.images) % 10
    guide = None if options.guidance == 1 else guidance.ClassifierFree(options.guidance)
    real = images.test.flatten(1).float() / (images.levels - 1)

    def distance(x):
        pixels = flow.postprocess(x)[0].flatten(1).float() / (images.levels - 1)
        return metrics.energy_distance(pixels, real, empirical=True).value

    return flow, labels, guide, distance


@torch.no_grad()
def carried(flow, x, labels, guide, solver):
    """Carries base samples to the data in portions; gives them with the calls that it took."""
    ends, calls = [], set()
    for index in range(0, len(x), 256):
        here = None if labels is None else labels[index : index + 256]
        solution = flow.transport(x[index : index + 256], 0.0, 1.0, here, solver=solver, guidance=guide)
        ends.append(solution.y)
        calls.add(solution.stats.nfe)
    return torch.cat(ends), max(calls)


def reference(name, flow, x, labels, guide, options):
    """Carries the base samples by 1000 calls, once: a later run reads where they ended."""
    file = options.out / f"{name}-reference.npy"
    if not file.exists():
        begun = time.perf_counter()
        exact, _ = carried(flow, x, labels, guide, solvers.RK4(nfe=1000))
        print(f"the reference took {time.perf_counter() - begun:.0f} s", flush=True)
        part = file.with_suffix(".part.npy")
        np.save(part, exact.numpy())
        os.replace(part, file)
    return torch.from_numpy(np.load(file))


def measure(flow, x, labels, guide, exact, distance, calls, options):
    """Gives the errors and distances of every solver after so many calls, and the seconds that fitting one took."""
    begun = time.perf_counter()
    context = None if labels is None else torch.arange(10)
    fitted = training.fit_bespoke(
        flow, calls, seed=options.seed, context=context, guidance=guide, iterations=options.iterations
    )
    fit = time.perf_counter() - begun
    errors, distances, beyond = {}, {}, []
    for label, make in {**GENERIC, "bespoke": lambda _: fitted}.items():
        if (label == "Heun" and calls % 2) or (label == "RK4" and calls % 4):
            continue
        y, taken = carried(flow, x, labels, guide, make(calls))
        if taken != calls:
            beyond.append(f"{label} {taken} in place of {calls}")
        errors[label] = float((y - exact).square().mean().sqrt())
        distances[label] = distance(y)
    return {"errors": errors, "distances": distances, "fit": fit, "beyond": beyond}


def table(name, flow, labels, guide, distance, options):
    """Measures every solver, or reads what an earlier run has measured, and prints the two tables."""
    count = options.samples if labels is None else len(labels)
    x = flow.base.sample((count,), generator=torch.Generator().manual_seed(options.seed + 2))
    print(f"\n{name}: {count} samples, {flow.path!r}", flush=True)
    settings = {key: str(value) for key, value in vars(options).items() if key not in ("parts", "calls", "out")}
    waiting = cells.missing([(name, calls) for calls in options.calls], options.out, settings)
    exact = reference(name, flow, x, labels, guide, options)
    for job in waiting:
        cells.write(options.out, job, measure(flow, x, labels, guide, exact, distance, job[1], options), settings)
    found = {calls: cells.read(options.out, name, calls) for calls in options.calls}
    for key, title in (("errors", "root mean square error against 1000 calls"), ("distances", "distance to new data")):
        print(f"{title}\n  {'calls':10s}" + "".join(f"{calls:>10d}" for calls in options.calls))
        for label in (*GENERIC, "bespoke"):
            row = (found[calls][key].get(label) for calls in options.calls)
            print(f"  {label:10s}" + "".join("          " if each is None else f"{each:10.4f}" for each in row))
    print(f"  {'1000 calls':10s}" + "".join(f"{distance(exact):10.4f}" for _ in options.calls))
    fits, beyond = (
        [each["fit"] for each in found.values()],
        sorted({one for each in found.values() for one in each["beyond"]}),
    )
    print(f"fits of bespoke: {', '.join(f'{each:.0f}' for each in fits)} s, median {statistics.median(fits):.0f} s")
    if beyond:
        print(f"calls with those for the ends of the path: {'; '.join(beyond)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=["2d", "digits"], help="2d, and digits where --model is given")
    parser.add_argument("--model", type=Path, help="the digits' run, or its folder model")
    parser.add_argument("--calls", nargs="+", type=int, default=CALLS)
    parser.add_argument("--samples", type=int, default=2000, help="in two dimensions")
    parser.add_argument("--images", type=int, default=500, help="digits drawn")
    parser.add_argument("--steps", type=int, default=2000, help="training steps in two dimensions")
    parser.add_argument("--iterations", type=int, default=400, help="of the bespoke fits")
    parser.add_argument("--path", default="Linear", help="path in two dimensions")
    parser.add_argument("--predict", default="velocity", help="what the 2-D network predicts")
    parser.add_argument("--transport", action="store_true", help="train in two dimensions on optimal-transport pairs")
    parser.add_argument("--guidance", type=float, default=1.3, help="of the digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/solver-sampling"), help="where finished cells are kept")
    options = parser.parse_args()
    parts = options.parts or (["2d"] if options.model is None else ["2d", "digits"])
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    if "2d" in parts:
        begun = time.perf_counter()
        trained = two_dimensional(options)
        print(f"trained in {time.perf_counter() - begun:.0f} s")
        table("moons", *trained, options)
    if "digits" in parts:
        table("digits", *digits(options), options)


if __name__ == "__main__":
    main()
