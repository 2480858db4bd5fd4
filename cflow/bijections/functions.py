r"""Fixed functions, applied to every entry.

Each is named after what ``encode`` does to data. Use ``Inverse`` for the other direction: ``Inverse(Exp(shape))`` maps
positive data to the real line (its ``encode`` is the logarithm), and ``Inverse(Sigmoid(shape))``, the logit, maps data
in the unit interval.

Where a function maps to an interval, ``encode`` clamps its result to the last number inside the interval, so that it
can be decoded. ``decode`` does the same with numbers on the ends or beyond them. Numbers beyond the ends have no
density: their log-determinant is minus infinity, without a gradient. Inside the interval no result is infinite.

    >>> from cflow.bijections import Inverse
    >>> Inverse(Exp(1)).encode(torch.tensor([[1.0], [7.389056]]))
    (tensor([[0.],
            [2.]]), tensor([ 0., -2.]))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cflow.bijections.map import Bijection
from cflow.registry import register
from cflow.shapes import sum_rows

__all__ = ["Arcsinh", "Exp", "LeakyReLU", "Sigmoid", "Softplus", "Tanh"]


class EntryMap(Bijection):
    """Applies one function to every entry; a subclass writes it and its inverse, with log-derivatives.

    Args:
        event_shape: shape of an event, of any rank.

    Shapes: ``x [B, *event_shape]``. Cost: a few operations.
    """

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, ladj = self._map(self.accept(x, context, "encode")[0])
        return z, sum_rows(ladj)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, _ = self.accept(z, context, "decode")
        if self.image is None:
            x, ladj = self._unmap(z)
            return x, sum_rows(ladj)
        low, high = self.image
        x, ladj = self._unmap(_onto(z, low, high))
        return x, sum_rows(torch.where((z < low) | (z > high), -math.inf, ladj))

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__qualname__} does not define _map.")

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__qualname__} does not define _unmap.")

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}"


@register("bijections.Exp")
class Exp(EntryMap):
    r"""Maps the line to the positive numbers: :math:`z = e^x`, :math:`\log|\det| = \sum_i x_i`.

    ``Inverse(Exp(shape))`` takes the logarithm of positive data.

    Example:
        >>> Exp(2).encode(torch.tensor([[0.0, 1.0]]))
        (tensor([[1.0000, 2.7183]]), tensor([1.]))
    """

    image = (0.0, math.inf)

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        largest = math.log(torch.finfo(x.dtype).max) * (1 - torch.finfo(x.dtype).eps)
        return _onto(x.clamp(max=largest).exp(), 0.0, math.inf), x

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        x = z.log()
        return x, -x


@register("bijections.Sigmoid")
class Sigmoid(EntryMap):
    r"""Maps the line to the unit interval: :math:`z = 1 / (1 + e^{-x})`.

    .. math:: \log|\det| = \sum_i \log \sigma(x_i) + \log \sigma(-x_i)

    ``Inverse(Sigmoid(shape))`` is the logit, for numbers in the unit interval. :class:`Logit` also takes data on its
    ends, and raises for data outside.

    Example:
        >>> Sigmoid(1).decode(torch.tensor([[0.5], [1.0]]))[0]
        tensor([[ 0.0000],
                [16.6355]])
    """

    image = (0.0, 1.0)

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _onto(torch.sigmoid(x), 0.0, 1.0), log_slope_of_sigmoid(x)

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return logit(z.log(), torch.log1p(-z))


@register("bijections.Softplus")
class Softplus(EntryMap):
    r"""Maps the line to the positive numbers, almost linearly for x above some tens: :math:`z = \log(1 + e^x)`.

    .. math:: \log|\det| = \sum_i \log \sigma(x_i)

    Example:
        >>> Softplus(1).encode(torch.tensor([[0.0], [100.0]]))[0]
        tensor([[  0.6931],
                [100.0000]])
    """

    image = (0.0, math.inf)

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _onto(-logsigmoid(-x), 0.0, math.inf), logsigmoid(x)

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        correction = (-torch.expm1(-z)).log()
        return z + correction, -correction


@register("bijections.Tanh")
class Tanh(EntryMap):
    r"""Maps the line to the interval from -1 to 1: :math:`z = \tanh x`.

    .. math:: \log|\det| = \sum_i \log(1 - \tanh^2 x_i) = \sum_i \log 4 + \log \sigma(2 x_i) + \log \sigma(-2 x_i)

    Example:
        >>> x, ladj = Tanh(1).decode(Tanh(1).encode(torch.tensor([[3.0], [50.0]]))[0])
        >>> x
        tensor([[3.0000],
                [8.6643]])
    """

    image = (-1.0, 1.0)

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _onto(torch.tanh(x), -1.0, 1.0), math.log(4.0) + logsigmoid(2 * x) + logsigmoid(-2 * x)

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        left, right = torch.log1p(z), torch.log1p(-z)
        return 0.5 * (left - right), -left - right


@register("bijections.LeakyReLU")
class LeakyReLU(EntryMap):
    r"""Scales negative entries: :math:`z = x` where :math:`x \ge 0`, and :math:`z = \text{slope} \cdot x` otherwise.

    Args:
        event_shape: shape of an event, of any rank.
        slope: factor of negative entries.

    Raises:
        ValueError: if the slope is not positive and finite.

    Example:
        >>> LeakyReLU(2, slope=0.5).encode(torch.tensor([[-2.0, 2.0]]))
        (tensor([[-1.,  2.]]), tensor([-0.6931]))
    """

    def __init__(self, event_shape: int | Sequence[int], slope: float = 0.1):
        super().__init__(event_shape)
        if not 0 < slope < math.inf:
            raise ValueError(
                f"LeakyReLU(slope={slope}): the function has no inverse; pass a positive number such as 0.1."
            )
        self.slope = slope

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(x < 0, x * self.slope, x), self._logs(x, math.log(self.slope))

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.where(z < 0, z / self.slope, z), self._logs(z, -math.log(self.slope))

    def _logs(self, value: Tensor, below: float) -> Tensor:
        return torch.where(value < 0, below, torch.zeros_like(value))

    def extra_repr(self) -> str:
        return f"{tuple(self.event_shape)}, slope={self.slope}"


@register("bijections.Arcsinh")
class Arcsinh(EntryMap):
    r"""Shortens heavy tails, as a logarithm does, and hardly changes small numbers.

    .. math:: z = \operatorname{arsinh} x, \qquad
        \log|\det| = - \sum_i \log \cosh z_i = -\tfrac{1}{2} \sum_i \log(1 + x_i^2)

    Example:
        >>> Arcsinh(2).encode(torch.tensor([[-1e6, 0.5]]))[0]
        tensor([[-14.5087,   0.4812]])
    """

    def __init__(self, event_shape: int | Sequence[int]):
        super().__init__(event_shape)

    def _map(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return torch.asinh(x), -torch.hypot(x, torch.ones_like(x)).log()

    def _unmap(self, z: Tensor) -> tuple[Tensor, Tensor]:
        log_cosh = -logsigmoid(-2 * z) - z - math.log(2.0)
        largest = math.asinh(torch.finfo(z.dtype).max) * (1 - torch.finfo(z.dtype).eps)
        return torch.sinh(z.clamp(-largest, largest)), log_cosh


def logit(log_p: Tensor, log_q: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the logit of p with its log-slope, from the logarithms of p and of q = 1 - p."""
    return log_p - log_q, -log_p - log_q


def log_slope_of_sigmoid(x: Tensor) -> Tensor:
    """Computes the logarithm of the sigmoid's slope, precisely for large ``|x|`` too."""
    return logsigmoid(x) + logsigmoid(-x)


def _last_inside(low: float, high: float, dtype: torch.dtype) -> tuple[float, float]:
    """Returns the first and last number of an open interval; near 0 the smallest number with full precision."""
    kind = torch.finfo(dtype)
    ends = {0.0: kind.tiny, 1.0: 1 - kind.eps / 2, -1.0: -1 + kind.eps / 2, math.inf: kind.max}
    return ends[low], ends[high]


def _onto(value: Tensor, low: float, high: float) -> Tensor:
    """Clamps values to the open interval, since rounding may move them onto an end."""
    return value.clamp(*_last_inside(low, high, value.dtype))
