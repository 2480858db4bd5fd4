"""Frames that are orthonormal in the metric, and the density of a normal that exp wraps around a manifold."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from cflow.manifolds.manifold import Manifold

__all__ = ["log_normal", "log_wrapped_normal", "metric_frame"]


def metric_frame(manifold: Manifold, x: Tensor) -> Tensor:
    """Returns a basis of the tangent space that is orthonormal in the metric, ``[*batch, dim, *event]``.

    The vectors of ``frame`` are made orthonormal in their order, so an isometric embedding returns ``frame``.
    """
    rank = len(manifold.event_shape)
    frame = manifold.frame(x)
    first, second = frame.unsqueeze(-rank - 1), frame.unsqueeze(-rank - 2)
    gram = manifold.inner(x.reshape(*x.shape[: x.dim() - rank], 1, 1, *manifold.event_shape), first, second)
    flat = frame.reshape(*gram.shape[:-1], manifold.event_shape.numel())
    return torch.linalg.solve_triangular(torch.linalg.cholesky(gram), flat, upper=False).reshape(frame.shape)


def log_normal(z: Tensor, scale: Tensor) -> Tensor:
    """Computes the log-density of normals of mean zero, entry by entry."""
    return -0.5 * (z / scale).square() - scale.log() - 0.5 * math.log(2 * math.pi)


def log_wrapped_normal(manifold: Manifold, loc: Tensor, x: Tensor, scale: Tensor, turns: int) -> Tensor:
    """Sums the density over all tangent vectors at ``loc`` that exp maps to ``x``."""
    rank = len(manifold.event_shape)
    between = lambda each: each.unsqueeze(each.dim() - rank)
    u = manifold.preimages(loc, x, turns)
    z = manifold.inner(between(loc), between(u), metric_frame(manifold, loc))
    return (log_normal(z, scale).sum(-1) - manifold.log_det_exp(loc, u)).logsumexp(0)
