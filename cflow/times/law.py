"""The contract of a distribution of training times."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cflow.draws import check_generator

__all__ = ["Times", "inside", "require"]


class Times(ABC):
    """Draws training times ``[count]`` in [0, 1] with the inverse of a distribution function.

    A subclass defines :meth:`icdf`, increasing from 0 to 1, and :meth:`log_density` (minus infinity outside [0, 1]),
    both elementwise. Stratified and antithetic draws override :meth:`uniforms`. Draws are made in float32 at least and
    rounded to ``dtype`` at the end.

    Example:
        >>> class Square(Times):  # p(t) = 1 / (2 sqrt(t)): more times near the base
        ...     def icdf(self, u):
        ...         return u.square()
        ...     def log_density(self, t):
        ...         return torch.where((t >= 0) & (t <= 1), -(2 * t.sqrt()).log(), -torch.inf)
        >>> Square()(3, generator=torch.Generator().manual_seed(0))
        tensor([0.2463, 0.5902, 0.0078])
    """

    def __call__(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """Draws ``count`` times with ``generator`` on ``device``, rounded to ``dtype`` (default: torch's default).

        Raises:
            TypeError: if ``dtype`` is not a floating-point dtype.
        """
        check_generator(f"{type(self).__name__}()", generator)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(
                f"{type(self).__name__}()({count}, dtype={dtype}): times lie between 0 and 1; pass a floating-point "
                f"dtype."
            )
        u = self.uniforms(count, generator, device, torch.promote_types(dtype, torch.float32))
        # Never exactly 0 or 1, where the inverse may be infinite.
        epsilon = torch.finfo(u.dtype).eps
        return self.icdf(u.clamp(epsilon / 4, 1 - epsilon / 2)).to(dtype)

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        """Draws ``count`` numbers, each uniform in [0, 1], with ``generator`` on ``device`` and in ``dtype``."""
        return torch.rand(count, generator=generator, device=device, dtype=dtype)

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Computes the time below which a share ``u`` of all times lies."""

    @abstractmethod
    def log_density(self, t: Tensor) -> Tensor:
        """Computes the log-density at times ``t``, in nats."""

    def density(self, t: Tensor) -> Tensor:
        """Computes the density at times ``t``."""
        return self.log_density(t).exp()


def inside(t: Tensor, value: Tensor) -> Tensor:
    """Returns log-densities inside [0, 1], and minus infinity outside."""
    return torch.where((t >= 0) & (t <= 1), value, -torch.inf)


def require(law: Times, name: str, holds: bool, why: str) -> None:
    """Raises with ``why`` unless the condition for an argument of a distribution holds."""
    if not holds:
        raise ValueError(f"{type(law).__name__}({name}={getattr(law, name)}): {why}.")
