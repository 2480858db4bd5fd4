"""Held-out nats after equal time: spline couplings of cflow, zuko and nflows on real tables.

    peers/bin/python tests/benchmarks/discrete_density.py --data FOLDER          # five minutes per cell, two at a time

FOLDER holds ``tabular/protein.csv``, ``power/power.npy`` and ``bsds300/bsds300.npz``. All libraries have the same
layers, bins and widths, the same plain loop (Adam, cosine over the time given, gradients clipped at 5, batches of 512),
the same data and seed; each trains for the same time of one core (as the process is charged for it, so that other work
does not count), and what differs is how many steps that is. The weights of the best validation score are tested.
``cflow compiled`` is ours under ``torch.compile``, its compilation within the time. It may be stopped and run again:
finished cells are read from ``--out``; ``--seconds 3600`` is a longer run.
"""

import argparse
import copy
import math
import time
from pathlib import Path

import cells

TABLES = ("protein", "power", "bsds300")
LIBRARIES = ("cflow", "cflow compiled", "zuko", "nflows")
HIDDEN, LAYERS, BATCH, ROWS = (128, 128), 6, 512, (100_000, 10_000, 10_000)


def table(name, folder):
    """Gives train, validation and test rows, standardised, and the log of the scale that nats are reported in."""
    import numpy as np
    import torch

    random = np.random.default_rng(0)
    folder = Path(folder)
    if name == "protein":
        rows = np.loadtxt(folder / "tabular" / "protein.csv", delimiter=",")
        rows = rows[random.permutation(len(rows))]
        cut = len(rows) // 10
        parts = rows[2 * cut :], rows[:cut], rows[cut : 2 * cut]
    elif name == "power":
        rows = np.load(folder / "power" / "power.npy")
        rows = rows[random.permutation(len(rows))[: sum(ROWS)]]
        noise = random.random(rows.shape) * [0.001, 0.01, 1, 1, 1, 0]
        parts = np.split(rows + noise, np.cumsum(ROWS)[:-1])
    else:
        file = np.load(folder / "bsds300" / "bsds300.npz")
        parts = [file[part][:count] for part, count in zip(("train", "val", "test"), ROWS)]
    mean, scale = parts[0].mean(0), parts[0].std(0)
    return [torch.tensor((part - mean) / scale, dtype=torch.float32) for part in parts], float(np.log(scale).sum())


def cell(data, library, *, folder, seconds, seed):
    """Trains for some seconds and gives the held-out log-density in nats of the table's own units."""
    import torch
    from discrete_peers import makers

    (train, validation, test), units = table(data, folder)
    torch.manual_seed(seed)
    log_prob, _, parameters = makers()[library.split()[0]]("spline coupling", train.shape[1], HIDDEN, LAYERS)
    loss_of = torch.compile(log_prob, dynamic=False) if "compiled" in library else log_prob
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    begun, step, best, kept, last = time.process_time(), 0, -math.inf, None, 0.0
    while (spent := time.process_time() - begun) < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * spent / seconds))
        rows = train[torch.randint(len(train), (BATCH,))]
        loss = -loss_of(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 5.0)
        optimizer.step()
        step += 1
        if spent - last > seconds / 20:
            last = spent
            if (score := mean(log_prob, validation)[0]) > best:
                best, kept = score, copy.deepcopy([each.data for each in parameters])
    if mean(log_prob, validation)[0] < best:
        for each, value in zip(parameters, kept):
            each.data.copy_(value)
    value, error = mean(log_prob, test)
    return {
        "nats": value - units,
        "error": error,
        "steps": step,
        "parameters": sum(each.numel() for each in parameters),
    }


def mean(log_prob, rows):
    """Gives the mean log-density with its standard error."""
    import torch

    with torch.no_grad():
        values = torch.cat([log_prob(part) for part in rows.split(2000)]).double()
    return float(values.mean()), float(values.std()) / len(values) ** 0.5


def show(out):
    """Prints the cells that are there."""
    print(f"\n{'held-out nats (steps taken)':14s}" + "".join(f"{each:>28}" for each in LIBRARIES))
    for data in TABLES:
        found = [cells.read(out, data, library) for library in LIBRARIES]
        shown = ["-" if c is None else f"{c['nats']:.3f}±{c['error']:.3f} ({c['steps']})" for c in found]
        print(f"{data:27s}" + "".join(f"{each:>28}" for each in shown))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the real data sets")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--libraries", nargs="+", choices=LIBRARIES, default=list(LIBRARIES))
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/discrete-density"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    options = parser.parse_args()
    if not options.table:
        jobs = [(data, library) for data in options.tables for library in options.libraries]
        settings = {"folder": options.data, "seconds": options.seconds, "seed": options.seed}
        cells.run(cell, jobs, options.out, settings, options.processes)
    show(options.out)
