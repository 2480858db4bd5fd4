"""8 gaussians to moons given a condition: what plain optimal transport breaks, and what ConditionalOT keeps.

    python tests/benchmarks/conditional.py --picture conditional.png   # every cell, then the tables; interrupt at will
    python tests/benchmarks/conditional.py --table                     # only print what is there

Every cell (condition, method, seed) leaves one JSON file in ``--out``; a cell that is there is not computed again.

The problem is that of Cheng and Schwing, The Curse of Conditions, 2025, arXiv:2503.10636, figure 1: a flow from eight
gaussians to two moons, given which moon it is (``class``) or where along the first axis the point is to lie (``x``).
At sampling time base samples are drawn whatever the condition; pairs in which the condition tells something about the
base sample (``skew``) prepare the network for another base than the one it will get.

All methods train the same network from the same weights on the same rows. Euler's method and Dopri5 start from the same
base samples. Columns are W2 between generated and true points *given the condition*: for ``class`` its mean over both
classes, for ``x`` that of the pairs (point, condition), all three coordinates in units of the data, and the root mean
square distance of the first coordinate from what was asked for (``miss``). ``floor`` compares two true samples.

The skew of the pairs, over a hundred batches: how much of the variance of the base sample the condition explains (for
``x``, in twenty equal bins; corrected for the number of bins, so that it may be negative), and by how many standard
errors the means given the condition are apart (z of a chi-squared statistic: within 3 by chance).

Not as in the paper: the network, the batch (there plans are made for 1024 rows and cut in four: ``--pool 4``), a
seventh of the steps at a higher, falling learning rate, and Gaussian noise on the moons. Theirs is W2 of the points
alone, all conditions together, squared: the square of the line ``all`` here, which does not see points that are right
for another condition.
"""

import argparse
import math
import statistics
import time
from pathlib import Path

from cells import over_seeds, read, run, shown

METHODS = ("Independent", "OptimalTransport", "ConditionalOT")
CONDITIONS = ("class", "x")
SOLVERS = ("Euler 1", "Euler 5", "Euler 20", "Dopri5")
COUNT = 2000  # points per class, or in all for a continuous condition
ROWS = 50_000  # to train on

# Figure 1 of the paper: Euler-1 and adaptive, mean and deviation over 10 runs, of what its code computes as W2 squared.
PUBLISHED = {
    ("class", "Independent"): ((2.573, 0.112), (0.059, 0.029)),
    ("class", "OptimalTransport"): ((0.483, 0.059), (0.462, 0.025)),
    ("class", "ConditionalOT"): ((0.048, 0.010), (0.018, 0.006)),
    ("x", "Independent"): ((0.732, 0.052), (0.028, 0.010)),
    ("x", "OptimalTransport"): ((8.276, 6.510), (2.143, 1.993)),
    ("x", "ConditionalOT"): ((0.077, 0.024), (0.013, 0.003)),
}


def moons(count, seed):
    """Draws points with the moon that each is of, scaled by 3 and moved by -1 as in the flow matching papers."""
    import torch
    from sklearn import datasets

    x, label = datasets.make_moons(count, noise=0.05, random_state=seed)
    return torch.tensor(3 * x - 1, dtype=torch.float32), torch.tensor(label)


def gaussians():
    import torch

    from cflow import bases

    angle = torch.arange(8) * (math.pi / 4)
    return bases.Mixture(5 * torch.stack([angle.cos(), angle.sin()], 1), math.sqrt(0.1))


