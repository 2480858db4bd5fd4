"""What the tests of captured solves share: a network, solvers of every kind, and comparisons."""

from dataclasses import replace

import torch
from torch import nn

from cflow.solvers import (
    DEIS,
    PID,
    RK4,
    AdamsBashforth,
    Adaptive,
    Bosh3,
    Checkpointed,
    Dopri5,
    Dopri8,
    DPMSolverPP2M,
    Euler,
    Heun,
    Midpoint,
    Ralston,
    Tsit5,
    UniPC,
)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(2, 2, generator=generator))
        self.gain = 1.0
        self.rest = nn.Dropout(0.0)

    def forward(self, t, y, shift=None):
        dy = self.gain * torch.tanh(self.rest(y) @ self.weight + t.unsqueeze(1))
        return dy if shift is None else dy + shift


def same(one, two, **tolerances):
    assert one.stats.nfe == two.stats.nfe
    for name in ("steps", "accepted", "rejected"):
        assert torch.equal(getattr(one.stats, name), getattr(two.stats, name))
    assert torch.equal(one.status, two.status)
    for name in ("y", "quadratures", "trajectory"):
        torch.testing.assert_close(getattr(one, name), getattr(two, name), **tolerances)


def eager(solver, *arguments, **options):
    """Solves without a graph, and looks at an adaptive solve as often as a graph does."""
    if isinstance(solver, Adaptive):
        solver = replace(solver, check_every=solver.check_every or 4)
    return solver.solve(*arguments, **options)


EXACT = {"rtol": 0, "atol": 0}


GRIDS = [
    Euler(6), Midpoint(3), Heun(3), Ralston(3), RK4(2), Heun(grid=(0.1, 0.5)), Euler(4, gradient=Checkpointed()),
    AdamsBashforth(6), AdamsBashforth(6, order=4), DPMSolverPP2M(5), UniPC(5, order=3), DEIS(5),
]  # fmt: skip


ADAPTIVE = [
    Dopri5(1e-4, 1e-4), Tsit5(1e-4, 1e-4, check_every=3), Bosh3(1e-3, 1e-3, controller=PID(0.4, 0.3, 0.1)),
    Dopri8(1e-6, 1e-6, first_step=0.1), Dopri5(1e-4, 1e-4, dt_max=0.1), Dopri5(1e-9, 1e-9, dt_min=0.2, check_every=1),
    Dopri5(1e-9, 1e-9, dt_min=0.2, on_dt_min="accept"), Dopri5(1e-9, 1e-9, max_steps=7),
]  # fmt: skip


def rates():
    return torch.logspace(-1, 1.5, 8, dtype=torch.float64).unsqueeze(1)


JOINT = [
    Dopri5(1e-6, 1e-6, per_sample=False), Bosh3(1e-4, 1e-4, per_sample=False, controller=PID(0.4, 0.3)),
    Dopri8(1e-8, 1e-8, per_sample=False), Dopri5(1e-9, 1e-9, max_steps=5, per_sample=False),
]  # fmt: skip


def draw(seed=0):
    return torch.Generator().manual_seed(seed)
