"""What the tests of gradients share: a network with all kinds of parameters, a start, and how gradients compare."""

import torch
from torch import nn


class Net(nn.Module):
    """A field with a context, a parameter that is used twice and one that is not used."""

    def __init__(self, size=3, width=8, dtype=torch.float64):
        super().__init__()
        torch.manual_seed(0)
        self.enter = nn.Linear(size + 1, width, dtype=dtype)
        self.leave = nn.Linear(width, size, dtype=dtype)
        self.twice = nn.Parameter(torch.tensor([0.3] * size, dtype=dtype))
        self.unused = nn.Parameter(torch.ones(2, dtype=dtype))
        self.calls = 0

    def forward(self, t, y, context=None):
        self.calls += 1
        hidden = torch.tanh(self.enter(torch.cat((y, t[:, None].to(y.dtype)), 1)))
        shift = 0.0 if context is None else context
        return self.leave(hidden) * self.twice + torch.sin(self.twice) + shift * y


def start(batch=4, size=3, dtype=torch.float64):
    return torch.randn(batch, size, generator=torch.Generator().manual_seed(1), dtype=dtype)


def gradients(loss, tensors):
    return torch.autograd.grad(loss, tensors, allow_unused=True)


def close(one, other, rtol=1e-10):
    for a, b in zip(one, other, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            assert a.dtype == b.dtype
            torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * b.abs().max().item())
