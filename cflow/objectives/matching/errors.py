"""Distances between a prediction and its target, besides the mean square."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cflow.registry import register
from cflow.shapes import mean_rows

__all__ = ["FeatureError", "Huber", "PseudoHuber", "Square"]


@register("objectives.Square")
class Square(nn.Module):
    """Computes the mean square: ``|a - b|^2 / D``, ``[B]``."""

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes the error per item, ``[B]``, of ``a`` and ``b``, both ``[B, *event]``."""
        return mean_rows((a - b).square())


@register("objectives.Huber")
class Huber(nn.Module):
    r"""Computes the mean over entries of squares near zero and absolute values far from it.

    .. math:: h(e) = \begin{cases} e^2 & |e| \le \delta \\ \delta (2 |e| - \delta) & |e| > \delta \end{cases}

    Args:
        delta: the size of an entry's error up to which it is squared, positive.

    Raises:
        ValueError: if ``delta`` is not positive.

    Example:
        >>> Huber(1.0)(torch.tensor([[0.5, 3.0]]), torch.zeros(1, 2))
        tensor([2.6250])
    """

    def __init__(self, delta: float = 1.0):
        super().__init__()
        if not 0 < delta < math.inf:
            raise ValueError(f"Huber(delta={delta}): delta is a positive number; pass 1.0.")
        self.delta = delta

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes the error per item, ``[B]``, of ``a`` and ``b``, both ``[B, *event]``."""
        return 2 * mean_rows(torch.nn.functional.huber_loss(a, b, reduction="none", delta=self.delta))


@register("objectives.PseudoHuber")
class PseudoHuber(nn.Module):
    r"""Computes a smooth distance of whole items: large errors count by their size, not by its square.

    .. math:: h(e) = \sqrt{\|e\|^2 / D + c^2} - c

    Args:
        c: the size at which squares become distances, positive; about 0.06 for data of unit variance.

    Raises:
        ValueError: if ``c`` is not positive.

    Source: Song and Dhariwal, Improved Techniques for Training Consistency Models, 2023, arXiv:2310.14189 (there
    without the division by D, and c = 0.00054 sqrt(D)); Lee et al., Improving the Training of Rectified Flows, 2024,
    arXiv:2405.20320.

    Example:
        >>> PseudoHuber(3.0)(torch.full((1, 5), 4.0), torch.zeros(1, 5))
        tensor([2.])
    """

    def __init__(self, c: float = 0.06):
        super().__init__()
        if not 0 < c < math.inf:
            raise ValueError(f"PseudoHuber(c={c}): c is a positive number; pass 0.06.")
        self.c = c

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes the error per item, ``[B]``, of ``a`` and ``b``, both ``[B, *event]``."""
        return (mean_rows((a - b).square()) + self.c**2).sqrt() - self.c


@register("objectives.FeatureError")
class FeatureError(nn.Module):
    r"""Computes the distance of two items in the features of a given network, such as a classifier's last hidden layer.

    .. math:: h(a, b) = \| \phi(a) - \phi(b) \|^2 / D_\phi + \text{pixel}\, \| a - b \|^2 / D

    The network is frozen. Its input is in model space.

    Args:
        network: a module that maps ``[B, *event]`` to features of any shape.
        pixel: the weight of the distance between the items themselves.

    Example:
        >>> FeatureError(nn.Identity(), pixel=0.0)(torch.ones(1, 3), torch.zeros(1, 3))
        tensor([1.])
    """

    ends = True  # compares items, not velocities

    def __init__(self, network: nn.Module, pixel: float = 0.1):
        super().__init__()
        if not 0 <= pixel < math.inf:
            raise ValueError(f"FeatureError(pixel={pixel}): the weight is 0 or more; pass 0.1.")
        self.network, self.pixel = network.requires_grad_(False), pixel

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        """Computes the error per item, ``[B]``, of ``a`` and ``b``, both ``[B, *event]``."""
        features = mean_rows((self.network(a) - self.network(b)).square())
        return features + self.pixel * mean_rows((a - b).square())
