"""A small smooth network for angles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.fields.contract import no_closed_form
from cflow.fields.mlp import MLP
from cflow.registry import register

__all__ = ["PeriodicMLP"]


@register("fields.PeriodicMLP")
class PeriodicMLP(MLP):
    r"""Computes a vector field of angles with a multilayer perceptron that reads their sines and cosines.

    .. math:: h_0 = \big(\sin(k \omega x_i), \cos(k \omega x_i)\big)_{k \le K, \, i},
              \qquad \omega = \frac{2\pi}{\text{period}}

    So the field is periodic: it has no jump where an angle turns over. Use it on ``manifolds.FlatTorus``. The rest is
    :class:`MLP`; there is no divergence in closed form.

    Args:
        features: the number of angles.
        hidden: the width of every hidden layer.
        harmonics: the number K of multiples of the angle; more of them resolve finer structure.
        period: the period of all angles; that of the torus.
        context: the width of a continuous context vector; 0 for none.
        classes: the number of class labels, if the context is a label; 0 for none.
        activation: one of silu, gelu, tanh, softplus, mish.
        time_width: the number of sines and cosines that encode the time, and the width of the embedding.
        outputs: how many tensors like ``x`` the network returns.
        two_times: whether the field also reads ``s`` and returns average velocities between two times; see
            :func:`cflow.fields.two_times`.

    Shapes: as :class:`MLP`: ``x`` ``[B, features]`` -> ``[B, features]``. Angles are read in the dtype of ``x``, and
    their sines in that of the network.

    Raises:
        ValueError: if ``harmonics`` or ``period`` is not positive, and as :class:`MLP`.

    Example:
        >>> field = PeriodicMLP(2, hidden=(32,))
        >>> torch.nn.init.normal_(field.output.weight).shape
        torch.Size([2, 32])
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> torch.allclose(field(torch.tensor(0.5), x), field(torch.tensor(0.5), x - 2 * torch.pi), atol=1e-4)
        True
    """

    def __init__(
        self,
        features: int,
        hidden: Sequence[int] = (64, 64, 64),
        *,
        harmonics: int = 4,
        period: float = 2 * math.pi,
        context: int = 0,
        classes: int = 0,
        activation: str = "silu",
        time_width: int = 32,
        outputs: int = 1,
        two_times: bool = False,
    ):
        check_integer("PeriodicMLP", "harmonics", harmonics, 1, "the field reads one harmonic or more; pass 4.")
        if not 0 < period < math.inf:
            raise ValueError(f"PeriodicMLP(period={period}): a period is positive; pass 2 * math.pi for radians.")
        self.harmonics, self.period = harmonics, float(period)
        super().__init__(
            features, hidden, context=context, classes=classes, activation=activation, time_width=time_width,
            outputs=outputs, two_times=two_times,
        )  # fmt: skip

    def _inputs(self) -> int:
        return 2 * self.harmonics * self.features

    def _enter(self, x: Tensor) -> Tensor:
        x = x.to(torch.promote_types(x.dtype, torch.float32)).unsqueeze(-2)
        waves = torch.arange(1, self.harmonics + 1, dtype=x.dtype, device=x.device).unsqueeze(-1)
        angles = (waves * (2 * math.pi / self.period * x)).flatten(-2)
        return torch.cat((angles.sin(), angles.cos()), -1)

    def value_and_divergence(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Raises: the sines are not part of the closed form of :class:`MLP`; ``t``, ``x``, ``context`` are not read.

        Raises:
            TypeError: always.
        """
        raise no_closed_form("PeriodicMLP", "it reads sines and cosines")
