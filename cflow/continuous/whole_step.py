"""The average velocity over a step, with the log-determinant of the whole step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.divergence.forward_mode import jvp
from cflow.shapes import expand_like

__all__ = ["WholeStep"]


@dataclass(frozen=True)
class WholeStep:
    r"""The average velocity u of a field of two times, and that of the divergence, which makes the step's determinant.

    .. math:: X(x) = \exp_x\bigl( (s - t)\, u(t, x, s) \bigr), \qquad
              \mathrm{ladj} = \log \bigl| \det F_y^\top\, dX\, F_x \bigr|, \qquad g = \mathrm{ladj} / (s - t)

    with orthonormal frames F of the tangent spaces at x and y = X(x); in a flat space, ``exp`` adds and F are the axes.
    It is called as ``f(t, x, context, probe, s=s)`` and returns ``(u, {"ladj": g})``; ``probe`` is not used. For the
    average velocity of an exact flow, g is the average of the divergence along it.

    Cost: one product in forward mode for each dimension, each about two evaluations.

    Args:
        velocity: the velocity field, of two times.
        manifold: the manifold, or None for a flat space.
    """

    velocity: Callable
    manifold: Any = None

    @property
    def two_times(self) -> bool:
        return self.velocity.two_times

    def __call__(self, t: Tensor, x: Tensor, context: Tensor | None = None, probe=None, *, s: Tensor):
        span, manifold = s - t, self.manifold

        def step(x: Tensor) -> Tensor:  # both in one tensor, for one product
            u = self.velocity(t, x, context, s=s)
            w = expand_like(span, u) * u
            return torch.stack((u, x + w if manifold is None else manifold.exp(x, w)))

        if manifold is None:
            count = x.shape[1:].numel()
            axes = torch.eye(count, dtype=x.dtype, device=x.device)
            directions = axes.reshape(count, 1, *x.shape[1:]).expand(count, *x.shape)
        else:
            directions = manifold.frame(x).unbind(1)
        columns = []
        for each in directions:
            (u, y), (_, column) = jvp(step, (x,), (each,))
            columns.append(column.flatten(1))
        dx = torch.stack(columns, 2)
        if manifold is not None:
            dx = manifold.frame(y).flatten(2) @ dx
        wide = torch.promote_types(x.dtype, torch.float32)
        return u, {"ladj": torch.linalg.slogdet(dx.to(wide))[1] / span}
