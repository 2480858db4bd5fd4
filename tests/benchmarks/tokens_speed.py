"""What sampling of tokens costs outside the network: cflow next to flow_matching's ``MixtureDiscreteEulerSolver``.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/tokens_speed.py

Both draw from the same network, an embedding and a linear layer, with as many calls of it. Time is processor time of
the sampler minus that of its network calls, which the network counts; libraries alternate, and the figures are medians.
Memory is the largest sum of tensors outside the network, as PyTorch's profiler counts them, beyond that before the
sampler and the logits of one call. The peer draws in float32 by default; its example of text draws in float64.
``MinimalJump``, our default, is the process that the peer simulates; the other rows are those of ``TimeReversal``.
"""

import argparse
import bisect
import json
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch import nn

from cflow import ctmc

try:
    from flow_matching.path import MixtureDiscreteProbPath
    from flow_matching.path.scheduler import PolynomialConvexScheduler
    from flow_matching.solver import MixtureDiscreteEulerSolver
    from flow_matching.utils import ModelWrapper
except ImportError:
    MixtureDiscreteEulerSolver, ModelWrapper = None, nn.Module

STEPS = 32
SIZES = {27: (64, 256, 64), 50_000: (2, 128, 16)}
"""Batch, length and width of the network for each vocabulary."""


class Net(nn.Module):
    """Tokens and time to logits; counts its calls and their processor time."""

    def __init__(self, states, outputs, width):
        super().__init__()
        self.table, self.out = nn.Embedding(states, width), nn.Linear(width, outputs)
        self.calls, self.spent = 0, 0.0

    def forward(self, t, x, context=None, *, s=None):
        begun = time.process_time()
        with torch.profiler.record_function("network"):
            logits = self.out(self.table(x) + t.reshape(-1, 1, 1))
        self.calls += 1
        self.spent += time.process_time() - begun
        return logits


class Probabilities(ModelWrapper):
    """The network as the peer's solver calls it in its example."""

    def forward(self, x, t, **extras):
        return torch.softmax(self.model(t, x).float(), -1)


def ours(masked, size, rate=None, head="denoiser"):
    batch, length, width = SIZES[size]
    source = (ctmc.Mask if masked else ctmc.Uniform)(length, size)
    net = Net(source.states, size, width)
    flow = ctmc.TokenFlow(net, source, path=ctmc.Mixture(head=head))
    return net, lambda: flow.sample((batch,), sampler=ctmc.Analytic(STEPS, rate=rate))


def theirs(masked, size, dtype):
    batch, length, width = SIZES[size]
    states = size + masked
    net = Net(states, states, width)
    path = MixtureDiscreteProbPath(PolynomialConvexScheduler(n=1.0))
    solver = MixtureDiscreteEulerSolver(Probabilities(net), path, states)

    def sample():
        x = torch.full((batch, length), size) if masked else torch.randint(size, (batch, length))
        return solver.sample(x, step_size=1 / STEPS, dtype_categorical=dtype)

    return net, sample


def ways(masked, size):
    if masked:
        found = {"cflow": ours(masked, size)}
    else:
        found = {
            "cflow, MinimalJump": ours(masked, size, ctmc.MinimalJump()),
            "cflow, leave-one-out": ours(masked, size, ctmc.TimeReversal(), head="leave-one-out"),
            "cflow, denoiser": ours(masked, size, ctmc.TimeReversal()),
        }
    if MixtureDiscreteEulerSolver is not None:
        found["flow_matching, float32"] = theirs(masked, size, torch.float32)
        if size == 27:
            found["flow_matching, float64"] = theirs(masked, size, torch.float64)
    return found


def clock(net, sample):
    """Returns milliseconds outside and inside the network, and the calls."""
    net.calls, net.spent = 0, 0.0
    begun = time.process_time()
    sample()
    whole = time.process_time() - begun
    return 1e3 * (whole - net.spent), 1e3 * net.spent, net.calls


def memory(sample, logits):
    """Returns the peak of tensors in MB outside the network, beyond ``logits`` bytes."""
    kinds = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds, profile_memory=True) as profiler:
        sample()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())["traceEvents"]
    inside = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e.get("name") == "network" and "dur" in e)
    begins = [begin for begin, _ in inside]
    totals = []
    for event in (e for e in events if e.get("name") == "[memory]"):
        before = bisect.bisect(begins, event["ts"]) - 1
        if before < 0 or event["ts"] > inside[before][1]:
            totals.append((event["ts"], event["args"]["Total Allocated"], event["args"]["Bytes"]))
    first = min(totals)
    return (max(total for _, total, _ in totals) - (first[1] - first[2]) - logits) / 1e6


def compare(masked, size, rounds):
    batch, length, _ = SIZES[size]
    found, kept = ways(masked, size), {}
    with torch.no_grad():
        warm = 1 if size == 27 else 0
        for number in range(rounds + warm):
            names = list(found)
            for name in names[number % len(names) :] + names[: number % len(names)]:
                result = clock(*found[name])
                if number >= warm:
                    kept.setdefault(name, []).append(result)
        peak = {name: memory(sample, 4 * batch * length * size) for name, (_, sample) in found.items()}
    print(f"\n{'mask' if masked else 'uniform'}, vocabulary {size}, {batch} x {length} tokens, {STEPS} steps")
    print(f"{'':26s}{'outside ms':>12s}{'lowest, highest':>20s}{'network ms':>12s}{'calls':>7s}{'MB beyond':>11s}")
    for name, results in kept.items():
        outside, inside, calls = zip(*results)
        spread = f"{min(outside):.1f}, {max(outside):.1f}"
        line = f"{name:26s}{statistics.median(outside):12.1f}{spread:>20s}{statistics.median(inside):12.1f}"
        print(f"{line}{calls[0]:7d}{peak[name]:11.1f}")
    middle = {name: statistics.median(each[0] for each in results) for name, results in kept.items()}
    for name in middle:
        if "cflow" in name:
            for peer in (each for each in middle if "flow_matching" in each):
                most = 0.1 if size == 27 else 0.2
                time_share, memory_share = middle[name] / middle[peer], peak[name] / peak[peer]
                verdict = "PASS" if time_share <= most and memory_share <= 0.25 else "FAIL"
                print(
                    f"{verdict}  {name} over {peer}: time {time_share:.3f} (at most {most}), memory {memory_share:.3f}"
                )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vocabularies", nargs="+", type=int, choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, one thread; the peer is {'here' if MixtureDiscreteEulerSolver else 'not here'}")
    for size in asked.vocabularies:
        for masked in (True, False):
            compare(masked, size, asked.rounds)


if __name__ == "__main__":
    main()
