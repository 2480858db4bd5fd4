"""The support of a flow's density, as a constraint of ``torch.distributions``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from cflow.shapes import rows

__all__ = ["support_of"]


def support_of(maps: Sequence[Any], event_rank: int) -> constraints.Constraint:
    """Returns the support of data that pass ``maps`` in order: all real numbers unless some map has a ``domain``."""
    members = [each for part in maps for each in part.members()]
    bounded = [i for i, each in enumerate(members) if each.domain is not None]
    if not bounded:
        return constraints.independent(constraints.real, event_rank)
    if bounded == [0]:
        return constraints.independent(_interval(members[0]), event_rank)
    return _Chain(members[: bounded[-1] + 1], event_rank)


def _taken(member: Any, x: Tensor) -> Tensor:
    """Returns which entries lie in the domain of a map."""
    low, high = member.domain
    inside = (x >= low) & (x <= high) if member.holds_ends else (x > low) & (x < high)
    return inside if member.levels is None else inside & (x == x.floor())


def _interval(member: Any) -> constraints.Constraint:
    """Returns the constraint of single entries for a map."""
    low, high = member.domain
    if member.levels is not None:
        return constraints.integer_interval(low, high)
    if (low, high) == (0.0, 1.0):
        return constraints.unit_interval
    return constraints.greater_than_eq(low) if high == math.inf else constraints.interval(low, high)


class _Chain(constraints.Constraint):
    """Holds for data that pass every map of a chain inside its domain."""

    def __init__(self, members: Sequence[Any], event_rank: int):
        self.members, self._rank = members, event_rank

    @property
    def event_dim(self) -> int:
        return self._rank

    @torch.no_grad()
    def check(self, value: Tensor) -> Tensor:
        batch = value.shape[: value.dim() - self._rank]
        x = value.reshape(batch.numel(), *value.shape[len(batch) :])
        inside, places = x.new_zeros(len(x), dtype=torch.bool), torch.arange(len(x), device=x.device)
        # Draws of a map (the noise of dequantisation) must not change the state of the caller's generator.
        generator = torch.Generator(x.device).manual_seed(0)
        for member in self.members:
            if member.domain is not None:
                fine = rows(_taken(member, x)).all(1)
                x, places = x[fine], places[fine]
            if member.context_shape is not None:
                break  # the effect of such a map is not known without its context; log_prob is exact
            x = member.encode(x, **({"generator": generator} if member.draws else {}))[0]
        inside[places] = True
        return inside.reshape(batch)

    def __repr__(self) -> str:
        return f"support of {' and '.join(type(each).__name__ for each in self.members)}"


class _Onto(Transform):
    """Maps unbounded coordinates onto the support of a chain of maps, by the chain itself."""

    bijective = True

    def __init__(self, chain: _Chain):
        super().__init__()
        self.members, self.codomain = chain.members, chain
        self.domain = constraints.independent(constraints.real, len(self.members[-1].latent_shape))

    def _through(self, value: Tensor, method: str, members: Sequence[Any]) -> tuple[Tensor, Tensor]:
        shape = members[0].event_shape if method == "encode" else members[0].latent_shape
        batch = value.shape[: value.dim() - len(shape)]
        x, total = value.reshape(batch.numel(), *shape), value.new_zeros(batch.numel())
        for member in members:
            x, contribution = getattr(member, method)(x)
            total = total + contribution
        return x.reshape(*batch, *x.shape[1:]), total.reshape(batch)

    def _call(self, x: Tensor) -> Tensor:
        return self._through(x, "decode", self.members[::-1])[0]

    def _inverse(self, y: Tensor) -> Tensor:
        return self._through(y, "encode", self.members)[0]

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        return self._through(x, "decode", self.members[::-1])[1]


@biject_to.register(_Chain)
def _onto(chain: _Chain) -> _Onto:
    if any(each.draws or not each.has_rsample or each.context_shape is not None for each in chain.members):
        raise NotImplementedError(  # the error of torch's biject_to, which Pyro expects
            f"biject_to({chain}): not available, as a map draws, rounds or reads a context; pass one of torch's "
            f"constraints."
        )
    return _Onto(chain)
