"""The exact divergence, from all rows of the Jacobian."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.arguments import check_integer
from cflow.divergence.divergence import Divergence
from cflow.divergence.products import enter, evaluate, gradients, product
from cflow.registry import register

__all__ = ["Exact"]

# Entries of a batch up to which repeating its rows is cheaper than another backward pass.
TOGETHER_CPU, TOGETHER = 2**10, 2**18


@register("divergence.Exact")
@dataclass(frozen=True)
class Exact(Divergence):
    r"""Computes the divergence from the whole Jacobian.

    .. math:: \nabla \cdot f = \sum_{d=1}^D e_d^\top J e_d, \qquad \|J\|_F^2 = \sum_{d=1}^D \|J^\top e_d\|^2

    Args:
        chunk: the number of products that are computed together, on a batch with every row repeated ``chunk`` times.
            ``chunk=1`` evaluates ``f`` once and runs D backward passes: the least work and memory. A larger chunk
            evaluates ``f`` again for every chunk. It is faster if the overhead of a call dominates: small batches and
            small networks. Default: None, which repeats up to a thousand entries on a CPU (measured on networks with
            two hidden layers) and up to a quarter of a million on other devices (an estimate).

    Chunks need no batching rules of operators (those of torch's ``vmap`` have wrong second derivatives through group
    normalisation). They only need independent rows of ``f``, as every field has.

    On a manifold of fewer dimensions than its ambient space, the products are along orthonormal frames of the tangent
    spaces: 2 on the sphere in three dimensions, 3 for the 9 entries of a rotation.

    Shapes: ``x`` ``[B, *event]`` of any event shape; the divergence and the norm are ``[B]``, float32 at least.

    Cost: one evaluation and D vector-Jacobian products with ``chunk=1``; with larger chunks also an evaluation on D
    times the batch. With gradients enabled the result is differentiable (attention then uses torch's plain kernel,
    since the fused ones have no second derivative).

    Raises:
        ValueError: if ``chunk < 1``, ``f`` returns another shape than ``x``, or rows of ``args`` cannot be repeated.

    Example:
        >>> matrix = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> v, div, frobenius = Exact()(lambda t, x: x @ matrix.T, torch.zeros(1), torch.ones(1, 2), None)
        >>> v.tolist(), div.item(), frobenius.item()
        ([[3.0, 7.0]], 5.0, 30.0)
    """

    chunk: int | None = None

    exact: ClassVar[bool] = True

    def __post_init__(self):
        if self.chunk is not None:
            why = "a chunk is at least one product; pass a positive integer, or None."
            check_integer("Exact", "chunk", self.chunk, 1, why)

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Returns None, no probe: the unit vectors are fixed. ``generator`` is not used."""
        return None

    def on(self, manifold: Any) -> Exact:
        """Returns the divergence along frames of the tangent spaces of ``manifold``: ``manifold.dim`` products."""
        return _InFrames(self.chunk, manifold)

    def __call__(self, f, t, x, probe, *args):
        """Computes ``f(t, x, *args)``, its divergence and squared Frobenius norm; ``probe`` is not used."""
        batch, size, frame = x.shape[0], x.shape[1:].numel(), self._frame(x)
        products = (size if frame is None else frame.shape[1]) if x.numel() else 0
        chunk = self.chunk or max(1, (TOGETHER_CPU if x.device.type == "cpu" else TOGETHER) // max(1, x.numel()))
        chunk = max(1, min(chunk, products))
        with gradients() as differentiable:
            inputs = enter((t, x, args))
            point, value = evaluate(f, *_repeat(inputs, chunk))
            v = value[:batch]
            trace = norm = torch.zeros(batch, dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
            for start in range(0, products, chunk):
                count = min(chunk, products - start)
                if start and chunk > 1:
                    point, value = evaluate(f, *_repeat(inputs, count))
                if frame is None:
                    units = torch.zeros(count, 1, size, dtype=value.dtype, device=x.device)
                    units[:, 0].diagonal(start).fill_(1)
                else:
                    units = frame[:, start : start + count].transpose(0, 1)
                rows = product(value, point, units.expand(count, batch, size).reshape(value.shape), differentiable)
                rows = rows.reshape(count, batch, size)
                if frame is None:
                    trace = trace + rows[:, :, start : start + count].diagonal(dim1=0, dim2=2).sum(1)
                else:
                    trace = trace + (rows * units).sum((0, 2))
                norm = norm + rows.square().sum((0, 2))
        return (v, trace, norm) if differentiable else (v.detach(), trace.detach(), norm.detach())

    def _frame(self, x: Tensor) -> Tensor | None:
        """Returns the directions of the products, ``[B, products, D]``; None for the unit vectors."""
        return None


@dataclass(frozen=True)
class _InFrames(Exact):
    """The exact divergence of tangent fields, from products along orthonormal frames of the tangent spaces."""

    manifold: Any = None

    def _frame(self, x: Tensor) -> Tensor:
        # It turns with the point, so a gradient of the divergence also goes through it.
        return self.manifold.frame(self.manifold.project(x)).flatten(2)


def _repeat(inputs: tuple[Tensor, Tensor, tuple], count: int) -> tuple[Tensor, Tensor, tuple]:
    """Repeats the batch ``count`` times; a time shared by the batch is unchanged."""
    if count == 1:
        return inputs
    batch = inputs[1].shape[0]

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if leaf.shape[0] != batch:
            raise ValueError(
                f"Exact(chunk={count}): an argument of shape {list(leaf.shape)} cannot be repeated with x of shape "
                f"{list(inputs[1].shape)}; expand its first dimension to the batch, or use chunk=1."
            )
        return leaf.repeat(count, *([1] * (leaf.dim() - 1)))

    return pytree.tree_map(repeat, inputs)
