"""What a field with its divergence costs: in closed form, by rows of the Jacobian, by probes; and in the peers.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/divergences.py                 # all parts, a quarter of an hour
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/divergences.py --widths 64 --sizes 2 43 --rounds 3

Two hidden layers, concat-squash or FiLM, in D dimensions; the same network for all. ``evaluation`` is one value with
its divergence without a graph, ``training`` one with the gradient of their mean squares; ``density`` and
``likelihood step`` are whole solves by RK4, without and with the gradient. All methods of a line take turns; times are
medians over the rounds, as the process is charged for them (on one thread), ratios are to the closed form. ``loop`` is
D vector-Jacobian products of one graph, one after the other. flow_matching's likelihood has no gradient in the
parameters. zuko has one solver, which is adaptive: its time is given for as many evaluations of the network as ours.
"""

import argparse
import functools
import statistics
import time

import torch
from torch import nn

import cflow
from cflow import bases, divergence, fields, solvers
from cflow.divergence import Analytic, Exact, Hutchinson

try:
    from flow_matching.solver import ODESolver
except ImportError:
    ODESolver = None
try:
    from zuko.transforms import FreeFormJacobianTransform
except ImportError:
    FreeFormJacobianTransform = None

NETWORKS = {
    "concat-squash": lambda size, width: fields.ConcatSquash(size, (width, width)),
    "FiLM": lambda size, width: fields.MLP(size, (width, width), activation="tanh"),
}


class Loop(divergence.Divergence):
    """The trace by D vector-Jacobian products of a graph."""

    exact = True

    def begin(self, x, generator=None):
        return None

    def __call__(self, f, t, x, probe, *args):
        create = torch.is_grad_enabled()
        with torch.enable_grad():
            x = x.detach().requires_grad_() if not x.requires_grad else x
            v = f(t, x, *args)
            trace = 0.0
            for d in range(x.shape[1]):
                trace = trace + torch.autograd.grad(v[:, d].sum(), x, create_graph=create, retain_graph=True)[0][:, d]
        return (v, trace, None) if create else (v.detach(), trace.detach(), None)


class Counted(nn.Module):
    """A field that counts its evaluations, by either method."""

    def __init__(self, field):
        super().__init__()
        self.field, self.calls = field, 0
        self.event_shape, self.context_shape = field.event_shape, field.context_shape

    def forward(self, t, x, context=None):
        self.calls += 1
        return self.field(t, x, context)

    def value_and_divergence(self, t, x, context=None):
        self.calls += 1
        return self.field.value_and_divergence(t, x, context)


METHODS = {
    "Analytic": Analytic(),
    "Exact": Exact(),
    "loop": Loop(),
    "Hutchinson": Hutchinson(),
}


def made(network, size, width):
    """Builds a network with random parameters of a trained one's size."""
    torch.manual_seed(0)
    field = NETWORKS[network](size, width)
    nn.init.normal_(field.output.weight, std=width**-0.5)
    return Counted(field)


def single(field, x, gradient):
    """Lists one evaluation of each method."""
    t = torch.tensor(0.4)

    def call(method):
        probe = method.begin(x)
        with torch.set_grad_enabled(gradient):
            v, trace, _ = method(field, t, x, probe)
            calls = field.calls
            if gradient:
                field.zero_grad()
                (v.square().mean() + trace.square().mean()).backward()
        return trace.detach(), calls

    return {name: functools.partial(call, method) for name, method in METHODS.items()}


def solves(field, x, gradient, steps):
    """Lists a log-density by RK4 of each method, and of the peers."""
    flow = cflow.ContinuousFlow(field, bases.Normal(x.shape[1]), solver=solvers.RK4(steps))

    def call(method):
        with torch.set_grad_enabled(gradient):
            value = flow.log_prob(x, divergence=method)
            calls = field.calls
            if gradient:
                field.zero_grad()
                value.mean().backward()
        return value.detach(), calls

    calls = {name: functools.partial(call, method) for name, method in METHODS.items()}
    if ODESolver and not gradient:
        solver = ODESolver(velocity_model=lambda x, t: field(t, x))
        options = {"step_size": 1 / steps, "method": "rk4", "exact_divergence": True}
        likelihood = lambda: solver.compute_likelihood(x.clone(), flow.base.log_prob, **options)[1]
        calls["flow_matching"] = lambda: (likelihood(), field.calls)
    if FreeFormJacobianTransform:
        phi = tuple(field.parameters()) if gradient else ()
        transform = FreeFormJacobianTransform(field, 1.0, 0.0, phi, atol=1e-3, rtol=1e-3, exact=True)

        def theirs():
            with torch.set_grad_enabled(gradient):
                z, ladj = transform.call_and_ladj(x)
                value, calls = flow.base.log_prob(z) + ladj, field.calls
                if gradient:
                    field.zero_grad()
                    value.mean().backward()
            return value.detach(), calls

        calls["zuko"] = theirs
    return calls


def medians(calls, rounds):
    """Times all calls in turn, short ones many times in a round; gives the median of each in seconds."""
    spans = {name: [] for name in calls}

    def timed(call, count):
        begun = time.process_time()
        for _ in range(count):
            call()
        return (time.process_time() - begun) / count

    counts = {name: max(1, round(0.02 / timed(call, 1))) for name, call in calls.items()}
    for _ in range(rounds):
        for name, call in calls.items():
            spans[name].append(timed(call, counts[name]))
    return {name: statistics.median(each) for name, each in spans.items()}


PARTS = {
    "evaluation": lambda field, x, steps: single(field, x, False),
    "training": lambda field, x, steps: single(field, x, True),
    "density": lambda field, x, steps: solves(field, x, False, steps),
    "likelihood step": lambda field, x, steps: solves(field, x, True, steps),
}


def line(network, width, size, part, options):
    """Prints one line: the time of the closed form, function evaluations, and every other time over it."""
    field = made(network, size, width)
    x = torch.randn(options.batch, size, generator=torch.Generator().manual_seed(1))
    calls, counts, results = PARTS[part](field, x, options.steps), {}, {}
    for name, call in calls.items():
        field.calls = 0
        results[name], counts[name] = call()
    spans = medians(calls, options.rounds)
    if "zuko" in calls:
        spans["zuko"] *= counts["Analytic"] / counts["zuko"]
    error = ((results["Analytic"] - results["Exact"]).abs().max() / results["Exact"].abs().max()).item()
    shown = "".join(
        f"{spans[name] / spans['Analytic']:10.1f} ({counts[name]:3d})" if name in spans else " " * 16
        for name in COLUMNS
    )
    print(
        f"{network:14s}{width:6d}{size:5d}  {part:16s}{1e3 * spans['Analytic']:10.2f}{shown}{error:10.0e}", flush=True
    )


COLUMNS = ("Analytic", "Exact", "loop", "Hutchinson", "flow_matching", "zuko")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--widths", nargs="+", type=int, default=[64, 860])
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 6, 43, 63])
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--batch", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=1, help="of RK4 in a solve")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, batch {options.batch}, RK4({options.steps})")
    print("ratios to the closed form, in brackets the function evaluations; error of the closed form over the largest")
    print(
        f"{'network':14s}{'width':>6}{'D':>5}  {'':16s}{'ms':>10}"
        + "".join(f"{name:>16s}" for name in COLUMNS)
        + f"{'error':>10}"
    )
    for network in options.networks:
        for width in options.widths:
            for size in options.sizes:
                for part in options.parts:
                    line(network, width, size, part, options)


if __name__ == "__main__":
    main()
