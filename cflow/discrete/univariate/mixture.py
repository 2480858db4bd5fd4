"""The cumulative distribution function of a mixture of logistics, as a monotone function."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from cflow.discrete.univariate.family import Univariate, soft_clamp
from cflow.discrete.univariate.rootfinding import invert
from cflow.registry import register

__all__ = ["MixtureLogistic"]


@register("discrete.MixtureLogistic")
class MixtureLogistic(Univariate):
    r"""Maps by the logit of the cumulative distribution function of a mixture of logistics, then scales and shifts.

    .. math:: z = e^{a} \Bigl[(1 - \epsilon) \operatorname{logit} \sum_k \pi_k\,
        \sigma\Bigl(\frac{x - \mu_k}{s_k}\Bigr) + \epsilon x\Bigr] + b

    The share :math:`\epsilon` of the identity (not in the paper) keeps the slope positive between distant narrow
    components, where the slope of the logit is below floating-point precision. The log-scales and :math:`a` have a soft
    limit, as in :class:`Affine`. For raw numbers of zero, the means of unit logistics are spread from -1 to 1 (equal
    ones would stay equal): the slope is 1 far out and 0.92 at the origin.

    Raw numbers: ``(a, b, logits of the weights [K], means [K], log-scales [K])``; ``size = 3 K + 2``.

    ``decode`` uses Newton's method (:func:`~cflow.discrete.univariate.rootfinding.invert`) in the bracket between the
    smallest and the largest of the components' own inverses, which always contains the root.

    Args:
        components: number of logistics, K.
        clamp: largest log-scale, up and down.
        floor: share of the identity, in (0, 1).

    Cost: 3 K raw numbers and 4 K sigmoids per entry; ``decode`` takes as much per iteration.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Ho et al., Flow++: Improving Flow-Based Generative Models with Variational Dequantization and Architecture
    Design, 2019, arXiv:1902.00275, section 3.2.

    Example:
        >>> family = MixtureLogistic(components=4)
        >>> x, raw = torch.linspace(-30, 30, 5), torch.randn(5, family.size)
        >>> bool(torch.allclose(family.decode(family.encode(x, raw)[0], raw)[0], x, atol=1e-2))
        True
    """

    def __init__(self, components: int = 8, *, clamp: float = 5.0, floor: float = 1e-3):
        super().__init__()
        check_logistics("MixtureLogistic", components, clamp, floor)
        self.components, self.clamp, self.floor = components, clamp, floor
        self.size = 3 * components + 2

    def encode(self, x: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, parts = self._parts(raw, x.dtype)
        z, ladj = logit_mixture(x, *parts, self.floor)
        return torch.addcmul(shift, z, scale.exp()), ladj + scale

    def decode(self, z: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        scale, shift, parts = self._parts(raw, z.dtype)
        x, ladj = invert_mixture((z - shift) * (-scale).exp(), *parts, self.floor)
        return x, ladj - scale

    def _parts(self, raw: Tensor, dtype: torch.dtype):
        count = self.components
        affine, logits, means, scales = raw.to(dtype).split((2, count, count, count), -1)
        means = means + spread(count, means)
        slopes = soft_clamp(-scales, self.clamp)
        scale = soft_clamp(affine[..., 0], self.clamp)
        return scale, affine[..., 1], (logits.log_softmax(-1), slopes, means)

    def extra_repr(self) -> str:
        return f"components={self.components}"


def logit_mixture(x: Tensor, weights: Tensor, slopes: Tensor, means: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    r"""Computes :math:`z = (1 - \epsilon) \operatorname{logit} \sum_k w_k \sigma(a_k (x - \mu_k)) + \epsilon x` and its
    log-derivative, from logarithms of weights and slopes ``[..., K]``.

    Both tails are summed in log space, so that each keeps its precision; the slope is a sum of positive terms.
    """
    slopes = slopes.exp()
    u = (x[..., None] - means) * slopes
    lower, upper = weights + logsigmoid(u), weights + logsigmoid(-u)
    z = lower.logsumexp(-1) - upper.logsumexp(-1)
    # The derivatives of log F and of -log(1 - F).
    mixed = lower.softmax(-1) * torch.sigmoid(-u) + upper.softmax(-1) * torch.sigmoid(u)
    slope = (mixed * slopes).sum(-1)
    return (1 - floor) * z + floor * x, torch.log((1 - floor) * slope + floor)


def invert_mixture(z: Tensor, weights: Tensor, slopes: Tensor, means: Tensor, floor: float) -> tuple[Tensor, Tensor]:
    """Inverts :func:`logit_mixture`: ``(x, log dx/dz)``."""
    # The logit of a mean is between the smallest and the largest of the logits, so its root is between theirs.
    rates = (1 - floor) * slopes.exp()
    single = (z[..., None] + rates * means) / (rates + floor)
    low, high = single.amin(-1), single.amax(-1)
    function = lambda x: logit_mixture(x, weights, slopes, means, floor)
    return invert(function, z, low + (high - low) / 2, low=low, high=high)


def spread(count: int, like: Tensor) -> Tensor:
    """Returns ``count`` evenly spaced numbers from -1 to 1; a single one is 0."""
    edge = 1.0 if count > 1 else 0.0
    return torch.linspace(-edge, edge, count, dtype=like.dtype, device=like.device)


def check_logistics(owner: str, count: int, clamp: float, floor: float) -> None:
    """Raises if there are no logistics, or their slopes have no bounds."""
    if count < 1 or not 0 < clamp <= 20 or not 0 < floor < 1:
        raise ValueError(
            f"{owner}({count}, clamp={clamp}, floor={floor}): the count must be positive, clamp in (0, 20] and floor "
            f"in (0, 1); pass {owner}(8)."
        )
