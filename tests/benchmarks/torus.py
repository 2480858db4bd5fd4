"""Held-out nats of the torsion angles of amino acids on tori, next to kernels and mixtures.

    CFLOW_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/torus.py           # five minutes per cell
    CFLOW_DATA=FOLDER python tests/benchmarks/torus.py --sets "cys 2" --seconds 60

FOLDER holds ``torus/rota8000-cys.csv`` and those of met, his and trp (Top8000: id, phi, psi, chi1 to chi4 in degrees).
``cys 2`` are phi and psi, ``cys 3`` phi, psi and chi1; met has three chi, his and trp have two. Rows with a missing
angle are dropped; the others are split at random by the seed, 80 % to train, 10 to validate, 10 to test. Some rows are
neighbours in one chain, so the parts are not quite independent. The sets of published tables (general, glycine,
proline, RNA) are others; their figures cannot be compared.

``kernels``: a product of von Mises kernels, mixed with the uniform density; width and share by the validation part.
``mixture``: wrapped normals with full covariances, fitted by expectation and maximisation; 8 or 24 components by the
validation part. Its density is a sum over the nearest image of a row and those that differ from it by one turn in one
or two angles, which is a lower bound up to rounding. ``matching`` is trained as in ``earth_density.py``. Negative
log-densities in nats per radian to the power of the number of angles; less is better. It may be stopped and run again.
"""

import argparse
import itertools
import math
import os
import sys
from pathlib import Path

import cells

sys.path.append(str(Path(__file__).parents[2] / "recipes"))  # readers and kernels of the recipes

SETS = ("cys 2", "met 2", "his 2", "trp 2", "cys 3", "his 4", "trp 4", "met 5")
MODELS = ("kernels", "mixture", "matching")


def angles(data, folder, seed):
    """Gives the three parts of a data set, in radians."""
    import torch
    from earth_data import split

    from cflow.data import TableFile

    name, dim = data.split()
    file = TableFile(Path(folder) / "torus" / f"rota8000-{name}.csv", header=False, columns=range(1, 1 + int(dim)))
    values = torch.deg2rad(file.read(drop_missing=True).values)
    return split(torch.remainder(values + math.pi, 2 * math.pi) - math.pi, seed)


class Mixture:
    """A mixture of wrapped normals."""

    def __init__(self, x, count, seed, rounds=60):
        import torch

        generator = torch.Generator().manual_seed(seed)
        dim = x.shape[1]
        near = [turn for turn in itertools.product((-1, 0, 1), repeat=dim) if sum(map(abs, turn)) <= 2]
        self.turns = 2 * math.pi * torch.tensor(near, dtype=x.dtype)
        self.means = x[torch.randperm(len(x), generator=generator)[:count]].clone()
        self.scales = 0.5 * torch.eye(dim, dtype=x.dtype).repeat(count, 1, 1)  # Cholesky factors
        self.weights = torch.full((count,), 1 / count, dtype=x.dtype)
        for _ in range(rounds):
            self.step(x)

    def component(self, k, x):
        """Gives the images of rows about a mean ``[N, S, D]`` and their log-densities ``[N, S]``."""
        import torch

        away = torch.remainder(x - self.means[k] + math.pi, 2 * math.pi) - math.pi
        away = away[:, None] + self.turns
        white = torch.linalg.solve_triangular(self.scales[k], away.reshape(-1, x.shape[1]).T, upper=False)
        square = white.square().sum(0).reshape(away.shape[:2])
        constant = self.scales[k].diagonal().log().sum() + x.shape[1] / 2 * math.log(2 * math.pi)
        return away, -square / 2 - constant + self.weights[k].log()

    def log_prob(self, x):
        import torch

        return torch.stack([self.component(k, x)[1].logsumexp(1) for k in range(len(self.means))]).logsumexp(0)

    def step(self, x):
        """Takes a step of expectation and maximisation; a little of the identity keeps covariances away from zero."""
        import torch

        total = self.log_prob(x)
        means, scales, weights = [], [], []
        for k in range(len(self.means)):
            away, scores = self.component(k, x)
            share = (scores - total[:, None]).exp()
            sum_ = share.sum().clamp(min=1e-6)
            shift = torch.einsum("ns,nsd->d", share, away) / sum_
            square = torch.einsum("ns,nsd,nse->de", share, away, away) / sum_ - torch.outer(shift, shift)
            means.append(self.means[k] + shift)
            scales.append(torch.linalg.cholesky(square + 1e-4 * torch.eye(len(shift), dtype=x.dtype)))
            weights.append(sum_ / len(x))
        self.means, self.scales, self.weights = torch.stack(means), torch.stack(scales), torch.stack(weights)


def cell(data, name, seed, *, folder, seconds):
    """Fits one model and gives the mean held-out log-density in nats."""
    import torch

    parts = angles(data, folder, seed)
    rows = {"rows": sum(map(len, parts.values()))}
    if name == "matching":
        import manifold_cells

        from cflow import ContinuousFlow, fields, manifolds, objectives, paths

        torch.manual_seed(seed)
        dim = parts["train"].shape[1]
        field = fields.PeriodicMLP(dim, (128,) * 4)
        flow = ContinuousFlow(field, manifolds.Uniform(manifolds.FlatTorus(dim)), path=paths.Geodesic())
        single = {key: x.float() for key, x in parts.items()}
        steps, best = manifold_cells.train(flow, objectives.FlowMatching(), single, seconds, seed)
        return rows | manifold_cells.tested(flow, parts["test"]) | {"steps": steps, "best": best}
    if name == "kernels":
        import kernel_density

        kernels = kernel_density.torus(parts["train"].numpy(), parts["validation"].numpy())
        scores = torch.from_numpy(kernels.log_prob(parts["test"].numpy()))
    else:
        fits = [Mixture(parts["train"], count, seed) for count in (8, 24)]
        scores = max(fits, key=lambda fit: fit.log_prob(parts["validation"]).mean()).log_prob(parts["test"])
    return rows | {"nats": float(scores.mean()), "error": float(scores.std() / len(scores) ** 0.5)}


def show(out, sets, seeds):
    """Prints the cells that are there."""
    print(f"\n{'negative nats':14s}{'rows':>8}{'uniform':>9}" + "".join(f"{each:>18}" for each in MODELS))
    for data in sets:
        found = {name: [c for s in seeds if (c := cells.read(out, data, name, s)) is not None] for name in MODELS}
        value = {name: cells.over_seeds([-c["nats"] for c in there]) for name, there in found.items()}
        one = {name: (value[name][0], there[0]["error"]) for name, there in found.items() if len(there) == 1}
        value |= one
        rows = next((c["rows"] for there in found.values() for c in there), "-")
        uniform = int(data[-1]) * math.log(2 * math.pi)
        print(f"{data:14s}{rows:>8}{uniform:>9.3f}" + "".join(f"{cells.shown(value[each]):>18}" for each in MODELS))
        for c in found["matching"]:
            print(f"  {c['steps']} steps, best {c['best']}, moved {c['moved']:.1e}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=os.environ.get("CFLOW_DATA"), help="Default: $CFLOW_DATA")
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/torus-benchmark"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    asked = parser.parse_args()
    if not asked.table:
        if asked.data is None:
            parser.error("pass --data FOLDER, or set CFLOW_DATA")
        jobs = [(data, name, seed) for seed in asked.seeds for data in asked.sets for name in asked.models]
        cells.run(cell, jobs, asked.out, {"folder": asked.data, "seconds": asked.seconds}, asked.processes)
    show(asked.out, asked.sets, asked.seeds)
