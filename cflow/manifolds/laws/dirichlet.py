"""Dirichlet distributions on the simplex."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.bases.base import Base
from cflow.manifolds.simplex import Simplex
from cflow.registry import register

__all__ = ["Dirichlet"]


@register("manifolds.Dirichlet")
class Dirichlet(Base):
    r"""Draws vectors of probabilities from a Dirichlet distribution.

    .. math:: \log p(x) = \log \Gamma\Big(\sum_i a_i\Big) - \sum_i \log \Gamma(a_i)
              + \sum_i \left(a_i - \tfrac12\right) \log x_i

    This is the density with respect to the volume of Fisher and Rao, that of :class:`cflow.manifolds.Simplex`. For the
    usual one, with respect to the first n - 1 probabilities, subtract :math:`\tfrac12 \sum_i \log x_i`: its exponents
    are :math:`a_i - 1`. So all parameters 1/2 are the uniform distribution here, and all parameters one are the uniform
    distribution of :class:`cflow.bases.Simplex`.

    Args:
        concentration: the positive parameters :math:`a_i`, a tensor ``[n]`` or a sequence. An ``nn.Parameter`` is
            trained.

    Shapes: ``sample`` returns ``[*shape, n]``, ``log_prob`` returns ``[*batch]``; it is -inf for points that are not on
    the simplex. Cost: one gamma draw per probability.

    Raises:
        ValueError: if there are fewer than two parameters, or one is not positive.

    Example:
        >>> base = Dirichlet([0.5, 0.5, 0.5])
        >>> base.log_prob(base.sample((2,))), -base.manifold.log_volume
        (tensor([-1.8379, -1.8379]), -1.8378...)
    """

    def __init__(self, concentration: Tensor | Sequence[float]):
        if not isinstance(concentration, Tensor):
            concentration = torch.tensor(concentration, dtype=torch.get_default_dtype())
        if concentration.dim() != 1 or len(concentration) < 2:
            raise ValueError(
                f"Dirichlet(concentration of shape {list(concentration.shape)}): there is a parameter for each of two "
                f"or more probabilities; pass a tensor [n]."
            )
        super().__init__(len(concentration))
        self._keep(concentration=concentration)
        self._require_positive("concentration")
        self.manifold = Simplex(len(concentration))

    def _sample(self, shape: tuple[int, ...], generator: torch.Generator | None) -> Tensor:
        a = self.concentration.to(self.dtype).expand(*shape, -1)
        # A gamma of parameter a is one of a + 1 times u^(1/a): small parameters do not underflow in logarithms.
        u = torch.rand(a.shape, generator=generator, dtype=self.dtype, device=self.device)
        log = torch._standard_gamma(a + 1, generator=generator).log() + torch.log1p(-u) / a
        return log.softmax(-1).clamp(min=torch.finfo(self.dtype).tiny)

    def _log_prob(self, x: Tensor) -> Tensor:
        a = self.concentration.to(x.dtype)
        power = a - 0.5
        log = x.clamp(min=torch.finfo(x.dtype).tiny).log()
        logp = a.sum().lgamma() - a.lgamma().sum() + (power * log).sum(-1)
        empty = ((x <= 0) & (power > 0)).any(-1)
        return torch.where(self.manifold.holds(x) & ~empty, logp, -torch.inf)
