"""A training step of FFJORD beside torchdiffeq and zuko: the same network, data, estimator and tolerance.

    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/ffjord.py                  # some six minutes
    OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/ffjord.py --sizes 2 6 --widths 64

One step is the mean negative log-density of a batch and its gradient; all methods of a cell take turns, times are
medians over the rounds. ``forward`` and ``backward`` count evaluations of the network, ``peak`` is what the CPU's
allocator holds above the start (by torch's profiler), ``error`` the largest deviation of a log-density from a float64
solve at 1e-10 with the same probes, over the first rows.

The network is ``fields.ConcatSquash`` with two hidden layers (64 rows of data where it is wide, 512 where it is not),
and every library calls it as it is. torchdiffeq is used by hand, as FFJORD itself does: state and log-determinant as a
tuple, one Rademacher probe per sample; its steps are common to the batch, as ours are but for ``per sample``. So are
zuko's (``FreeFormJacobianTransform(exact=False)``), whose error is the largest in the batch and whose probes are
Gaussian.
"""

import argparse
import copy
import math
import os
import statistics
import time

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # of the profiler

import torch

import cflow
from cflow import bases, divergence, fields, objectives, solvers

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None
try:
    import zuko.transforms as zuko
except ImportError:
    zuko = None

TOLERANCE = 1e-5
ROWS = {64: 512, 860: 64}
JUDGED = 16  # rows


class Counted(torch.nn.Module):
    """A network that counts its calls."""

    def __init__(self, network):
        super().__init__()
        self.network, self.calls = network, 0
        self.event_shape, self.context_shape = network.event_shape, network.context_shape

    def forward(self, t, x, context=None, *, s=None):
        self.calls += 1
        return self.network(t, x, context)

    def value_and_divergence(self, t, x, context=None):
        self.calls += 1
        return self.network.value_and_divergence(t, x, context)


def network_of(features, width):
    """A network away from its start, where it stands still: as after some training."""
    torch.manual_seed(0)
    network = fields.ConcatSquash(features, (width, width))
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.mul_(3.0)
        torch.nn.init.normal_(network.output.weight, std=4.0 / math.sqrt(width))
    return network


def of_cflow(estimate, tolerance=TOLERANCE, per_sample=False, **options):
    """Gives ``(field, x, probe) -> [B]``: the log-density by our objective."""
    solver = solvers.Dopri5(tolerance, tolerance, per_sample=per_sample, **options)

    def log_prob(field, x, probe):
        flow = cflow.ContinuousFlow(field, bases.Normal(x.shape[1]))
        objective = objectives.FFJORD(estimate, solver=solver)
        batch = objective.prepare(flow.base, (x, 0.0))
        batch.probe = None if estimate.exact else probe.unsqueeze(1)
        return -objective.loss(flow, batch)

    return log_prob


