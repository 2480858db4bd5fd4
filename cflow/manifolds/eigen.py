"""Logarithms and exponentials of symmetric matrices, with derivatives of every order at repeated eigenvalues."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor
from torch.autograd import Function

__all__ = ["exp_change", "log_change", "matrix_exp", "matrix_log", "symmetric"]

CLOSE = 0.02  # differences of eigenvalues below which differences of higher order are a series


def symmetric(a: Tensor) -> Tensor:
    """Returns the symmetric parts of matrices."""
    return (a + a.mT) / 2


def matrix_log(a: Tensor) -> Tensor:
    """Computes the logarithms of symmetric matrices ``[..., n, n]`` with positive eigenvalues."""
    return _Derivative.apply(_Log, a)


def matrix_exp(a: Tensor) -> Tensor:
    """Computes the exponentials of symmetric matrices ``[..., n, n]``."""
    return _Derivative.apply(_Exp, a)


def log_change(a: Tensor, e: Tensor) -> Tensor:
    """Computes the derivative of :func:`matrix_log` at ``a`` in symmetric directions ``e``."""
    return _Derivative.apply(_Log, *torch.broadcast_tensors(a, e))


def exp_change(a: Tensor, e: Tensor) -> Tensor:
    """Computes the derivative of :func:`matrix_exp` at ``a`` in symmetric directions ``e``."""
    return _Derivative.apply(_Exp, *torch.broadcast_tensors(a, e))


class _Log:
    """The logarithm and its divided differences, without cancellation where eigenvalues are close."""

    value = staticmethod(torch.log)

    @staticmethod
    def first(a: Tensor, b: Tensor) -> Tensor:
        z = (a - b) / (a + b)
        close, zero = z.abs() < 0.5, z == 0
        ratio = torch.where(zero, 1.0, torch.where(close, z, 0.5).atanh() / torch.where(zero, 1.0, z))
        return torch.where(close, 2 * ratio / (a + b), (a.log() - b.log()) / torch.where(close, 1.0, a - b))

    @staticmethod
    def gap(low: Tensor, high: Tensor) -> Tensor:
        return (high - low) / (high + low)

    @staticmethod
    def coefficient(m: Tensor, n: int) -> Tensor:
        return (-1) ** (n - 1) / n / m**n


class _Exp:
    """The exponential and its divided differences, without cancellation where eigenvalues are close."""

    value = staticmethod(torch.exp)

    @staticmethod
    def first(a: Tensor, b: Tensor) -> Tensor:
        size = (a - b).abs()
        # exp(larger) (1 - exp(-size)) / size does not overflow before the value does.
        ratio = torch.where(size == 0, 1.0, -torch.expm1(-size) / torch.where(size == 0, 1.0, size))
        return torch.maximum(a, b).exp() * ratio

    @staticmethod
    def gap(low: Tensor, high: Tensor) -> Tensor:
        return high - low

    @staticmethod
    def coefficient(m: Tensor, n: int) -> Tensor:
        return m.exp() / math.factorial(n)


def _difference(kind, points: list[Tensor]) -> Tensor:
    """Computes the divided difference of sorted points: recursively, or by Taylor's series where they are close."""
    if len(points) == 2:
        return kind.first(*points)
    low, high, order = points[0], points[-1], len(points) - 1
    close = kind.gap(low, high) < CLOSE
    apart = _difference(kind, points[1:]) - _difference(kind, points[:-1])
    mean = sum(points) / len(points)
    p2, p3, p4 = (sum((each - mean) ** k for each in points) for k in (2, 3, 4))
    # Complete homogeneous polynomials of the deviations, whose sum is zero.
    terms = {0: 1.0, 2: p2 / 2, 3: p3 / 3, 4: p4 / 4 + p2 * p2 / 8}
    series = sum(term * kind.coefficient(mean, order + k) for k, term in terms.items())
    return torch.where(close, series, apart / torch.where(close, 1.0, high - low))


def _differences(kind, values: Tensor, order: int) -> Tensor:
    """Computes the divided differences of ``order`` of all tuples of eigenvalues, ``[..., n, n, ...]``."""
    n = values.shape[-1]
    shape = (*values.shape[:-1], *[n] * (order + 1))
    points = []
    for place in range(order + 1):
        ones = [1] * (order + 1)
        ones[place] = n
        points.append(values.reshape(*values.shape[:-1], *ones).expand(shape))
    if order == 1:
        return kind.first(*points)
    return _difference(kind, list(torch.stack(points).sort(0).values.unbind(0)))


class _Derivative(Function):
    r"""Computes a function of a symmetric matrix, or its derivative in some symmetric directions.

    .. math:: D^k f(A)[E_1, \ldots, E_k] = V \Big(\sum_\pi \sum_{i_1 \ldots i_{k-1}} f[\lambda_{i_0}, \ldots,
              \lambda_{i_k}] \prod_j (V^\top E_{\pi(j)} V)_{i_{j-1} i_j} \Big) V^\top

    with divided differences :math:`f[\cdot]` and all orders :math:`\pi` of the directions. The product with another
    direction is symmetric in all of them, so derivatives of it are derivatives of the next order.

    Source: Daleckii and Krein, 1965; Higham, Functions of Matrices, 2008, chapter 3.
    """

    @staticmethod
    def forward(kind, a, *directions):
        values, vectors = torch.linalg.eigh(a)
        order = len(directions)
        if not order:
            return (vectors * kind.value(values).unsqueeze(-2)) @ vectors.mT
        weights = _differences(kind, values, order)
        turned = [vectors.mT @ e @ vectors for e in directions]
        letters = "abcdefgh"[: order + 1]
        steps = ",".join(f"...{one}{two}" for one, two in itertools.pairwise(letters))
        equation = f"...{letters},{steps}->...{letters[0]}{letters[-1]}"
        total = sum(torch.einsum(equation, weights, *chosen) for chosen in itertools.permutations(turned))
        return vectors @ total @ vectors.mT

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.kind, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, gradient):
        return None, *_changes(ctx, lambda _: symmetric(gradient), ctx.needs_input_grad[1:])

    @staticmethod
    def jvp(ctx, _, *changes):
        found = _changes(ctx, lambda place: symmetric(changes[place]), [each is not None for each in changes])
        return sum(each for each in found if each is not None)


def _changes(ctx, direction, wanted) -> list[Tensor | None]:
    """Computes the derivative of the next order for the matrix, and the same with one direction replaced."""
    a, *directions = ctx.saved_tensors
    found: list[Tensor | None] = []
    for place, want in enumerate(wanted):
        if not want:
            found.append(None)
        elif place == 0:
            found.append(_Derivative.apply(ctx.kind, a, *directions, direction(place)))
        else:
            others = [direction(place) if at == place else each for at, each in enumerate(directions, 1)]
            found.append(_Derivative.apply(ctx.kind, a, *others))
    return found
