"""Normal tangent vectors, brought to the manifold by exp."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.arguments import check_integer
from cflow.bases.base import Base, Number, broadcasts
from cflow.manifolds.manifold import Manifold
from cflow.manifolds.wrapped import metric_frame
from cflow.registry import register

__all__ = ["WrappedNormal"]


@register("manifolds.WrappedNormal")
class WrappedNormal(Base):
    r"""Draws normal tangent vectors at one point, and follows their geodesics.

    .. math:: x = \exp_\mu\Big(\sum_i \sigma_i \epsilon_i E_i\Big), \quad \epsilon \sim \mathcal N(0, I),
              \qquad p(x) = \sum_{u:\, \exp_\mu u = x}
              \frac{\mathcal N(u; 0, \sigma^2)}{\left|\det d \exp_\mu(u)\right|}

    The vectors :math:`E_i` are ``manifold.frame(loc)``, made orthonormal in the metric. The density is with respect to
    the Riemannian volume. On closed manifolds the sum has the geodesics that go around several times, so it integrates
    to one for wide scales too.

    Args:
        manifold: the manifold, one that has a ``log_det_exp``.
        loc: the centre, one point ``[*event]``. An ``nn.Parameter`` is trained, and projected to the manifold whenever
            it is used. Default: None, ``manifold.origin()``.
        scale: the standard deviation, or one for each dimension ``[dim]``, in units of the metric.
        turns: how many times around the geodesics of the sum go at most. Default: None, enough for the scale that is
            given here. The probability of longer ones is below 1e-8 (``dim`` up to 6).

    Shapes: ``sample`` returns ``[*shape, *event]``, ``log_prob`` returns ``[*batch]``; it is -inf for points that are
    not on the manifold. Cost: one exp per draw; one log, and ``2 * turns + 1`` terms, per density.

    Raises:
        ValueError: if ``loc`` is not one point of the manifold, or a scale is not positive or of another shape.
        TypeError: if the manifold has no ``log_det_exp``.

    Source: Nagano et al., A Wrapped Normal Distribution on Hyperbolic Space for Gradient-Based Learning, 2019,
    arXiv:1902.02992, for hyperbolic space; the sum over geodesics is that of the wrapped normal of angles.

    Example:
        >>> from cflow.manifolds import FlatTorus
        >>> base = WrappedNormal(FlatTorus(1), scale=3.0)  # nearly uniform: 1 / (2 pi) is exp(-1.838)
        >>> base.log_prob(torch.tensor([[0.0], [3.14]]))
        tensor([-1.8159, -1.8603])
    """

    def __init__(self, manifold: Manifold, loc: Tensor | None = None, scale: Number = 1.0, *, turns: int | None = None):
        super().__init__(manifold.event_shape)
        if loc is not None and (loc.shape != self.event_shape or not bool(manifold.holds(loc.detach()))):
            raise ValueError(
                f"WrappedNormal({manifold!r}, loc of shape {list(loc.shape)}): this is not one point of the manifold; "
                f"pass manifold.project(loc), of shape {list(self.event_shape)}."
            )
        if isinstance(scale, Tensor) and not broadcasts(scale.shape, torch.Size([manifold.dim])):
            raise ValueError(
                f"WrappedNormal(scale of shape {list(scale.shape)}): the manifold has {manifold.dim} dimensions; pass "
                f"a number or a tensor [{manifold.dim}]."
            )
        if turns is not None:
            check_integer("WrappedNormal", "turns", turns, 0, "turns is an integer of at least 0; pass 3.")
        at = manifold.origin()
        manifold.log_det_exp(at, torch.zeros_like(at))  # raises if there is none
        self.manifold, self.turns = manifold, turns
        if loc is None:
            self.loc = None
        else:
            self._keep(loc=loc)
        self._keep(scale=scale)
        self._require_positive("scale")
        self._turns = _enough(manifold, self.scale) if turns is None else turns

    def _centre(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Returns the centre, and the scales ``[dim]``."""
        if self.loc is None:
            loc = self.manifold.origin(dtype=dtype, device=self.device)
        else:
            loc = self.manifold.project(self.loc.to(dtype))
        scale = torch.as_tensor(self._number("scale", dtype), dtype=dtype, device=self.device)
        return loc, scale.expand(self.manifold.dim)

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        loc, scale = self._centre(self.dtype)
        z = torch.randn((*shape, self.manifold.dim), generator=generator, dtype=self.dtype, device=self.device)
        u = torch.tensordot(z * scale, metric_frame(self.manifold, loc), 1)
        return self.manifold.exp(loc, u)

    def _log_prob(self, x: Tensor) -> Tensor:
        loc, scale = self._centre(x.dtype)
        inside = self.manifold.holds(x)
        mask = inside.reshape(*inside.shape, *[1] * len(self.event_shape))
        logp = self.manifold.log_wrapped_normal(loc, torch.where(mask, x, loc), scale, self._turns)
        return torch.where(inside, logp, -torch.inf)

    def extra_repr(self) -> str:
        return repr(self.manifold)


def _enough(manifold: Manifold, scale: Number) -> int:
    """Returns how many turns make longer geodesics improbable: those of 6 deviations and more for one dimension."""
    largest = float(scale.detach().max()) if isinstance(scale, Tensor) else scale
    if math.isinf(manifold.injectivity):
        return 0
    # Where there is a boundary, geodesics of its double cover close after twice pi at least.
    half = manifold.injectivity or math.pi
    return max(1, math.ceil((6 + manifold.dim**0.5) * largest / (2 * half) - 0.5))
