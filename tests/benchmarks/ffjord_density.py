"""Held-out nats after equal time: FFJORD and flow matching beside classical flows, on real tables.

    python tests/benchmarks/ffjord_density.py --data FOLDER          # five minutes per cell, one at a time

FOLDER holds ``tabular/protein.csv`` and ``power/power.npy``. All models are ours and go through the same plain loop
(Adam, cosine over the time given, gradients clipped at 5, averaged weights, batches of 512) with the same data and
seed; each trains for the same time of one core (as the process is charged for it, so that other work does not count),
and what differs is how many steps that is. The averaged weights of the best of twenty validation scores (on 1000 rows,
within the time) are tested, outside of the time: on the same rows for all, and where there is an ODE to solve in
float64, with the exact divergence and a tolerance of 1e-7 (``moved``: by how many nats the mean moves from 1e-6 to
there). It may be stopped and run again: finished cells are read from ``--out``; ``--seconds 3600`` is a longer run,
``--seconds 10`` a trial.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import cells
from discrete_density import mean, table

TABLES = ("protein", "power")
MODELS = ("ffjord", "flow matching", "nsf coupling", "nsf autoregressive", "maf", "realnvp")
BATCH, CHECK, CHECKS, HIDDEN = 512, 1000, 20, (128, 128)


def model(name, features):
    """Gives a flow, its objective and the largest learning rate."""
    import cflow
    from cflow import bases, discrete, divergence, fields, objectives, paths, solvers

    exact = divergence.Analytic()
    if name == "ffjord":
        # Steps under control: the density of a few coarse ones is not the flow's, and training finds the difference.
        solver = solvers.Dopri5(rtol=1e-3, atol=1e-3, per_sample=False)
        objective = objectives.FFJORD(exact, kinetic=0.01, solver=solver)
        field = fields.MLP(features, HIDDEN)
        return cflow.ContinuousFlow(field, bases.Normal(features), divergence=exact), objective, 2e-3
    if name == "flow matching":
        field = fields.MLP(features, (256, 256, 256))
        flow = cflow.ContinuousFlow(field, bases.Normal(features), path=paths.Linear(), divergence=exact)
        return flow, objectives.FlowMatching(), 2e-3
    presets = {
        "nsf coupling": lambda: discrete.nsf(features, hidden=HIDDEN),
        "nsf autoregressive": lambda: discrete.nsf(features, hidden=HIDDEN, autoregressive=True),
        "maf": lambda: discrete.maf(features, hidden=HIDDEN),
        "realnvp": lambda: discrete.realnvp(features, hidden=HIDDEN),
    }
    return presets[name](), objectives.MaximumLikelihood(), 1e-3


def cell(data, name, *, folder, seconds, seed, rows):
    """Trains for some seconds and gives the held-out log-density in nats of the table's own units."""
    import torch

    import cflow
    from cflow import solvers, training
    from cflow.training.ema import Average

    (train, validation, test), units = table(data, folder)
    torch.manual_seed(seed)
    flow, objective, rate = model(name, train.shape[1])
    continuous = isinstance(flow, cflow.ContinuousFlow)
    solved = lambda tolerance: {"solver": solvers.Dopri5(tolerance, tolerance)} if continuous else {}
    judge = lambda x: flow.log_prob(x, **solved(1e-4))
    parameters = list(flow.parameters())
    optimizer = torch.optim.Adam(parameters, lr=rate)
    average = Average(flow, training.EMA())
    begun, step, best, kept, last = time.process_time(), 0, -math.inf, None, 0.0
    while (spent := time.process_time() - begun) < seconds:
        if spent - last > seconds / CHECKS:
            last = spent
            with average.applied():
                if (score := mean(judge, validation[:CHECK])[0]) > best:
                    best, kept = score, copy.deepcopy(flow.state_dict())
        for group in optimizer.param_groups:
            group["lr"] = rate * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        loss = objective(flow, train[torch.randint(len(train), (BATCH,))]).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        average.update()
        step += 1
    average.copy_to_module()
    if mean(judge, validation[:CHECK])[0] < best:
        flow.load_state_dict(kept)
    moved = 0.0
    if continuous:
        flow = flow.double()
        test = test.double()
        moved = mean(lambda x: flow.log_prob(x, **solved(1e-6)), test[:500])[0]
        moved = abs(moved - mean(lambda x: flow.log_prob(x, **solved(1e-7)), test[:500])[0])
    value, error = mean(lambda x: flow.log_prob(x, **solved(1e-7)), test[:rows])
    return {
        "nats": value - units,
        "error": error,
        "steps": step,
        "parameters": sum(each.numel() for each in parameters),
        "moved": moved,
        "metrics": {key: float(each) for key, each in objective.metrics.items()},
    }


def show(out):
    """Prints the cells that are there."""
    width = max(map(len, MODELS)) + 2
    print(f"\n{'held-out nats (steps taken)':{width + 14}s}" + "".join(f"{each:>26}" for each in TABLES))
    for name in MODELS:
        found = [cells.read(out, data, name) for data in TABLES]
        shown = ["-" if c is None else f"{c['nats']:.3f}±{c['error']:.3f} ({c['steps']})" for c in found]
        print(f"{name:{width + 14}s}" + "".join(f"{each:>26}" for each in shown))
    for name in ("ffjord", "flow matching"):
        for data in TABLES:
            if (c := cells.read(out, data, name)) is not None:
                told = ", ".join(f"{key} {value:.3g}" for key, value in c["metrics"].items())
                print(f"{name}, {data}: moved {c['moved']:.1e} nats{'; last step: ' + told if told else ''}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder of the real data sets")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=2000, help="test rows")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/ffjord-density"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    options = parser.parse_args()
    if not options.table:
        if options.data is None:
            parser.error("pass --data FOLDER, or --table for the cells that are there")
        jobs = [(data, name) for data in options.tables for name in options.models]
        settings = {"folder": options.data, "seconds": options.seconds, "seed": options.seed, "rows": options.rows}
        cells.run(cell, jobs, options.out, settings, options.processes)
    show(options.out)
