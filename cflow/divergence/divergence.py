"""The contract of a divergence, and what all that estimate one share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.divergence.products import enter, evaluate, gradients, product
from cflow.shapes import rows

__all__ = ["Divergence", "Estimator"]


class Divergence(ABC):
    r"""Computes a field's value and its divergence, the trace of :math:`J = \partial f / \partial x`.

    A solve begins with ``probe = divergence.begin(x, generator)`` and hands the probe on as one of the field's
    arguments, so that it stays with its sample and the same for the whole solve: a probe drawn anew at every call makes
    the integrand rough and the solver's steps tiny.

    Attributes:
        exact: whether the value is the divergence itself, and not an estimate.
        frobenius: whether the squared Frobenius norm of J comes with it.
        count: how many unbiased estimates the value is the mean of, each of which :meth:`estimates` gives; 0 where
            there are none.
    """

    exact: ClassVar[bool]
    frobenius: ClassVar[bool] = True
    count: int = 0

    @abstractmethod
    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws what stays fixed during a solve from ``x``, a tensor with first dimension B, or None."""

    @abstractmethod
    def __call__(
        self, f: Callable, t: Tensor, x: Tensor, probe: Tensor | None, *args: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Evaluates ``f(t, x, *args)``; gives the value, the divergence ``[B]`` and the squared Frobenius norm of J."""

    def estimates(self, f: Callable, t: Tensor, x: Tensor, probe: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Evaluates the field and gives every estimate of its divergence, ``[B, count]``."""
        raise TypeError(f"{self!r} is the mean of no estimates; take divergence.Hutchinson(probes=8), say.")


class Estimator(Divergence):
    r"""Estimates the divergence as the mean of several unbiased estimates, whose spread gives the error of the mean.

    The probe is ``[B, vectors(D), *event]``. All products are with :math:`J^\top`, which has the trace of :math:`J`.
    ``flow.log_prob_estimate`` integrates each of the ``count`` estimates along the solve.
    """

    exact: ClassVar[bool] = False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many estimates a call gives."""

    @abstractmethod
    def vectors(self, size: int) -> int:
        """Says how many vectors the probe holds for events of ``size`` numbers."""

    @abstractmethod
    def combine(self, times: Callable[[Tensor], Tensor], probe: Tensor) -> tuple[Tensor, Tensor]:
        r"""Computes the estimates of trace and squared Frobenius norm, ``[B, count]`` each.

        ``times`` maps ``[B, D]`` to :math:`J^\top` times it, in float32 at least; ``probe`` is ``[B, vectors, D]``.
        """

    def __call__(self, f, t, x, probe, *args):
        """Evaluates the field and estimates its divergence."""
        v, traces, norms = self._estimates(f, t, x, probe, *args)
        return v, traces.mean(1), norms.mean(1)

    def estimates(self, f: Callable, t: Tensor, x: Tensor, probe: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Evaluates the field and gives every estimate of its divergence, ``[B, count]``."""
        v, traces, _ = self._estimates(f, t, x, probe, *args)
        return v, traces

    def _estimates(self, f, t, x, probe, *args):
        size = x.shape[1:].numel()
        expected = (x.shape[0], self.vectors(size), *x.shape[1:])
        if probe is None or probe.shape != expected:
            raise ValueError(
                f"{self!r}: a probe of shape {None if probe is None else list(probe.shape)} for x of shape "
                f"{list(x.shape)}; draw it with begin(x, generator), hand it on with its sample's rows."
            )
        with gradients() as differentiable:
            t, x, probe, args = enter((t, x, probe, args))
            point, v = evaluate(f, t, x, args)
            times = lambda e: rows(product(v, point, e.reshape(v.shape), differentiable))
            traces, norms = self.combine(times, probe.reshape(*probe.shape[:2], size))
        return (v, traces, norms) if differentiable else (v.detach(), traces.detach(), norms.detach())
