"""All bases of the package."""

import torch
from torch import nn

from cflow.bases import Empirical, Mixture, Normal, Product, StudentT, Uniform


def members():
    """Builds bases with a density."""
    ones = torch.ones(2, 3)
    return [
        Normal(4),
        Normal(()),
        Normal((2, 3), loc=1.5, scale=0.5),
        Normal((2, 3), loc=torch.arange(3.0), scale=2 * ones),
        Uniform((2, 3), low=-1.0, high=torch.tensor([1.0, 2.0, 3.0])),
        Uniform(()),
        Mixture(torch.tensor([[-2.0, 0.0], [2.0, 1.0], [0.0, 4.0]]), scales=0.5),
        Mixture(torch.stack([ones, -ones]), scales=torch.tensor([0.5, 2.0]), weights=torch.tensor([1.0, 3.0])),
        Mixture(torch.tensor([-1.0, 1.0]), scales=torch.tensor([0.5, 2.0])),
        StudentT(3, df=3.0),
        StudentT((2, 3), df=torch.tensor([1.0, 4.0, 30.0]), loc=1.0, scale=0.5),
        StudentT((), df=2.0),
        Product(Uniform(1, -1.0, 2.0), StudentT((), df=2.0)),
        Product(Normal(()), Mixture(torch.tensor([[-1.0, 0.0], [1.0, 2.0]]), scales=0.5), Normal(1, loc=3.0)),
    ]


def learned_and_given():
    """Builds bases with parameters, of events in the plane and on the line, and of given samples."""
    return [
        Normal(2, loc=nn.Parameter(torch.tensor([1.0, -1.0])), scale=nn.Parameter(torch.tensor(0.5))),
        Uniform(2, low=-1.0, high=2.0),
        StudentT(2, df=nn.Parameter(torch.tensor(3.0))),
        Product(Normal(1, loc=nn.Parameter(torch.tensor(0.5))), Uniform(1)),
        Product(Empirical(torch.arange(6.0).reshape(3, 2)), Normal(1)),
        Normal(1),
        Empirical(torch.arange(20.0).reshape(10, 2) / 7),
    ]


def name(base):
    return f"{type(base).__name__}{tuple(base.event_shape)}"
