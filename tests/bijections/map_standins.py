"""Maps that only tests need: with a random log-determinant, reading a context, changing the shape."""

import math

import torch
from torch import nn

from cflow.bijections import Bijection
from cflow.registry import register


@register("tests.NoisyDouble")
class NoisyDouble(Bijection):
    """Doubles every entry, and estimates its log-determinant with noise of mean zero."""

    likelihood = "estimate"
    draws = True

    def __init__(self, event_shape, noise=1.0):
        super().__init__(event_shape)
        self.noise = noise

    def encode(self, x, context=None, *, generator=None):
        x, _ = self.accept(x, context, "encode")
        return 2 * x, self._ladj(x, math.log(2.0), generator)

    def decode(self, z, context=None, *, generator=None):
        z, _ = self.accept(z, context, "decode")
        return z / 2, self._ladj(z, -math.log(2.0), generator)

    def _ladj(self, value, each, generator):
        noise = torch.randn(len(value), generator=generator, dtype=value.dtype, device=value.device)
        return self.event_shape.numel() * each + self.noise * noise


@register("tests.RandomTrace")
class RandomTrace(Bijection):
    """Multiplies by the exponential of a matrix, whose trace is estimated by one random probe."""

    likelihood = "estimate"
    draws = True

    def __init__(self, features):
        super().__init__(features)
        self.features = features
        self.matrix = nn.Parameter(0.3 * torch.randn(features, features, generator=torch.Generator().manual_seed(3)))

    def encode(self, x, context=None, *, generator=None):
        x, _ = self.accept(x, context, "encode")
        return x @ torch.linalg.matrix_exp(self.matrix).t(), self._trace(x, generator)

    def decode(self, z, context=None, *, generator=None):
        z, _ = self.accept(z, context, "decode")
        return z @ torch.linalg.matrix_exp(-self.matrix).t(), -self._trace(z, generator)

    def _trace(self, value, generator):
        probe = torch.randn(value.shape, generator=generator, dtype=value.dtype)
        return ((probe @ self.matrix) * probe).sum(1)


@register("tests.ShiftByContext")
class ShiftByContext(Bijection):
    """Subtracts the context, which has as many numbers as the event."""

    def __init__(self, features):
        super().__init__(features, features)
        self.features = features

    def encode(self, x, context=None, *, generator=None):
        x, context = self.accept(x, context, "encode")
        return x - context, x.new_zeros(len(x))

    def decode(self, z, context=None, *, generator=None):
        z, context = self.accept(z, context, "decode")
        return z + context, z.new_zeros(len(z))
