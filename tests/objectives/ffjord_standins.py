"""Linear fields with their closed forms, and small runs: what the tests of FFJORD share."""

import math

import torch
from torch import nn

import cflow
from cflow import bases, divergence, fields, solvers, training

TIGHT = {"rtol": 1e-10, "atol": 1e-10}
MATRIX = [[0.6, -0.8], [0.3, -0.4]]


class LinearField(fields.Field):
    """``v(t, x) = A x + b + C c``, with a closed form of its divergence."""

    def __init__(self, matrix=MATRIX, context=0):
        matrix = torch.tensor(matrix, dtype=torch.float64)
        super().__init__(len(matrix), context or None)
        self.matrix = nn.Parameter(matrix)
        self.shift = nn.Parameter(torch.linspace(-0.5, 0.7, len(matrix), dtype=torch.float64))
        self.mixing = nn.Parameter(torch.ones(len(matrix), context, dtype=torch.float64)) if context else None

    def forward(self, t, x, context=None, *, s=None):
        self.check(t, x, context, s)
        return x @ self.matrix.T + self.shift + (0 if context is None else context @ self.mixing.T)

    def value_and_divergence(self, t, x, context=None):
        return self(t, x, context), self.matrix.trace().expand(len(x))


def linear_flow(**options):
    field = LinearField(**options)
    return cflow.ContinuousFlow(field, bases.Normal(2), context_shape=field.context_shape).double()


def carried(field, x, length=1.0, context=None):
    """Solves the linear equation back over a length of time: the matrix exponential of ``[[A, b], [0, 0]]``."""
    shift = field.shift if context is None else field.shift + context @ field.mixing.T
    shift = shift.expand(len(x), -1)
    generator = torch.zeros(len(x), 3, 3, dtype=torch.float64)
    generator = torch.cat((torch.cat((field.matrix.expand(len(x), 2, 2), shift.unsqueeze(2)), 2), generator[:, 2:]), 1)
    point = torch.cat((x, torch.ones(len(x), 1, dtype=torch.float64)), 1)
    return (torch.linalg.matrix_exp(-length * generator) @ point.unsqueeze(2))[:, :2, 0]


def nats_of(field, x, length=1.0, context=None):
    """The negative log-density of a standard normal carried over a length of time."""
    z = carried(field, x, length, context)
    return z.square().sum(1) / 2 + math.log(2 * math.pi) + length * field.matrix.trace()


def points(generator, count=5):
    return torch.randn(count, 2, generator=generator, dtype=torch.float64) + 0.5


MODES = {
    "backprop": solvers.Dopri5(**TIGHT),
    "checkpointed": solvers.Dopri5(**TIGHT, gradient=solvers.Checkpointed()),
    "joint": solvers.Dopri5(**TIGHT, per_sample=False, gradient=solvers.Checkpointed()),
    "fixed grid": solvers.RK4(steps=100, gradient=solvers.Checkpointed()),
    "torchdiffeq": solvers.TorchDiffEq("dopri5", **TIGHT),
    "continuous adjoint": solvers.TorchDiffEq("dopri5", **TIGHT, gradient=solvers.ContinuousAdjoint()),
}
DIVERGENCES = {"exact": divergence.Exact(), "analytic": divergence.Analytic()}


def scattered(flow, generator):
    """Sets the last layer off zero, where fields stand still."""
    nn.init.normal_(flow.field.output.weight, std=0.5, generator=generator)
    return flow


EXACTLY = {"divergence": divergence.Exact(), "solver": solvers.Dopri5(rtol=1e-7, atol=1e-7)}


def small(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2))


REGULARISED = {"kinetic": 0.05, "jacobian": 0.1, "steer": 0.2}


def fitted(objective, flow, x, **options):
    settings = {"steps": 6, "batch_size": 16, "lr": 1e-2, "log_every": 2, "seed": 3, "schedule": training.Constant()}
    return training.fit(flow, objective, x, **(settings | options))


def without_clock(run):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in run.history]
