"""Densities on manifolds after one evaluation: whole steps next to the flow's own equation.

    OMP_NUM_THREADS=1 python tests/benchmarks/one_step.py --data DATA            # every cell; interrupt at will
    python tests/benchmarks/one_step.py --data DATA --problems fire --methods lagrangian --seconds 60 --out /tmp/one
    python tests/benchmarks/one_step.py --table                                  # only print what is there

Every cell (problem, method, seed) leaves one JSON file in ``--out``; a cell that is there is not computed again. Run
``--processes 1`` where timings count. ``DATA`` is the folder of data sets (default: ``CFLOW_DATA``).

Problems: ``fire`` and ``flood``, places on the earth as points of a sphere (``earth/*.csv``, degrees); ``cys``, the
angles phi and psi of cysteines on a torus (``torus/rota8000-cys.csv``); ``rotations``, 20,000 draws of a mixture of
eight wrapped normals on SO(3) (scales 0.1 to 0.4), whose own density is known. Ten per cent of the rows, drawn by the
seed, are held out; rows are not de-duplicated.

One network for all, an MLP of three layers of ``--width`` with two times, between the uniform distribution and the
data. Training takes ``--seconds`` of processor time: 40 per cent of it flow matching, the rest the method's objective
with ``share=0.5, both_ways=True``, each with Adam and a rate that falls from 1e-3 to zero by a cosine; no averaged
weights. ``semigroup`` is ``objectives.Shortcut(steps=32)``, ``lagrangian`` ``LagrangianSelfDistillation``, ``eulerian``
``MeanFlow``.

Columns: mean log-density of held-out rows, nats, with respect to the Riemannian volume (per steradian, per square
radian, and the volume 8 pi^2 of SO(3)); higher is better. ``FlowMap(steps)`` goes from the data to the base in 1, 2 and
4 evaluations, and has its density by products in forward mode; the equation is ``GeodesicRK4(steps=25)``, 100
evaluations with their divergences. A learned step back that folds has a density whose integral is more than one. So
the columns of whole steps are **normalised**: the logarithm of the integral, an average over ``--samples`` uniform
points, is subtracted. ``integral`` is that of one evaluation, with its standard error. ``gap`` is the equation minus
one evaluation. ``round trip`` is the median distance between a uniform point and itself after one step to the data and
one back. ``truth`` is the known density of ``rotations``.

Source of the method: Davis et al., Generalised Flow Maps, 2025, arXiv:2510.21608.
"""

import argparse
import math
import os
import time
from functools import partial
from pathlib import Path

from cells import over_seeds, read, run, shown

PROBLEMS = ("fire", "flood", "cys", "rotations")
METHODS = ("semigroup", "lagrangian", "eulerian")
STEPS = (1, 2, 4)


def mixture():
    """Builds the wrapped normals of ``rotations``, always the same ones."""
    import torch

    from cflow import manifolds

    space, generator = manifolds.SO3(), torch.Generator().manual_seed(0)
    centres, scales = space.uniform((8,), generator=generator), torch.linspace(0.1, 0.4, 8)
    return [manifolds.WrappedNormal(space, centre, float(scale)) for centre, scale in zip(centres, scales)]


def rows(problem, folder):
    """Returns the manifold of a problem and all its points."""
    import numpy
    import torch

    from cflow import manifolds

    if problem == "rotations":
        generator, parts = torch.Generator().manual_seed(1), mixture()
        return manifolds.SO3(), torch.cat([each.sample((2500,), generator=generator) for each in parts])
    if problem == "cys":
        file = Path(folder) / "torus" / "rota8000-cys.csv"
        angles = numpy.genfromtxt(file, delimiter=",", usecols=(1, 2), comments=None)
        angles = numpy.deg2rad(angles[numpy.isfinite(angles).all(1)])
        return manifolds.FlatTorus(2), torch.as_tensor(angles, dtype=torch.float32)
    skip = {"fire": 1, "flood": 2}[problem]
    places = numpy.loadtxt(Path(folder) / "earth" / f"{problem}.csv", delimiter=",", skiprows=skip)
    lat, lon = numpy.deg2rad(places).T
    points = numpy.stack((numpy.cos(lat) * numpy.cos(lon), numpy.cos(lat) * numpy.sin(lon), numpy.sin(lat)), 1)
    return manifolds.Sphere(2), torch.as_tensor(points, dtype=torch.float32)


def network(manifold, width):
    import torch

    from cflow import fields

    class Flattened(torch.nn.Module):
        """A network of vectors at points of any shape."""

        two_times = True

        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, t, x, context=None, *, s=None):
            return self.inner(t, x.flatten(1), s=s).view_as(x)

    if type(manifold).__name__ == "FlatTorus":
        return fields.PeriodicMLP(2, hidden=(width,) * 3, harmonics=6, two_times=True)
    return Flattened(fields.MLP(manifold.event_shape.numel(), hidden=(width,) * 3, two_times=True))


