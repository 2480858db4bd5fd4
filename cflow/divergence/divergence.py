"""The contract of divergences, and the base class of estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from cflow.divergence.products import enter, evaluate, gradients, product
from cflow.shapes import rows

__all__ = ["Divergence", "Estimator"]


class Divergence(ABC):
    r"""Computes a field's value and its divergence, the trace of :math:`J = \partial f / \partial x`.

    A solve calls ``probe = divergence.begin(x, generator)`` once and passes the probe as one of the field's arguments,
    so that it stays with its sample and fixed during the solve. A new probe at every call would make the integrand
    rough and the solver's steps tiny.

    Attributes:
        exact: whether the value is the divergence itself, not an estimate.
        frobenius: whether the squared Frobenius norm of J is computed too.
        count: the number of unbiased estimates whose mean is the value, see :meth:`estimates`; 0 if there are none.

    Example:
        >>> from cflow.divergence import Exact
        >>> divergence, x = Exact(), torch.ones(3, 2)
        >>> probe = divergence.begin(x)
        >>> v, div, norm = divergence(lambda t, x: x**2, torch.zeros(3), x, probe)
        >>> div.tolist()
        [4.0, 4.0, 4.0]
    """

    exact: ClassVar[bool]
    frobenius: ClassVar[bool] = True
    count: int = 0

    def on(self, manifold: Any) -> Divergence:
        """Returns the divergence for tangent fields on a ``manifold``. Default: itself.

        Such fields are evaluated at ``manifold.project(x)``, so the trace of the ambient Jacobian is their divergence.
        A method may do with fewer products than the ambient space has dimensions.
        """
        return self

    @abstractmethod
    def begin(self, x: Tensor, generator: torch.Generator | None = None) -> Tensor | None:
        """Draws the probe of a solve: a tensor with first dimension B, or None.

        Args:
            x: the points at the start ``[B, *event]``.
            generator: the source of random numbers. Default: None, torch's default generator.
        """

    @abstractmethod
    def __call__(
        self, f: Callable, t: Tensor, x: Tensor, probe: Tensor | None, *args: Any
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Computes the value of the field, its divergence ``[B]`` and the squared Frobenius norm of J ``[B]`` or None.

        Args:
            f: the field, called as ``f(t, x, *args)``.
            t: the times, ``[]`` or ``[B]``.
            x: the points ``[B, *event]``.
            probe: the result of :meth:`begin`.
            *args: other arguments of the field, such as the context.
        """

    def estimates(self, f: Callable, t: Tensor, x: Tensor, probe: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Computes ``f(t, x, *args)`` and every estimate of its divergence, ``[B, count]``, from ``probe``."""
        raise TypeError(f"{self!r} has no separate estimates; use divergence.Hutchinson(probes=8).")


class Estimator(Divergence):
    r"""Estimates the divergence as the mean of several unbiased estimates; their spread is the error of the mean.

    A subclass implements ``begin``, ``count``, ``vectors`` and ``combine``. The probe is ``[B, vectors(D), *event]``.
    All products are with :math:`J^\top`, which has the trace of :math:`J`. ``flow.log_prob_estimate`` integrates each
    of the ``count`` estimates along the solve.
    """

    exact: ClassVar[bool] = False

    def on(self, manifold: Any) -> Divergence:
        """Returns the estimator of the same trace with probes that are projected onto the tangent spaces.

        What a probe has across the tangent space would only add noise to the trace, and the normal part of the
        Jacobian, which turns tangent vectors with the manifold, to the norm.
        """
        return _OnTangents(self, manifold)

    @property
    @abstractmethod
    def count(self) -> int:
        """The number of estimates per call."""

    @abstractmethod
    def vectors(self, size: int) -> int:
        """Returns the number of vectors in the probe for events with ``size`` entries."""

    @abstractmethod
    def combine(self, times: Callable[[Tensor], Tensor], probe: Tensor) -> tuple[Tensor, Tensor]:
        r"""Computes the estimates of trace and squared Frobenius norm, ``[B, count]`` each.

        ``times`` maps ``[B, D]`` to :math:`J^\top` times it, in float32 at least; ``probe`` is ``[B, vectors, D]``.
        """

    def __call__(self, f, t, x, probe, *args):
        """Computes ``f(t, x, *args)``, and estimates its divergence and squared Frobenius norm from ``probe``."""
        v, traces, norms = self._estimates(f, t, x, probe, *args)
        return v, traces.mean(1), norms.mean(1)

    def estimates(self, f: Callable, t: Tensor, x: Tensor, probe: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
        """Computes ``f(t, x, *args)`` and every estimate of its divergence, ``[B, count]``, from ``probe``."""
        v, traces, _ = self._estimates(f, t, x, probe, *args)
        return v, traces

    def _estimates(self, f, t, x, probe, *args):
        size = x.shape[1:].numel()
        expected = (x.shape[0], self.vectors(size), *x.shape[1:])
        if probe is None or probe.shape != expected:
            raise ValueError(
                f"{self!r}: a probe of shape {None if probe is None else list(probe.shape)} does not fit x of shape "
                f"{list(x.shape)}; draw it with begin(x, generator)."
            )
        onto = self._projection(x)
        with gradients() as differentiable:
            t, x, probe, args = enter((t, x, probe, args))
            point, v = evaluate(f, t, x, args)
            times = lambda e: onto(rows(product(v, point, onto(e).reshape(v.shape), differentiable)))
            traces, norms = self.combine(times, probe.reshape(*probe.shape[:2], size))
        return (v, traces, norms) if differentiable else (v.detach(), traces.detach(), norms.detach())

    def _projection(self, x: Tensor) -> Callable[[Tensor], Tensor]:
        """Returns the projection of vectors ``[B, D]`` at ``x`` onto the space in which the trace is taken."""
        return lambda e: e


@dataclass(frozen=True, repr=False)
class _OnTangents(Estimator):
    """An estimator of the trace and the norm of the Jacobian between tangent spaces of a manifold."""

    estimator: Estimator
    manifold: Any

    @property
    def count(self) -> int:
        return self.estimator.count

    def vectors(self, size):
        return self.estimator.vectors(size)

    def begin(self, x, generator=None):
        return self.estimator.begin(x, generator)

    def combine(self, times, probe):
        return self.estimator.combine(times, probe)

    def _projection(self, x):
        x = self.manifold.project(x)
        return lambda e: rows(self.manifold.to_tangent(x.to(e.dtype), e.reshape(x.shape)))

    def __repr__(self) -> str:
        return repr(self.estimator)
