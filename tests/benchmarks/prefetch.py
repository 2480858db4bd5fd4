"""Times a training step without a coupling, with optimal transport in line, and with it ahead of the step.

A small U-Net, or a perceptron, on 8x8 digits. One run compares what the step costs alone, what a plan costs alone, and
what is left of the plan when it runs in worker threads. Rounds alternate. Run by hand, on an idle machine with
``OMP_NUM_THREADS`` below the number of cores:

    OMP_NUM_THREADS=1 python tests/benchmarks/prefetch.py [--batch 128] [--width 32] [--pool 1] [--network mlp]
"""

import argparse
import os
import statistics
import time

import torch

import cflow
from cflow import bases, bijections, couplings, data, fields, objectives, paths, training
from cflow.training.preparation import default_workers


def build(width, network="unet"):
    torch.manual_seed(0)
    images = data.digits()
    if network == "mlp":
        field, x = fields.MLP(64, hidden=(8 * width,) * 3), images.train.flatten(1)
    else:
        field, x = fields.UNet(1, 8, width=width, attention=()), images.train
    shape = x.shape[1:]
    flow = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Linear())
    return flow.with_transform(bijections.Dequantise(shape, images.levels), bijections.Rescale(shape)), x


def step_time(asked, coupling, steps, **options):
    """Milliseconds of each step after the first few."""
    flow, x = build(asked.width, asked.network)
    ticks = []
    training.fit(
        flow,
        objectives.FlowMatching(coupling),
        x,
        steps=steps + 5,
        batch_size=asked.batch,
        callbacks=[lambda step, flow, row: ticks.append(time.perf_counter())],
        pool=asked.pool,
        **options,
    )
    return 1e3 * (ticks[-1] - ticks[4]) / steps


def plan_time(asked, rounds=20):
    """Milliseconds of a plan for a batch (of its part of a pool) as training prepares it, alone: the median."""
    flow, x = build(asked.width, asked.network)
    rows, spans = asked.batch * asked.pool, []
    with torch.no_grad():
        for _ in range(rounds):
            u = flow.preprocess(flow.cast(x[torch.randperm(len(x))[:rows]]))[0]
            x0 = flow.base.sample((rows,))
            begun = time.perf_counter()
            couplings.OptimalTransport()(x0, u)
            spans.append(1e3 * (time.perf_counter() - begun) / asked.pool)
    return statistics.median(spans)


def main():
    parser = argparse.ArgumentParser()
    for name, usual in {"batch": 128, "width": 32, "pool": 1, "steps": 40, "rounds": 3}.items():
        parser.add_argument(f"--{name}", type=int, default=usual)
    parser.add_argument("--network", choices=("unet", "mlp"), default="unet")
    parser.add_argument("--workers", type=int, default=default_workers(torch.device("cpu")))
    asked = parser.parse_args()
    transport = couplings.OptimalTransport()
    ways = {
        "no coupling": (None, {"prefetch": 0}),
        "no coupling, ahead": (None, {"workers": asked.workers}),
        "transport in line": (transport, {"prefetch": 0}),
        "transport ahead": (transport, {"workers": asked.workers}),
    }
    spans = {name: [] for name in ways}
    for _ in range(asked.rounds):
        for name, (coupling, options) in ways.items():
            spans[name].append(step_time(asked, coupling, asked.steps, **options))
    middle = {name: statistics.median(each) for name, each in spans.items()}
    least = {name: min(each) for name, each in spans.items()}  # the least disturbed round: ratios are of these
    plan, step = plan_time(asked), least["no coupling"]
    print(
        f"{asked.network}, batch {asked.batch}, pool {asked.pool}, width {asked.width}; {os.cpu_count()} cores, "
        f"{torch.get_num_threads()} of torch, {asked.workers} workers; a plan takes {plan:.1f} ms a step"
    )
    for name, each in spans.items():
        print(f"{name:20} {middle[name]:8.1f} ms a step ({min(each):.1f} to {max(each):.1f})")
    bound = max(step, plan / asked.workers)
    print(f"ahead / no coupling           {least['transport ahead'] / step:6.3f}   (wanted: at most 1.10)")
    print(f"ahead / max(step, plan/cores) {least['transport ahead'] / bound:6.3f}   (wanted: at most 1.15)")
    print(f"in line / ahead               {least['transport in line'] / least['transport ahead']:6.3f}")


if __name__ == "__main__":
    main()
