"""Held-out nats of places on the earth after equal time, next to published figures.

    CFLOW_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/earth_density.py  # five minutes per cell
    CFLOW_DATA=FOLDER python tests/benchmarks/earth_density.py --models matching --seeds 0 1 2 --seconds 3600

FOLDER holds ``earth/`` with fire.csv, flood.csv, volerup.csv and, if it is there, quakes_all.csv
(latitude, longitude in degrees). Rows are split at random by the seed: 80 % to train, 10 to validate, 10 to test.
``volcano`` has each row of the file, of which two thirds are copies of others; ``volcano, distinct`` has each place
once. ``in training`` is the share of test rows that are also training rows.

Every model trains for the same time of one core (as the process is charged for it, so that other work does not count),
with the same optimizer, rate, batch of 256 and seed; the averaged weights of the best of twelve validation scores are
tested. Test densities are exact: Dopri5 with the divergence in frames, float64, tolerance 1e-6; ``moved`` is by how
many nats they change at 1e-8. Negative log-densities in nats against the area of the sphere; less is better, uniform
is 2.531. ``kernels`` is a kernel density whose width the validation part chooses. Published figures are means and
deviations of five splits of their own, with far larger networks and budgets. It may be stopped and run again:
finished cells are read from ``--out``; ``--seconds 10`` is a trial.
"""

import argparse
import os
import sys
from pathlib import Path

import cells

sys.path.append(str(Path(__file__).parents[2] / "recipes"))  # readers and kernels of the recipe

FILES = {"fire": "fire.csv", "flood": "flood.csv", "volcano": "volerup.csv", "earthquake": "quakes_all.csv"}
DATA = ("fire", "flood", "volcano", "volcano, distinct", "earthquake")
MODELS = ("kernels", "matching", "matching, Fourier", "matching, OT", "ffjord")
# Negative log-likelihoods, test. Riemannian CNF, Moser flow, RSGM: De Bortoli et al., arXiv:2202.02763, table 4 (their
# own runs of Mathieu and Nickel, arXiv:2006.10605, and Rozen et al., arXiv:2108.08052); RDM: Huang et al.,
# arXiv:2208.07949; RFM: Chen and Lipman, arXiv:2302.03660, table 2.
PUBLISHED = {
    "Riemannian CNF": {"volcano": "-6.05±0.61", "earthquake": "0.14±0.23", "flood": "1.11±0.19", "fire": "-0.80±0.54"},
    "Moser flow": {"volcano": "-4.21±0.17", "earthquake": "-0.16±0.06", "flood": "0.57±0.10", "fire": "-1.28±0.05"},
    "RSGM": {"volcano": "-4.92±0.25", "earthquake": "-0.19±0.07", "flood": "0.45±0.17", "fire": "-1.33±0.06"},
    "RDM": {"volcano": "-6.61±0.97", "earthquake": "-0.40±0.05", "flood": "0.43±0.07", "fire": "-1.38±0.05"},
    "RFM": {"volcano": "-7.93±1.67", "earthquake": "-0.28±0.08", "fire": "-1.86±0.11"},
}


def places(data, folder, seed):
    """Gives the three parts of a data set, in degrees, and what is known of its copies."""
    import earth_data

    name, _, distinct = data.partition(", ")
    return earth_data.read(str(Path(folder) / "earth" / FILES[name]), (), False, bool(distinct), seed)


def model(name):
    """Gives a flow on unit vectors and its objective."""
    from cflow import ContinuousFlow, couplings, fields, manifolds, objectives, paths, solvers

    sphere = manifolds.Sphere(2)
    if name == "matching, Fourier":
        field = fields.PeriodicMLP(3, (128,) * 4, harmonics=16, period=4.0)
    else:
        field = fields.MLP(3, (64,) * 3 if name == "ffjord" else (128,) * 4)
    flow = ContinuousFlow(field, manifolds.Uniform(sphere), path=paths.Geodesic())
    if name == "ffjord":
        return flow, objectives.FFJORD(solver=solvers.Dopri5(rtol=1e-3, atol=1e-3, per_sample=False))
    return flow, objectives.FlowMatching(couplings.OptimalTransport(cost=sphere.cost) if "OT" in name else None)


def cell(data, name, seed, *, folder, seconds):
    """Trains for some seconds and gives the negative held-out log-density in nats."""
    import kernel_density
    import manifold_cells
    import torch

    from cflow import bijections

    found = places(data, folder, seed)
    parts = {part: bijections.LatLon().encode(x)[0] for part, x in found.x.items()}
    known = {"rows": sum(map(len, parts.values())), "in_training": found.seen / len(parts["test"])}
    if name == "kernels":
        kernels = kernel_density.sphere(parts["train"].numpy(), parts["validation"].numpy())
        scores = torch.from_numpy(kernels.log_prob(parts["test"].numpy()))
        return known | {"nats": float(scores.mean()), "error": float(scores.std() / len(scores) ** 0.5)}
    torch.manual_seed(seed)
    flow, objective = model(name)
    steps, best = manifold_cells.train(flow, objective, {k: x.float() for k, x in parts.items()}, seconds, seed)
    parameters = sum(each.numel() for each in flow.parameters())
    return known | manifold_cells.tested(flow, parts["test"]) | {"steps": steps, "best": best, "parameters": parameters}


def show(out, seeds):
    """Prints the cells that are there, and the published figures."""
    width = 20
    print(f"\n{'negative nats':18s}" + "".join(f"{each:>{width}}" for each in DATA))
    for name in MODELS:
        line = ""
        for data in DATA:
            there = [c for seed in seeds if (c := cells.read(out, data, name, seed)) is not None]
            value = cells.over_seeds([-c["nats"] for c in there])
            if len(there) == 1:
                value = (value[0], there[0]["error"])
            line += f"{cells.shown(value):>{width}}"
        print(f"{name:18s}{line}")
    for name, row in PUBLISHED.items():
        print(f"{name:18s}" + "".join(f"{row.get(data, '-'):>{width}}" for data in DATA))
    for data in DATA:
        for name in MODELS:
            for seed in seeds:
                if (c := cells.read(out, data, name, seed)) is not None and "steps" in c:
                    print(
                        f"{data}, {name}, seed {seed}: {c['rows']} rows, {c['in_training']:.1%} in training, "
                        f"{c['steps']} steps, best {c['best']}, {c['parameters']} parameters, moved {c['moved']:.1e}"
                    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CFLOW_DATA"), help="Default: $CFLOW_DATA")
    parser.add_argument("--sets", nargs="+", choices=DATA, help="Default: those that are there")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/earth-benchmark"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    asked = parser.parse_args()
    if not asked.table:
        if asked.data is None:
            parser.error("pass --data FOLDER, or set CFLOW_DATA")
        there = [each for each in DATA if (Path(asked.data) / "earth" / FILES[each.partition(", ")[0]]).exists()]
        jobs = [(data, name, seed) for seed in asked.seeds for name in asked.models for data in asked.sets or there]
        cells.run(cell, jobs, asked.out, {"folder": asked.data, "seconds": asked.seconds}, asked.processes)
    show(asked.out, asked.seeds)
