"""Compares the couplings with torchcfm, POT and SciPy in one run; by hand: python tests/benchmarks/couplings.py --help.

Every method gets the same batches and is timed in turn, distances and gathers included: a standard normal against data
1 + spread * normal. "gap" is the mean cost of the pairs over the optimum's, "used" the share of rows of x1 (and of x0)
that appear, "repeats" whether the same seed gives the same pairs (torch.manual_seed for those without a generator).
"""

import argparse
import json
import math
import statistics
import time
import warnings
from pathlib import Path

import numpy
import ot
import torch
from scipy.optimize import linear_sum_assignment

from cflow.couplings import OptimalTransport, Sinkhorn, Unbalanced

try:
    from torchcfm.optimal_transport import OTPlanSampler
except ImportError:
    OTPlanSampler = None


def squared(x0, x1):
    return torch.cdist(x0, x1).square()


def pot_exact(x0, x1):
    ones = numpy.ones(len(x0))
    plan = ot.emd(ones, ones, squared(x0, x1).double().numpy(), numItermax=10_000_000)
    return x0[torch.from_numpy(plan.argmax(0))], x1


def scipy_exact(x0, x1):
    rows, columns = linear_sum_assignment(squared(x0, x1).numpy())
    return x0[torch.from_numpy(rows)], x1[torch.from_numpy(columns)]


def pot_sinkhorn(regularisation):
    def call(x0, x1):
        count = len(x0)
        mass = torch.full((count,), 1 / count, dtype=torch.float64)
        # POT stops at an L2 error; ours, at an L1 error of 1e-3.
        stop = 1e-3 / math.sqrt(count)
        plan = ot.sinkhorn(mass, mass, squared(x0, x1).double(), regularisation, "sinkhorn_log", stopThr=stop)
        return x0[torch.multinomial(plan.T, 1)[:, 0]], x1

    return call


def methods(x0, x1, epsilon):
    """Lists the methods by name; the entropic ones at the same regularisation."""
    centred = (x0 - x0.mean(0)).square().sum(1).mean() + (x1 - x1.mean(0)).square().sum(1).mean()
    regularisation = epsilon * float(centred)
    ours = lambda coupling: lambda x0, x1: coupling(x0, x1)[:2]
    calls = {
        "cflow OptimalTransport": ours(OptimalTransport()),
        "cflow simplex": ours(OptimalTransport("simplex")),
        "cflow assignment": ours(OptimalTransport("assignment")),
        "POT emd": pot_exact,
        "SciPy assignment": scipy_exact,
        "cflow Sinkhorn": ours(Sinkhorn(epsilon)),
        "cflow Unbalanced": ours(Unbalanced(1.0, epsilon)),
        "POT sinkhorn_log": pot_sinkhorn(regularisation),
    }
    if OTPlanSampler is not None:
        calls["torchcfm exact"] = OTPlanSampler("exact").sample_plan
        calls["torchcfm sinkhorn"] = OTPlanSampler("sinkhorn", reg=regularisation).sample_plan
    return calls


def batch(count, dimension, spread, seed):
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.randn(count, dimension, generator=generator)
    return x0, 1 + spread * torch.randn(count, dimension, generator=generator)


def timed(call, *arguments):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        result = call(*arguments)
        span = 1e3 * (time.perf_counter() - start)
    return span, result, bool(caught)


def repeats(call, x0, x1):
    pairs = []
    for _ in range(2):
        torch.manual_seed(0)
        pairs.append(timed(call, x0, x1)[1])
    return bool(torch.equal(pairs[0][0], pairs[1][0]) and torch.equal(pairs[0][1], pairs[1][1]))


def measure(count, dimension, spread, epsilon, rounds, limit, slow):
    """Times all methods on the same batches, in turn, but for those expected to take more than ``limit`` seconds."""
    spans, gaps, used, warned, names = {}, {}, {}, {}, None
    repeated = {}
    for number in range(rounds + 1):  # the first round warms up
        x0, x1 = batch(count, dimension, spread, number)
        calls = methods(x0, x1, epsilon)
        names = [name for name in calls if slow.get(name, 0) < limit] if names is None else names
        y0, y1, _ = OptimalTransport()(x0, x1)
        optimum = float((y0 - y1).square().sum())
        for name in names[number % len(names) :] + names[: number % len(names)]:
            span, (y0, y1), warning = timed(calls[name], x0, x1)
            if number == 0:
                small = span < 1e3 * limit / 10
                repeated[name] = repeats(calls[name], x0, x1) if small else None
                if small:
                    continue
            y0, y1 = (torch.as_tensor(y) for y in (y0, y1))
            spans.setdefault(name, []).append(span)
            gaps.setdefault(name, []).append(float((y0 - y1).square().sum()) / optimum - 1)
            share = [len(torch.unique(y, dim=0)) / count for y in (y1, y0)]
            used.setdefault(name, []).append(share)
            warned[name] = warned.get(name, False) or warning
        names = [name for name in names if repeated[name] is not None]  # one round of the slow ones will do
    rows = []
    for name, times in sorted(spans.items()):
        slow[name] = 8 * statistics.median(times) / 1e3  # what twice the batch may take
        rows.append(
            {
                "B": count, "d": dimension, "spread": spread, "method": name,
                "ms": statistics.median(times), "low": min(times), "high": max(times),
                "gap": statistics.mean(gaps[name]),
                "used x1": statistics.mean(share[0] for share in used[name]),
                "used x0": statistics.mean(share[1] for share in used[name]),
                "repeats": repeated[name], "warned": warned[name],
            }
        )  # fmt: skip
    return rows


