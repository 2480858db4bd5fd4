"""Flows whose law is Gaussian in closed form, and the gradients of their losses."""

import math

import torch
from torch import nn
from torch.distributions import MultivariateNormal

import cflow
from cflow import bases, discrete, solvers

F64 = torch.float64
LOG_Z = 1.7
NORMAL = MultivariateNormal(torch.tensor([0.7, -0.4], dtype=F64), torch.tensor([[1.3, -0.5], [-0.5, 0.6]], dtype=F64))


class Linear(nn.Module):
    """The field ``A x + b``."""

    def __init__(self, features):
        super().__init__()
        self.matrix, self.shift = nn.Parameter(torch.zeros(features, features)), nn.Parameter(torch.zeros(features))

    def forward(self, t, x, context=None, *, s=None):
        return x @ self.matrix.t() + self.shift


def pair(kind):
    """A Gaussian flow away from the target, and the target ``log_joint``."""
    if kind == "discrete":
        flow = discrete.NormalizingFlow(discrete.LULinear(2), bases.Normal(2)).double()
        values = {"bijection.weight": [[0.2, 0.3], [-0.4, -0.3]], "bijection.shift": [0.5, 0.3]}
    else:
        flow = cflow.ContinuousFlow(Linear(2), bases.Normal(2), solver=solvers.RK4(steps=3)).double()
        values = {"field.matrix": [[-0.3, 0.2], [-0.5, 0.3]], "field.shift": [-0.4, 0.2]}
    with torch.no_grad():
        for name, each in flow.named_parameters():
            each.copy_(torch.tensor(values[name], dtype=F64))
    return flow, lambda x: NORMAL.log_prob(x) + LOG_Z


def law(flow):
    """The flow's law in closed form, differentiable in its parameters."""
    if isinstance(flow, cflow.ContinuousFlow):
        # exp of [[A, b], [0, 0]] maps (z, 1) to (x, 1).
        whole = torch.zeros(3, 3, dtype=F64)
        whole = torch.cat([torch.cat([flow.field.matrix, flow.field.shift[:, None]], 1), whole[2:]])
        moved = torch.linalg.matrix_exp(whole)
        matrix, mean = moved[:2, :2], moved[:2, 2]
    else:
        weight = flow.bijection.weight
        lower = torch.eye(2, dtype=F64) + weight.tril(-1)
        upper = weight.triu(1) + torch.diag(weight.diagonal().exp())
        matrix = torch.linalg.inv(lower @ upper)
        mean = -matrix @ flow.bijection.shift
    return MultivariateNormal(mean, matrix @ matrix.t())


def parameters(tensors):
    """Lays gradients end to end."""
    return torch.cat([each.flatten() for each in tensors])


def mean_gradient(objective, flow, batches, size, generator):
    """The gradient of the mean loss, averaged over batches, with the standard error of the average."""
    each = torch.stack(
        [
            parameters(torch.autograd.grad(objective(flow, size, generator=generator).mean(), list(flow.parameters())))
            for _ in range(batches)
        ]
    )
    return each.mean(0), each.std(0) / math.sqrt(batches)