class Problem:
    """A kind of condition: its data, its network, and how samples are judged."""

    def __init__(self, condition, seed):
        self.condition, self.seed = condition, seed
        x, label = moons(ROWS, 1000 + seed)
        self.mean, self.scale = x[:, 0].mean(), x[:, 0].std()
        self.data = x, self.encode(x, label)

    def encode(self, x, label):
        """Gives the context: the label, or the first coordinate, standardised."""
        return label if self.condition == "class" else (x[:, :1] - self.mean) / self.scale

    def true(self, seed):
        """Draws points and their contexts; ``COUNT`` of each class."""
        x, label = moons(COUNT * (2 if self.condition == "class" else 1), seed)
        return x, self.encode(x, label)

    def network(self):
        import torch

        from cflow import fields

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            condition = {"classes": 2} if self.condition == "class" else {"context": 1}
            return fields.MLP(2, hidden=(128, 128, 128), **condition)

    def distance(self, x, context, y, other):
        """Computes W2 of points given the condition."""
        import torch

        from cflow.metrics import wasserstein2

        if self.condition == "class":
            return statistics.mean(wasserstein2(x[context == c], y[other == c]) for c in (0, 1))
        # In units of the data a condition off by one costs what a coordinate off by one costs.
        return wasserstein2(torch.cat([x, self.scale * context], 1), torch.cat([y, self.scale * other], 1))

    def miss(self, x, context):
        """Computes how far the first coordinate lies from the one asked for."""
        if self.condition == "class":
            return None
        return float((x[:, 0] - self.mean - self.scale * context[:, 0]).square().mean().sqrt())

    def skew(self, coupling, rows, batches=100):
        """Measures what the condition tells about the base sample in the pairs that a coupling makes."""
        import torch

        generator = torch.Generator().manual_seed(4000 + self.seed)
        base, (x, context) = gaussians(), self.data
        pairs = []
        for _ in range(batches):
            taken = torch.randint(len(x), (rows,), generator=generator)
            x0 = base.sample((rows,), generator=generator)
            x0, _, given = coupling(x0, x[taken], context[taken], generator=generator)
            pairs.append((x0, given))
        x0, given = (torch.cat(each) for each in zip(*pairs))
        if given.is_floating_point():
            edges = given[:, 0].quantile(torch.linspace(0, 1, 21)[1:-1])
            given = torch.bucketize(given[:, 0].contiguous(), edges)
        count, kinds = len(x0), int(given.max()) + 1
        total = (x0 - x0.mean(0)).square().sum(0) / (count - 1)
        between = torch.zeros(2)
        for kind in range(kinds):
            part = x0[given == kind]
            between += len(part) * (part.mean(0) - x0.mean(0)).square()
        explained = float(between.sum() / (total.sum() * (count - 1)))
        free = 2 * (kinds - 1)  # two coordinates
        return {
            "explained": 1 - (1 - explained) * (count - 1) / (count - kinds),
            "z": (float((between / total).sum()) - free) / math.sqrt(2 * free),
        }


def reference(condition, seed, settings):
    """Compares two true samples."""
    from cflow import metrics

    problem = Problem(condition, seed)
    (x, context), (y, other) = problem.true(2000 + seed), problem.true(3000 + seed)
    return {"floor": problem.distance(x, context, y, other), "all": metrics.wasserstein2(x, y)}