def train(flow, objective, x, seconds, batch_size, generator):
    """Takes steps for some seconds of the processor; returns how many."""
    import torch

    optimiser = torch.optim.Adam(flow.parameters(), lr=1e-3)
    begun, steps = time.process_time(), 0
    while (spent := time.process_time() - begun) < seconds:
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        batch = x[torch.randint(len(x), (batch_size,), generator=generator)]
        optimiser.zero_grad(set_to_none=True)
        objective(flow, batch, generator=generator).mean().backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 1.0)
        optimiser.step()
        steps += 1
    flow.record(objective)
    return steps


def cell(problem, method, seed, *, folder, seconds, width, batch_size, samples):
    import torch

    from cflow import ContinuousFlow, manifolds, objectives, paths, solvers

    manifold, x = rows(problem, folder)
    generator = torch.Generator().manual_seed(seed)
    x = x[torch.randperm(len(x), generator=generator)]
    held, x = x[: len(x) // 10], x[len(x) // 10 :]
    torch.manual_seed(seed)
    flow = ContinuousFlow(network(manifold, width), manifolds.Uniform(manifold), path=paths.Geodesic())
    options = {"share": 0.5, "both_ways": True}
    objective = {
        "semigroup": partial(objectives.Shortcut, steps=32),
        "lagrangian": objectives.LagrangianSelfDistillation,
        "eulerian": objectives.MeanFlow,
    }[method](**options)
    first = train(flow, objectives.FlowMatching(), x, 0.4 * seconds, batch_size, generator)
    second = train(flow, objective, x, 0.6 * seconds, batch_size, generator)
    result, scored = {"steps": (first, second), "logp": {}, "integral": {}, "seconds": {}}, time.process_time
    with torch.no_grad():
        for name, solver in [*((n, solvers.FlowMap(steps=n)) for n in STEPS), (100, solvers.GeodesicRK4(steps=25))]:
            begun = scored()
            result["logp"][name] = float(flow.log_prob(held, solver=solver).mean())
            result["seconds"][name] = scored() - begun
        whole, uniform = solvers.FlowMap(steps=1), manifold.uniform((samples,), generator=generator)
        for steps in STEPS:
            density = flow.log_prob(uniform, solver=solvers.FlowMap(steps=steps)) + manifold.log_volume
            result["integral"][steps] = float(density.exp().mean()), float(density.exp().std()) / samples**0.5
        there = flow.transport(uniform, 0.0, 1.0, solver=whole).y
        back = flow.transport(there, 1.0, 0.0, solver=whole).y
        result["round_trip"] = float(manifold.dist(uniform, back).median())
        if problem == "rotations":
            truth = torch.stack([each.log_prob(held) for each in mixture()]).logsumexp(0) - math.log(8)
            result["truth"] = float(truth.mean())
    return result


def normalised(result, steps):
    """Returns the mean log-density minus the logarithm of the integral, which is one for the equation."""
    integral = result["integral"].get(steps, (1.0, 0.0))[0]
    return result["logp"][steps] - math.log(integral)


def table(out, problems, methods, seeds):
    heads = "".join(f"{n:>14d}" for n in (*STEPS, 100))
    rest = f"{'gap':>14s}{'integral':>16s}{'round trip':>12s}{'truth':>8s}{'steps':>15s}"
    print(f"{'nats, after evaluations':24s}{heads}{rest}")
    for problem in problems:
        for method in methods:
            got = [each for each in (read(out, problem, method, seed) for seed in seeds) if each]
            if not got:
                continue
            nats = [[normalised(each, str(n)) for each in got] for n in (*STEPS, 100)]
            line = "".join(f"{shown(over_seeds(each)):>14s}" for each in nats)
            gap = shown(over_seeds([last - one for one, last in zip(nats[0], nats[-1])]))
            integral = shown(got[0]["integral"]["1"])
            trip = f"{over_seeds([each['round_trip'] for each in got])[0]:.3f}"
            truth = over_seeds([each.get("truth") for each in got])
            steps = " + ".join(map(str, got[0]["steps"]))
            print(
                f"{problem + ' ' + method:24s}{line}{gap:>14s}{integral:>16s}{trip:>12s}"
                f"{'-' if truth is None else f'{truth[0]:.3f}':>8s}{steps:>15s}"
            )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CFLOW_DATA", "data"))
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=PROBLEMS)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS[:2])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/one-step"))
    parser.add_argument("--table", action="store_true", help="Only prints the cells that are there.")
    options = parser.parse_args()
    if not options.table:
        settings = {
            "folder": options.data, "seconds": options.seconds, "width": options.width,
            "batch_size": options.batch_size, "samples": options.samples,
        }  # fmt: skip
        jobs = [(p, m, seed) for p in options.problems for m in options.methods for seed in options.seeds]
        run(cell, jobs, options.out, settings, options.processes)
    table(options.out, options.problems, options.methods, options.seeds)


if __name__ == "__main__":
    main()
