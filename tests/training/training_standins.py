"""The smallest flow and objective with the interface that fit asks for; also run as a script that tests kill."""

import sys
import tempfile
from typing import NamedTuple

import torch
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from cflow import training
from cflow.flow import BaseFlow
from cflow.objectives import Objective
from cflow.registry import register


@register
class SmallBase(nn.Module):
    def __init__(self):
        super().__init__()

    def sample(self, shape, generator=None):
        return torch.randn(*shape, 2, generator=generator)


@register
class SmallFlow(BaseFlow):
    """A network with dropout and a running statistic: state that a careless resumption loses."""

    def __init__(self, dropout=0.1, width=16):
        super().__init__(2)
        self.dropout, self.width = dropout, width
        self.base = SmallBase()
        self.net = nn.Sequential(
            nn.Linear(3, width), nn.BatchNorm1d(width), nn.SiLU(), nn.Dropout(dropout), nn.Linear(width, 2)
        )


class Batch(NamedTuple):
    x0: torch.Tensor
    x1: torch.Tensor
    t: torch.Tensor


class SmallMatching(Objective):
    def prepare(self, base, u, context, generator):
        return Batch(base.sample((len(u),), generator=generator), u, torch.rand(len(u), 1, generator=generator))

    def loss(self, flow, batch):
        xt = (1 - batch.t) * batch.x0 + batch.t * batch.x1
        velocity = flow.net(torch.cat([xt, batch.t], 1))
        return (velocity - (batch.x1 - batch.x0)).square().mean(1)


@register
class Regression(BaseFlow):
    """Linear in its context: least squares knows the answer."""

    def __init__(self, dtype=torch.float64):
        super().__init__(2, 3)
        self.base = None
        self.map = nn.Linear(3, 2, dtype=dtype)
        nn.init.zeros_(self.map.weight)
        nn.init.zeros_(self.map.bias)


class Squares(Objective):
    def prepare(self, base, u, context, generator):
        return {"x": u, "context": context}

    def loss(self, flow, batch):
        return (flow.map(batch["context"]) - batch["x"]).square().sum(1)


def data(count=200):
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(1)) + 3


def small_flow(**options):
    """A flow with the same weights every time; torch's global state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return SmallFlow(**options)


class Augmented(torch.utils.data.Dataset):
    """Items that draw from torch's default generator."""

    def __len__(self):
        return 200

    def __getitem__(self, row):
        return data()[row] + 0.1 * torch.randn(2)


def source(kind):
    if kind == "tensor":
        return data()
    if kind == "dataset":
        return Augmented()
    return torch.utils.data.DataLoader(Augmented(), batch_size=32, shuffle=True)


def checkpoint(folder):
    """Reads a checkpoint as plain tensors by name: ``model``, ``optimizer``, ``average``."""
    with tempfile.TemporaryDirectory() as scratch:
        dcp_to_torch_save(folder, scratch + "/all.pt")
        return torch.load(scratch + "/all.pt")


def train(kind="tensor", flow=None, **options):
    """One reference run of 45 steps with everything that a resumption must carry on."""
    flow = small_flow() if flow is None else flow
    settings = {"steps": 45, "batch_size": 32, "lr": 1e-2, "seed": 3, "log_every": 4, "checkpoint_every": 7} | options
    return flow, training.fit(flow, SmallMatching(), source(kind), **settings)


if __name__ == "__main__":

    def tell(step, flow, row):
        print(step, flush=True)

    train(out=sys.argv[1], resume=True, callbacks=[tell], steps=int(sys.argv[2]))
