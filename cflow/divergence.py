"""The divergence of a field, computed with its value in one pass: exactly, or by random probes."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from cflow.registry import register

__all__ = ["Divergence", "Exact", "Hutchinson"]


class Divergence(ABC):
    r"""Computes a field's value and its divergence, the trace of :math:`J = \partial f / \partial x`.

    A solve begins with ``probe = divergence.begin(x, generator)`` and hands the probe on as one of the field's
    arguments, so that it stays with its sample and the same for the whole solve: a probe drawn anew at every call makes
    the integrand rough and the solver's steps tiny.
    """

    exact: ClassVar[bool]

    @abstractmethod
    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws what stays fixed during a solve from ``x``, a tensor with first dimension B, or None."""

    @abstractmethod
    def __call__(
        self, f: Callable, t: Tensor, x: Tensor, probe: Tensor | None, *args: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluates ``f(t, x, *args)``; gives the value, the divergence ``[B]`` and the squared Frobenius norm of J."""


@register
@dataclass(frozen=True)
class Exact(Divergence):
    r"""Computes the divergence from the whole Jacobian.

    .. math:: \nabla \cdot f = \sum_{d=1}^D e_d^\top J e_d, \qquad \|J\|_F^2 = \sum_{d=1}^D \|J^\top e_d\|^2

    ``chunk`` products are taken together, on a batch of which every row is repeated ``chunk`` times. This needs no
    batching rule of any operator (those of torch's ``vmap`` give wrong second derivatives through group normalisation),
    only that the rows of ``f`` are independent, as they are for a field. ``chunk=1`` evaluates ``f`` once and goes
    backward D times: the least work and memory. A larger chunk evaluates ``f`` again on every chunk and pays where the
    overhead of a call dominates: small batches, small networks. The default repeats up to a thousand numbers on a CPU
    (measured on networks of two hidden layers) and up to a quarter of a million elsewhere (an estimate).

    Shapes: ``x`` ``[B, *event]`` of any event shape; the divergence and the norm are ``[B]``, float32 at least.

    Cost: one evaluation and D vector-Jacobian products with ``chunk=1``; D rows' worth of evaluation beside them
    otherwise. With gradients enabled everything is differentiable (attention then runs on torch's plain kernel: the
    fused ones have no second derivative).

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
        if self.chunk is not None and (
            isinstance(self.chunk, bool) or not isinstance(self.chunk, int) or self.chunk < 1
        ):
            raise ValueError(
                f"Exact(chunk={self.chunk!r}): products are taken in chunks of at least one; pass a positive integer, "
                f"or None to have it chosen by size."
            )

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> None:
        """Draws nothing: the unit vectors are no choice."""
        return None

    def __call__(self, f, t, x, probe, *args):
        """Evaluates the field and its exact divergence."""
        batch, size = x.shape[0], x.shape[1:].numel()
        if not x.numel():
            size = 0
        chunk = self.chunk or max(1, (_TOGETHER_CPU if x.device.type == "cpu" else _TOGETHER) // max(1, x.numel()))
        chunk = max(1, min(chunk, size))
        with _gradients() as differentiable:
            inputs = _enter((t, x, args))
            point, value = _evaluate(f, *_repeat(inputs, chunk))
            v = value[:batch]
            trace = norm = _zeros(x)
            for start in range(0, size, chunk):
                count = min(chunk, size - start)
                if start and chunk > 1:
                    point, value = _evaluate(f, *_repeat(inputs, count))
                units = torch.zeros(count, 1, size, dtype=value.dtype, device=x.device)
                units[:, 0].diagonal(start).fill_(1)
                rows = _product(value, point, units.expand(count, batch, size).reshape(value.shape), differentiable)
                rows = rows.reshape(count, batch, size)
                trace = trace + rows[:, :, start : start + count].diagonal(dim1=0, dim2=2).sum(1)
                norm = norm + rows.square().sum((0, 2))
        return (v, trace, norm) if differentiable else (v.detach(), trace.detach(), norm.detach())


@register
@dataclass(frozen=True)
class Hutchinson(Divergence):
    r"""Estimates the divergence without bias from random probes.

    .. math:: \nabla \cdot f \approx \frac1k \sum_{i=1}^k \epsilon_i^\top J \epsilon_i, \qquad
              \|J\|_F^2 \approx \frac1k \sum_{i=1}^k \|J^\top \epsilon_i\|^2, \qquad
              \mathbb E[\epsilon \epsilon^\top] = I

    With :math:`S = (J + J^\top)/2` one Rademacher probe (entries of plus or minus one) has variance
    :math:`2 \sum_{i \ne j} S_{ij}^2`, so a diagonal Jacobian costs no noise; one Gaussian probe has
    :math:`2 \|S\|_F^2`, never less.

    Shapes: ``x`` ``[B, *event]``; the probe is ``[B, probes, *event]``; divergence and norm ``[B]``, float32 at least.

    Cost: one evaluation and ``probes`` vector-Jacobian products.

    Raises:
        ValueError: if ``probes < 1``, ``f`` returns another shape than ``x``, or the probe was drawn for another shape.

    Source: A stochastic estimator of the trace of the influence matrix for Laplacian smoothing splines, Hutchinson,
    1989; FFJORD: Free-form Continuous Dynamics for Scalable Reversible Generative Models, Grathwohl et al., 2018,
    arXiv:1810.01367.

    Example:
        >>> divergence, x = Hutchinson(), torch.ones(1, 2)
        >>> probe = divergence.begin(x, torch.Generator().manual_seed(0))
        >>> v, div, frobenius = divergence(lambda t, x: 3 * x, torch.zeros(1), x, probe)
        >>> div.item(), frobenius.item()
        (6.0, 18.0)
    """

    probes: int = 1
    gaussian: bool = False

    exact: ClassVar[bool] = False

    def __post_init__(self):
        if isinstance(self.probes, bool) or not isinstance(self.probes, int) or self.probes < 1:
            raise ValueError(f"Hutchinson(probes={self.probes!r}): an estimate needs a probe; pass an integer >= 1.")

    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Draws the probes of a solve, ``[B, probes, *event]``."""
        shape = (x.shape[0], self.probes, *x.shape[1:])
        if self.gaussian:
            return torch.randn(shape, generator=generator, dtype=x.dtype, device=x.device)
        return torch.randint(0, 2, shape, generator=generator, dtype=x.dtype, device=x.device).mul_(2).sub_(1)

    def __call__(self, f, t, x, probe, *args):
        """Evaluates the field and estimates its divergence."""
        v, traces, norms = self._estimates(f, t, x, probe, *args)
        return v, traces.mean(1), norms.mean(1)

    def estimates(self, f: Callable, t: Tensor, x: Tensor, probe: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Evaluates the field and gives the estimate of each probe, ``[B, probes]``, whose spread is the error."""
        v, traces, _ = self._estimates(f, t, x, probe, *args)
        return v, traces

    def _estimates(self, f, t, x, probe, *args):
        expected = (x.shape[0], self.probes, *x.shape[1:])
        if probe is None or probe.shape != expected:
            raise ValueError(
                f"Hutchinson(probes={self.probes}): a probe of shape {None if probe is None else list(probe.shape)} "
                f"for x of shape {list(x.shape)}; draw it with begin(x, generator), hand it on with its sample's rows."
            )
        with _gradients() as differentiable:
            t, x, probe, args = _enter((t, x, probe, args))
            point, v = _evaluate(f, t, x, args)
            traces, norms = [], []
            for e in probe.unbind(1):
                product = _product(v, point, e, differentiable)
                traces.append(_sum(product * e))
                norms.append(_sum(product.square()))
            traces, norms = torch.stack(traces, 1), torch.stack(norms, 1)
        return (v, traces, norms) if differentiable else (v.detach(), traces.detach(), norms.detach())


# Numbers in a batch up to which repeating its rows is cheaper than going backward once more.
_TOGETHER_CPU, _TOGETHER = 2**10, 2**18


@contextlib.contextmanager
def _gradients():
    """Enables gradients whatever the mode outside is; gives whether they were enabled there."""
    differentiable = torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if differentiable:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield differentiable


def _enter(inputs: Any) -> Any:
    """Makes tensors that were made in inference mode fit for a graph, by a copy."""
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, inputs
    )


def _repeat(inputs: tuple[Tensor, Tensor, tuple], count: int) -> tuple[Tensor, Tensor, tuple]:
    """Repeats the batch ``count`` times; a time shared by the batch stays as it is."""
    if count == 1:
        return inputs
    batch = inputs[1].shape[0]

    def repeat(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.dim() == 0:
            return leaf
        if leaf.shape[0] != batch:
            raise ValueError(
                f"Exact(chunk={count}): an argument of shape {list(leaf.shape)} beside x of shape "
                f"{list(inputs[1].shape)} cannot be repeated with its sample; the first dimension of every argument is "
                f"the batch, so expand it, let f hold what is shared, or use chunk=1."
            )
        return leaf.repeat(count, *([1] * (leaf.dim() - 1)))

    return pytree.tree_map(repeat, inputs)


def _evaluate(f: Callable, t: Tensor, x: Tensor, args: tuple) -> tuple[Tensor, Tensor]:
    """Evaluates a field at a fresh node of the graph, so that only its role as the field's point is differentiated."""
    point = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    value = f(t, point, *args)
    if value.shape != x.shape:
        raise ValueError(
            f"a divergence was asked of a field that maps x of shape {list(x.shape)} to {list(value.shape)}; only a "
            f"map between equal shapes has a trace, so return x's shape."
        )
    return point, value


def _product(value: Tensor, point: Tensor, cotangent: Tensor, differentiable: bool) -> Tensor:
    """Computes ``J^T e`` in float32 at least; zero where the value does not depend on the point."""
    dtype = torch.promote_types(point.dtype, torch.float32)
    if not value.requires_grad:
        return torch.zeros(point.shape, dtype=dtype, device=point.device)
    cotangent = cotangent.to(value.dtype)
    options = {"create_graph": differentiable, "retain_graph": True, "materialize_grads": True}
    return torch.autograd.grad(value, point, cotangent, **options)[0].to(dtype)


def _sum(x: Tensor) -> Tensor:
    """Sums over everything but the batch."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x


def _zeros(x: Tensor) -> Tensor:
    """Gives a zero per sample in float32 at least."""
    return torch.zeros(x.shape[0], dtype=torch.promote_types(x.dtype, torch.float32), device=x.device)