def of_torchdiffeq(solve, **options):
    def log_prob(field, x, probe):
        class Augmented(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.field = field

            def forward(self, t, state):
                with torch.enable_grad():
                    point = state[0].requires_grad_(True)
                    v = field(t, point)
                    product = torch.autograd.grad(v, point, probe, create_graph=True)[0]
                return v, -(product * probe).sum(1)

        start = x.clone(), torch.zeros(len(x), dtype=x.dtype)
        times = torch.tensor([1.0, 0.0])
        z, change = solve(Augmented(), start, times, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5", **options)
        return normal(z[-1]) - change[-1]

    return log_prob


def of_zuko(field, x, probe):
    torch.manual_seed(1)  # its probe, which the reference draws again
    transform = zuko.FreeFormJacobianTransform(
        field, 1.0, 0.0, phi=field.parameters(), atol=TOLERANCE, rtol=TOLERANCE, exact=False
    )
    z, ladj = transform.call_and_ladj(x)
    return normal(z) + ladj


def normal(z):
    return -z.square().sum(1) / 2 - z.shape[1] / 2 * math.log(2 * math.pi)


HUTCHINSON, ANALYTIC = "cflow Backprop", "cflow Backprop, Analytic"


def methods():
    """Lists ``name -> log_prob``, all at the same tolerance."""
    estimate, exact = divergence.Hutchinson(), divergence.Analytic()
    saving, whole = {"gradient": solvers.Checkpointed()}, {"gradient": solvers.Backprop()}
    found = {
        HUTCHINSON: of_cflow(estimate, **whole),
        "cflow Checkpointed": of_cflow(estimate, **saving),
        "cflow Checkpointed, per sample": of_cflow(estimate, per_sample=True, **saving),
        ANALYTIC: of_cflow(exact, **whole),
        "cflow Checkpointed, Analytic": of_cflow(exact, **saving),
    }
    if torchdiffeq:
        found["torchdiffeq odeint"] = of_torchdiffeq(torchdiffeq.odeint)
        found["torchdiffeq odeint_adjoint"] = of_torchdiffeq(torchdiffeq.odeint_adjoint)
    if zuko:
        found["zuko"] = of_zuko
    return found


def references(network, x, probe):
    """Gives the log-densities of the first rows in float64, by what stands in for the trace."""
    exact = copy.deepcopy(network).double()
    torch.manual_seed(1)
    gaussian = torch.randn_like(x)
    found = {}
    for name, estimate, e in (
        ("analytic", divergence.Analytic(), None),
        ("rademacher", divergence.Hutchinson(), probe),
        ("gaussian", divergence.Hutchinson("gaussian"), gaussian),
    ):
        flow = cflow.ContinuousFlow(exact, bases.Normal(x.shape[1])).double()
        objective = objectives.FFJORD(estimate, solver=solvers.Dopri8(1e-10, 1e-10))
        batch = objective.prepare(flow.base, (x[:JUDGED].double(), 0.0))
        batch.probe = None if e is None else e[:JUDGED].double().unsqueeze(1)
        with torch.no_grad():
            found[name] = -objective.loss(flow, batch)
    return found


def peak(call):
    """Gives the largest number of bytes that a call holds above those at its start."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = most = 0
    for event in sorted(
        (each for each in profile.profiler.kineto_results.events() if each.name() == "[memory]"),
        key=lambda each: each.start_ns(),
    ):
        held += event.nbytes()
        most = max(most, held)
    return most


def cell(features, width, options):
    """Prints one size."""
    network, count = network_of(features, width), ROWS[width]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, features, generator=generator)
    probe = torch.randint(0, 2, x.shape, generator=generator).float() * 2 - 1
    truths = references(network, x, probe)
    calls, spans, lines = methods(), {}, {}

    def step(log_prob, field=network):
        network.zero_grad()
        values = log_prob(field, x, probe)
        (-values.mean()).backward()
        return values

    def look(name, log_prob):
        field = Counted(network)
        values = log_prob(field, x, probe)
        forward = field.calls
        (-values.mean()).backward()
        truth = truths["analytic" if "Analytic" in name else "gaussian" if name == "zuko" else "rademacher"]
        error = (values.detach()[:JUDGED].double() - truth).abs().max().item()
        lines[name] = forward, field.calls - forward, error, peak(lambda: step(log_prob))

    for name, log_prob in calls.items():  # warms up, too
        look(name, log_prob)
    begun, number = time.perf_counter(), 0
    while number < 3 or (number < options.rounds and time.perf_counter() - begun < options.limit):
        for name, log_prob in calls.items():
            before = time.perf_counter()
            step(log_prob)
            spans.setdefault(name, []).append(time.perf_counter() - before)
        number += 1
    middles = {name: statistics.median(each) for name, each in spans.items()}
    print(
        f"\n{f'D = {features}, width {width}, {count} rows, {number} rounds':40s}"
        f"{'ms':>9}{'spread':>8}{'ratio':>8}{'forward':>9}{'backward':>9}{'error':>10}{'peak MB':>9}"
    )
    for name in calls:
        forward, backward, error, held = lines[name]
        spread = (max(spans[name]) - min(spans[name])) / middles[name]
        print(
            f"{name:40s}{1e3 * middles[name]:9.1f}{spread:8.0%}{middles[name] / middles[HUTCHINSON]:8.2f}{forward:9d}"
            f"{backward:9d}{error:10.1e}{held / 2**20:9.1f}",
            flush=True,
        )
    for peer in {name.split()[0]: None for name in calls if not name.startswith("cflow")}:
        best = min(middles[name] for name in calls if name.startswith(peer))
        told = [f"{best / middles[name]:.2f} times {name}" for name in (HUTCHINSON, ANALYTIC)]
        print(f"  {peer}'s better mode takes {' and '.join(told)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[2, 6, 43])
    parser.add_argument("--widths", nargs="+", type=int, choices=ROWS, default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=9, help="at most")
    parser.add_argument("--limit", type=float, default=45.0, help="seconds of rounds per cell, three rounds at least")
    options = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, tolerance {TOLERANCE:g}")
    for width in options.widths:
        for features in options.sizes:
            cell(features, width, options)


if __name__ == "__main__":
    main()