def robustness():
    """Asks the entropic solvers for plans that are hard in floating point: how far are rows and columns off?"""
    uniform = lambda count: torch.full((count,), 1 / count, dtype=torch.float64)
    pot_plan = lambda x0, x1, epsilon: ot.sinkhorn(
        uniform(len(x0)), uniform(len(x1)), squared(x0, x1).double(), epsilon, "sinkhorn_log", stopThr=1e-4
    )
    solvers = {
        "cflow Sinkhorn": lambda x0, x1, epsilon: Sinkhorn(epsilon, relative=False).plan(x0, x1).plan,
        "POT sinkhorn_log": pot_plan,
    }
    if OTPlanSampler is not None:
        solvers["torchcfm sinkhorn"] = lambda x0, x1, epsilon: OTPlanSampler("sinkhorn", reg=epsilon).get_map(x0, x1)
    print(f"\n{'B = 128':31s} {'method':18s} {'ms':>8} {'rows off':>9} {'columns':>9} {'to independent':>15} warned")
    for what, dimension, spread, epsilon in (
        ("d = 2, epsilon = 0.05", 2, 1.0, 0.05),
        ("d = 20, spread 5, epsilon = 0.05", 20, 5.0, 0.05),
        ("d = 20, spread 5, epsilon = 1", 20, 5.0, 1.0),
        ("d = 784, epsilon = 1", 784, 1.0, 1.0),
    ):
        x0, x1 = batch(128, dimension, spread, 0)
        for name, solver in solvers.items():
            span, plan, warned = timed(solver, x0, x1, epsilon)
            plan = torch.as_tensor(plan)
            off = [float((plan.sum(side) - 1 / 128).abs().sum()) for side in (1, 0)]
            distance = float((plan - 1 / 128**2).abs().sum() / 2)  # 1 - 1/128 for a permutation
            print(f"{what:31s} {name:18s} {span:8.1f} {off[0]:9.1e} {off[1]:9.1e} {distance:15.3f}{'  yes' * warned}")


def show(row):
    repeated = {True: "yes", False: "no", None: "-"}[row["repeats"]]
    place = f"{row['B']:5d} {row['d']:5d} {row['spread']:6.1f} {row['method']:23s}"
    times = f"{row['ms']:9.2f} [{row['low']:.2f}, {row['high']:.2f}]"
    quality = f"{row['gap']:8.4f} {row['used x1']:7.3f} {row['used x0']:7.3f} {repeated:>7s}"
    print(f"{place} {times}".ljust(75) + quality + " yes" * row["warned"], flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 256, 512], help="batch sizes, up to 4096")
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 50, 784], help="also 3072")
    parser.add_argument("--spreads", type=float, nargs="+", default=[2.0], help="of the data; the base has spread one")
    parser.add_argument("--epsilon", type=float, default=0.05, help="regularisation over the mean squared distance")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--limit", type=float, default=10.0, help="leaves out methods expected to take more seconds")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, help="JSON lines; cells that are there already are not measured again")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    if options.output is not None and options.output.exists():
        rows = [json.loads(line) for line in options.output.read_text().splitlines()]
    print(
        f"{'B':>5} {'d':>5} {'spread':>6} {'method':23s} {'ms':>9} [low, high]".ljust(75)
        + f"{'gap':>8} {'used x1':>7} {'used x0':>7} {'repeats':>7} warned"
    )
    for dimension in options.dimensions:
        for spread in options.spreads:
            slow = {}
            for count in sorted(options.sizes):
                cell = {"B": count, "d": dimension, "spread": spread}
                found = [row for row in rows if all(row[key] == value for key, value in cell.items())]
                if not found:
                    found = measure(count, dimension, spread, options.epsilon, options.rounds, options.limit, slow)
                    if options.output is not None:
                        with options.output.open("a") as file:
                            file.writelines(json.dumps(row) + "\n" for row in found)
                for row in found:
                    slow[row["method"]] = 8 * row["ms"] / 1e3
                    show(row)
    robustness()


if __name__ == "__main__":
    main()
