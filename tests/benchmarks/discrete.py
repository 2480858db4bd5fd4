"""Classical flows beside zuko, nflows and normflows: training steps, sampling, what compiles, operations, memory.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/discrete.py                    # all parts
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/discrete.py --parts eager --sizes small

Equal architectures (``discrete_peers.py``). All libraries of a line take turns in one run; times are medians over the
rounds, ratios are to ours. A training step is the loss and its gradients, without the optimizer, which is the same for
all. Compiled: ``torch.compile`` of ``log_prob``, time to compile not counted; what a library cannot compile whole is
compiled in parts, as a user's call would be.
"""

import argparse
import statistics
import time

import torch
from discrete_peers import KINDS, makers, unsettled

from cflow import discrete
from cflow.testing.solvers.operations import Operations

SIZES = {  # features, hidden, batches
    "small": (16, (64, 64), (64, 1024)),
    "large": (64, (512, 512), (1024,)),
}
LAYERS = 5


def turns(calls, rounds, limit=20.0):
    """Times calls in turn: name -> median seconds. A call that takes longer than a share of the limit is timed less."""
    spans = {}
    for name, call in calls.items():
        begun = time.perf_counter()
        call()
        spans[name] = [time.perf_counter() - begun]
    for _ in range(rounds):
        for name, call in calls.items():
            if min(spans[name]) * len(spans[name]) > limit / 4:
                continue
            begun = time.perf_counter()
            call()
            spans[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each[1:] or each) for name, each in spans.items()}


def models(kind, features, hidden):
    for name, maker in makers().items():
        torch.manual_seed(0)
        log_prob, sample, parameters = maker(kind, features, hidden, LAYERS)
        unsettled(parameters)
        yield name, log_prob, sample, parameters


def step(log_prob, parameters, x):
    def call():
        torch.autograd.grad(-log_prob(x).mean(), parameters, allow_unused=True)

    return call


def line(title, spans):
    first = spans.get("cflow")
    shown = "".join(
        f"{name:>11} {1e3 * span:9.2f}{'' if name == 'cflow' else f' ({span / first:5.1f}x)':9}"
        for name, span in spans.items()
    )
    print(f"{title:46s}{shown}", flush=True)


def eager(options, compiled=False):
    """Prints milliseconds of training steps and of sampling."""
    print(f"\n{'ms (and over ours)' + (', compiled' if compiled else '')}")
    for size in options.sizes:
        features, hidden, batches = SIZES[size]
        for kind in options.kinds:
            for batch in batches:
                x = torch.randn(batch, features, generator=torch.Generator().manual_seed(1))
                steps, samples = {}, {}
                torch._dynamo.reset()
                for name, log_prob, sample, parameters in models(kind, features, hidden):
                    if compiled:
                        log_prob = torch.compile(log_prob, dynamic=False)
                    steps[name] = step(log_prob, parameters, x)
                    if compiled:
                        steps[name]()  # compiles, which the first call that is timed must not
                    samples[name] = lambda sample=sample, batch=batch: sample(batch)
                    if name == "cflow":
                        samples["own log_prob"] = lambda log_prob=log_prob, x=x: density(log_prob, x)
                line(f"{kind} D={features} B={batch}, step", turns(steps, options.rounds))
                if not compiled:
                    line(f"{kind} D={features} B={batch}, sample", turns(samples, options.rounds))


@torch.no_grad()
def density(log_prob, x):
    return log_prob(x)


def compiled(options):
    """Prints milliseconds of compiled training steps."""
    eager(options, compiled=True)


def breaks(options):
    """Prints how many graphs a compiled log_prob falls into, and whether our presets compile whole."""
    print(f"\n{'graph breaks in log_prob':46s}")
    for kind in options.kinds:
        found = {}
        for name, log_prob, _, _ in models(kind, 4, (16, 16)):
            torch._dynamo.reset()
            found[name] = torch._dynamo.explain(log_prob)(torch.randn(8, 4)).graph_break_count
        print(f"{kind:46s}" + "".join(f"{name:>11} {count:3d}" for name, count in found.items()), flush=True)
    for name, preset in discrete.PRESETS.items():
        flow, counts = preset(4), []
        x = torch.randn(8, 4)
        for call in (lambda flow=flow, x=x: flow.log_prob(x), lambda flow=flow: flow.sample((8,))):
            torch._dynamo.reset()
            counts.append(torch._dynamo.explain(call)().graph_break_count)
        print(f"  {name:20s} log_prob {counts[0]}, sample {counts[1]}", flush=True)


def operations(options):
    """Prints the operations of one call of a rational-quadratic spline, with and without views."""
    from discrete_peers import nflows, zuko

    x = torch.randn(1024, 16)
    family = discrete.RationalQuadratic(8)
    raw = torch.randn(1024, 16, family.size)
    calls = {
        "cflow encode": lambda: family.encode(x, raw),
        "cflow decode": lambda: family.decode(x, raw),
    }
    parts = raw.split((8, 8, 7), -1)
    if zuko:
        calls["zuko forward"] = lambda: zuko.transforms.MonotonicRQSTransform(*parts).call_and_ladj(x)
        calls["zuko inverse"] = lambda: zuko.transforms.MonotonicRQSTransform(*parts).inv.call_and_ladj(x)
    if nflows:
        spline = nflows.transforms.splines.unconstrained_rational_quadratic_spline
        for inverse in (False, True):
            calls[f"nflows {'inverse' if inverse else 'forward'}"] = lambda inverse=inverse: spline(
                x, *parts, inverse=inverse, tails="linear", tail_bound=5.0
            )
    print(f"\n{'a spline call, [1024, 16]':46s}{'operations':>12}{'reads':>8}{'ms':>8}")
    spans = turns(calls, options.rounds)
    for name, call in calls.items():
        with torch.no_grad(), Operations() as counted:
            call()
        print(f"{name:46s}{counted.counts.total():12d}{counted.reads:8d}{1e3 * spans[name]:8.2f}", flush=True)


def memory(options):
    """Prints what a backward pass keeps of couplings of some depth, composed and reversible, and the step's time."""
    print(f"\n{'what is kept for the backward pass, B=1024, D=16':50s}{'MB':>8}{'ms a step':>12}")
    x = torch.randn(1024, 16)
    for depth in (8, 32, 128):
        for kind in (discrete.Compose, discrete.Reversible):
            torch.manual_seed(0)
            flow = discrete.realnvp(16, layers=depth)
            composed = kind(*flow.bijection.maps)
            unsettled(composed.parameters())
            kept = {}

            def pack(tensor, kept=kept):
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
                return tensor

            weights = {each.untyped_storage().data_ptr() for each in composed.parameters()}
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                z, ladj = composed.encode(x)
            total = sum(size for place, size in kept.items() if place not in weights) / 2**20
            del z, ladj

            def call(composed=composed):
                z, ladj = composed.encode(x)
                torch.autograd.grad(z.square().sum() - ladj.sum(), list(composed.parameters()))

            span = turns({"step": call}, options.rounds)["step"]
            print(f"{f'{kind.__name__}, {depth} couplings':50s}{total:8.1f}{1e3 * span:12.1f}", flush=True)


PARTS = {each.__name__: each for each in (eager, compiled, breaks, operations, memory)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread; libraries: {', '.join(makers())}")
    for part in options.parts:
        PARTS[part](options)
