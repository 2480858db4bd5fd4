"""What sampling costs over the bare network: 100 Euler steps by ``flow.sample`` against a hand-written loop.

    python tests/benchmarks/sampling.py

Both draw from the same network; rounds alternate, and the ratio of each pair of rounds counts. The bare loop is what
one would write: ``x = x + h * net(t, x)`` with times made ahead.
"""

import statistics
import time

import torch

import cflow
from cflow import bases, fields, paths, solvers


def bare(field, x, steps):
    times = torch.linspace(0, 1, steps + 1)[:-1]
    for t in times:
        x = x + field(t.expand(len(x)), x) / steps
    return x


def clock(call):
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def compare(name, flow, count, steps=100, rounds=25):
    solver = solvers.Euler(steps=steps)
    ratios, ours = [], []
    with torch.no_grad():
        for number in range(rounds + 3):
            # Turns are taken in going first: whoever comes second finds a warmer cache.
            loop = lambda: bare(flow.field, flow.base.sample((count,)), steps)
            whole = lambda: flow.sample((count,), solver=solver)
            first, second = (clock(loop), clock(whole)) if number % 2 else (clock(whole), clock(loop))[::-1]
            if number >= 3:
                ratios.append(second / first)
                ours.append(second)
    low, middle, high = (sorted(ratios)[int(q * (rounds - 1))] for q in (0.25, 0.5, 0.75))
    milliseconds = statistics.median(ours) * 1e3
    print(f"{name:34s} {milliseconds:9.1f} ms   ratio {middle:.3f}   quartiles {low:.3f} to {high:.3f}")


def main():
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; 100 Euler steps, flow.sample / bare loop")
    torch.manual_seed(0)
    mlp = cflow.ContinuousFlow(fields.MLP(2, hidden=(64, 64, 64)), bases.Normal(2), path=paths.Linear())
    unet = cflow.ContinuousFlow(fields.UNet(1, 8, width=32), bases.Normal((1, 8, 8)), path=paths.Linear())
    for count in (64, 1024):
        compare(f"MLP(2, 64 x 3), batch {count}", mlp, count)
    compare("UNet(1, 8, width=32), batch 16", unet, 16, rounds=7)


if __name__ == "__main__":
    main()
