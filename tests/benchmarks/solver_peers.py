"""The peers of the solver benchmarks, where they can be imported, and how calls are counted and timed."""

import collections
import statistics
import time

import torch

try:
    import torchdiffeq
except ImportError:
    torchdiffeq = None
try:
    import torchode
except ImportError:
    torchode = None
try:
    import torchdyn.numerics as torchdyn
except ImportError:
    torchdyn = None


class Counted:
    """A field that counts its calls."""

    def __init__(self, field):
        self.field, self.calls = field, 0

    def __call__(self, t, y, *args):
        self.calls += 1
        return self.field(t, y, *args)


def medians(calls, rounds):
    """Runs every call once to warm up, then all in turn; gives the median of each in seconds, and its last result."""
    spans, results = collections.defaultdict(list), {}
    for number in range(rounds + 1):
        for name, call in calls.items():
            begun = time.perf_counter()
            results[name] = call()
            if number:
                spans[name].append(time.perf_counter() - begun)
    return {name: statistics.median(each) for name, each in spans.items()}, results


def ode(field, y0, t1, method, tolerance, **options):
    """Solves by torchdiffeq."""
    times = torch.tensor([0.0, t1], dtype=y0.dtype)
    return torchdiffeq.odeint(field, y0, times, rtol=tolerance, atol=tolerance, method=method, options=options or None)


def torchode_solver(field, method, tolerance, dt_max=None, **options):
    """Builds torchode's solver with an integral controller."""
    term = torchode.ODETerm(field, **options)
    kind = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method]
    control = torchode.IntegralController(atol=tolerance, rtol=tolerance, term=term, dt_max=dt_max)
    return torchode.AutoDiffAdjoint(kind(term=term), control)
