"""Squared distances between base and data samples of a batch, without cancellation far from the origin."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from cflow.shapes import rows

__all__ = ["SquaredDistances", "check_alike", "check_finite", "squared_distances"]

FAR = 100.0  # a row is an outlier if its squared distance from the mean is this many times that of the median row


class SquaredDistances(NamedTuple):
    """Squared distances between two sets of samples after each set was centred at its mean (or median).

    .. math:: \\| x_0^i - x_1^j \\|^2 = \\mathrm{cost}_{ij} + \\mathrm{row}_i + \\mathrm{column}_j

    A shift of one set adds terms that depend on the row alone or on the column alone. They do not change the optimal
    plan for fixed marginals, so the centred costs are sufficient there, and they stay accurate far from the origin.

    Attributes:
        cost: squared distances of the centred samples ``[B0, B1]``, float64.
        centred0: the first set, centred and flattened ``[B0, n]``.
        centred1: the second set, centred and flattened ``[B1, n]``.
        shift: the first centre minus the second ``[n]``.
        spread0: mean squared distance of the first set to its mean.
        spread1: mean squared distance of the second set to its mean.
    """

    cost: Tensor
    centred0: Tensor
    centred1: Tensor
    shift: Tensor
    spread0: float
    spread1: float

    def total(self) -> Tensor:
        """Computes the squared distances between the samples themselves, ``[B0, B1]``."""
        shift = self.shift.double()
        row = 2 * (self.centred0.double() @ shift)[:, None] + shift.square().sum()
        return (self.cost + row).add_(self.centred1.double() @ shift, alpha=-2).clamp_(min=0)


def check_alike(name: str, x0: Tensor, x1: Tensor) -> None:
    """Raises if the event shapes or devices of ``x0`` and ``x1`` differ, or the samples are not floating numbers."""
    for what, first, second in (
        ("shape", list(x0.shape[1:]), list(x1.shape[1:])),
        ("device", x0.device, x1.device),
    ):
        if first != second:
            if what == "shape":
                first, second = list(x0.shape), list(x1.shape)
            raise ValueError(
                f"{name}(x0 with {what} {first}, x1 with {what} {second}): distances need equal {what}s; convert x0."
            )
    for which, x in (("x0", x0), ("x1", x1)):
        if x.is_complex():
            raise TypeError(f"{name}({which} of {x.dtype}): distances need real numbers; use torch.view_as_real.")
        if not x.is_floating_point():
            raise TypeError(
                f"{name}({which} of {x.dtype}): distances need floating numbers; pass {which}.float() for quantities, "
                f"or use couplings.Independent() for labels."
            )


def check_finite(name: str, *samples: Tensor) -> None:
    """Raises if samples have NaN or infinite entries."""
    for which, x in zip(("x0", "x1"), samples):
        bad = ~x.isfinite()
        if bad.any():
            raise ValueError(
                f"{name}({which} of shape {list(x.shape)}): {int(bad.sum())} entries are NaN or infinite; remove them "
                f"before pairing."
            )


@torch.no_grad()
def squared_distances(name: str, x0: Tensor, x1: Tensor) -> SquaredDistances:
    """Computes squared distances between ``x0 [B0, *event]`` and ``x1 [B1, *event]``, in float64 on their device.

    Samples on devices without float64 are moved to the host. On the CPU, products use the samples' precision (at least
    float32): this is twice as fast and loses no accuracy. With outliers, products use float64.
    """
    if x0.device.type not in ("cpu", "cuda"):
        x0, x1 = x0.cpu(), x1.cpu()
    given = x0, x1
    exact = torch.get_float32_matmul_precision() == "highest" and x0.device.type == "cpu"
    dtype = torch.promote_types(torch.promote_types(x0.dtype, x1.dtype), torch.float32) if exact else torch.float64
    with torch.autocast(x0.device.type, enabled=False):
        x0, x1 = (rows(x.to(dtype)) for x in (x0, x1))
        m0, m1, a, b, norms = _centred(x0, x1, torch.mean)
        spreads = torch.stack([each for n in norms for each in (n.mean(), n.max(), n.median())]).tolist()
        spread0, spread1 = spreads[0], spreads[3]
        # A far outlier shifts the mean but not the median. Rows that overflow are also handled here.
        if not all(spreads[at + 1] < FAR * spreads[at + 2] for at in (0, 3)):
            m0, m1, a, b, norms = _centred(x0.double(), x1.double(), _median)
            rest = [part.mean(0).square().sum() for part in (a, b)]
            spread0, spread1 = torch.stack([n.mean() - r for n, r in zip(norms, rest)]).tolist()
        cost = torch.mm(a, b.T).double().mul_(-2).add_(norms[0][:, None]).add_(norms[1])
    # One NaN or infinite entry makes the mean and every norm NaN; large finite entries overflow in the square.
    if not spread0 + spread1 < torch.finfo(torch.float64).max:
        check_finite(name, *given)
        raise ValueError(
            f"{name}(x0 of shape {list(given[0].shape)}, x1 of shape {list(given[1].shape)}): squared distances "
            f"overflow {x0.dtype}; rescale the data."
        )
    return SquaredDistances(cost, a, b, m0 - m1, spread0, spread1)


def _centred(x0: Tensor, x1: Tensor, centre):
    m0, m1 = centre(x0, 0), centre(x1, 0)
    a, b = x0 - m0, x1 - m1
    return m0, m1, a, b, (a.square().sum(1), b.square().sum(1))


def _median(x: Tensor, dim: int) -> Tensor:
    return x.median(dim).values