def cell(condition, method, seed, settings):
    """Trains one flow, measures it and keeps points for the picture."""
    import torch

    import cflow
    from cflow import couplings, metrics, objectives, paths, solvers, training

    problem = Problem(condition, seed)
    coupling = getattr(couplings, method)()
    rows = settings["batch_size"] * settings["pool"]
    skew = problem.skew(coupling, rows)
    field = problem.network()
    flow = cflow.ContinuousFlow(field, gaussians(), path=paths.Linear(), context_shape=field.context_shape)
    began = time.perf_counter()
    training.fit(
        flow, objectives.FlowMatching(coupling), problem.data, steps=settings["steps"],
        batch_size=settings["batch_size"], pool=settings["pool"], lr=settings["lr"], seed=seed,
        ema=training.EMA(0.999), log_every=1000,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    flow.eval()
    x1, context = problem.true(2000 + seed)
    x0 = flow.base.sample((len(x1),), generator=torch.Generator().manual_seed(5000 + seed))
    result = {"w2": {}, "all": {}, "miss": {}, "points": {}, "seconds": seconds, "skew": skew}
    for name in SOLVERS:
        kind, _, steps = name.partition(" ")
        solver = getattr(solvers, kind)(**({"steps": int(steps)} if steps else {"rtol": 1e-5, "atol": 1e-5}))
        with torch.no_grad():
            solution = flow.transport(x0, 0.0, 1.0, context, solver=solver).require_success()
        # The conditions asked for are those of one true sample, the points compared with are another's.
        y, other = problem.true(3000 + seed)
        result["w2"][name] = problem.distance(solution.y, context, y, other)
        result["all"][name] = metrics.wasserstein2(solution.y, y)
        result["miss"][name] = problem.miss(solution.y, context)
        if name == "Dopri5":
            result["nfe"] = solution.stats.evaluations / len(x0)
        result["points"][name] = [[round(float(v), 3) for v in row] for row in solution.y[::4]]
    result["conditions"] = [float(c) for c in context.reshape(-1)[::4]]
    return result


def compute(kind, *key, **settings):
    return {"reference": reference, "cell": cell}[kind](*key, settings)


def spread(values, digits=3):
    return shown(over_seeds(values), digits)


def table(out, condition, methods, seeds):
    heads = {"class": "given the class, W2 by", "x": "given x, W2 of (point, x) by"}
    print(f"\n{heads[condition]:31s}" + "".join(f"{name:>15s}" for name in SOLVERS), end="")
    print(f"{'NFE':>10s}{'skew, %':>13s}{'skew, z':>14s}{'fit, s':>12s}")
    for method in methods:
        got = [each for each in (read(out, "cell", condition, method, seed) for seed in seeds) if each]
        cells = "".join(f"{spread([each['w2'][name] for each in got]):>15s}" for name in SOLVERS)
        skew = spread([100 * each["skew"]["explained"] for each in got], 2)
        score, seconds = spread([each["skew"]["z"] for each in got], 1), spread([each["seconds"] for each in got], 0)
        print(f"{method:31s}{cells}{spread([e['nfe'] for e in got], 0):>10s}{skew:>13s}{score:>14s}{seconds:>12s}")
        for name in ("miss", "all") if condition == "x" else ("all",):
            print(f"{'  ' + name:31s}" + "".join(f"{spread([e[name][how] for e in got]):>15s}" for how in SOLVERS))
        first, last = (f"{math.sqrt(value):.3f}      " for value, _ in PUBLISHED[condition, method])
        print(f"{'  all, published (roots)':31s}{first:>15s}{last:>45s}")
    floors = [each for each in (read(out, "reference", condition, seed) for seed in seeds) if each]
    print(f"{'floor: two true samples':31s}{spread([each['floor'] for each in floors]):>15s}")
    print(f"{'  all':31s}{spread([each['all'] for each in floors]):>15s}")


def picture(out, methods, conditions, seed, file):
    """Draws points of every method by every solver, coloured by condition."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    rows = [(c, m, got) for c in conditions for m in methods if (got := read(out, "cell", c, m, seed))]
    if not rows:
        return
    figure, axes = plt.subplots(len(rows), len(SOLVERS), figsize=(3 * len(SOLVERS), 2.4 * len(rows)), squeeze=False)
    for line, (condition, method, got) in zip(axes, rows):
        x, _ = moons(1000, 3000 + seed)
        for axis, name in zip(line, SOLVERS):
            points = list(zip(*got["points"][name]))
            axis.scatter(*x.T, s=2, color="0.8", linewidths=0)
            colours = "coolwarm" if condition == "class" else "viridis"
            axis.scatter(*points, s=2, c=got["conditions"], cmap=colours, linewidths=0)
            axis.set(xlim=(-6, 7), ylim=(-4, 4), xticks=[], yticks=[])
            axis.set_title(f"{name}: W2 {got['w2'][name]:.2f}", fontsize=9)
        line[0].set_ylabel(f"{method}\ngiven {condition}", fontsize=9)
    figure.tight_layout()
    figure.savefig(file, dpi=110)
    plt.close(figure)
    print(f"\npicture (seed {seed}): {file}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/conditional"))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=METHODS)
    parser.add_argument("--conditions", nargs="+", choices=CONDITIONS, default=CONDITIONS)
    parser.add_argument("--seeds", nargs="+", type=int, default=range(3))
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--pool", type=int, default=1, help="batches that are coupled together")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--jobs", type=int, default=2, help="cells at a time, each on one core")
    parser.add_argument("--picture", type=Path, help="points of the first seed, by method and solver")
    parser.add_argument("--table", action="store_true", help="only print what is there")
    options = parser.parse_args()
    jobs = []
    for seed in options.seeds:
        jobs += [("reference", condition, seed) for condition in options.conditions]
        jobs += [("cell", condition, method, seed) for condition in options.conditions for method in options.methods]
    if not options.table:
        settings = {name: getattr(options, name) for name in ("steps", "batch_size", "pool", "lr")}
        run(compute, jobs, options.out, settings, options.jobs)
    for condition in options.conditions:
        table(options.out, condition, options.methods, options.seeds)
    if options.picture is not None:
        picture(options.out, options.methods, options.conditions, options.seeds[0], options.picture)


if __name__ == "__main__":
    main()
