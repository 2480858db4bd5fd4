"""What every law of training times is."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from cflow.draws import check_generator

__all__ = ["Times", "inside", "require"]


class Times(ABC):
    """Draws training times ``[count]`` in [0, 1] through the inverse of the law's distribution function.

    A law gives ``icdf(u)``, increasing from 0 to 1, and ``log_density(t)`` (minus infinity outside [0, 1]), both
    elementwise. ``uniforms`` says how the u are drawn, which is where stratified and antithetic draws differ. Draws are
    made in float32 at least and rounded to ``dtype`` at the end.

    Raises:
        TypeError: if times are asked for in a dtype that is not floating.
    """

    def __call__(
        self,
        count: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        check_generator(f"{type(self).__name__}()", generator)
        dtype = torch.get_default_dtype() if dtype is None else dtype
        if not dtype.is_floating_point:
            raise TypeError(
                f"{type(self).__name__}()({count}, dtype={dtype}): times lie between 0 and 1, and {dtype} holds the "
                f"ends alone; pass a floating dtype, such as that of the base samples, or none for torch.float32."
            )
        u = self.uniforms(count, generator, device, torch.promote_types(dtype, torch.float32))
        # Never exactly 0 or 1, where a law with a singular inverse has no time to give.
        epsilon = torch.finfo(u.dtype).eps
        return self.icdf(u.clamp(epsilon / 4, 1 - epsilon / 2)).to(dtype)

    def uniforms(self, count: int, generator, device, dtype: torch.dtype) -> Tensor:
        """Draws ``count`` numbers, each uniform in [0, 1]."""
        return torch.rand(count, generator=generator, device=device, dtype=dtype)

    @abstractmethod
    def icdf(self, u: Tensor) -> Tensor:
        """Computes the time below which the share ``u`` of all draws lies."""

    @abstractmethod
    def log_density(self, t: Tensor) -> Tensor:
        """Computes the log-density at times ``t``, in nats."""

    def density(self, t: Tensor) -> Tensor:
        """Computes the density at times ``t``."""
        return self.log_density(t).exp()


def inside(t: Tensor, value: Tensor) -> Tensor:
    """Keeps log-densities within [0, 1] and gives minus infinity outside."""
    return torch.where((t >= 0) & (t <= 1), value, -torch.inf)


def require(law: Times, name: str, holds: bool, why: str) -> None:
    """Raises for an argument of a law that breaks its condition, saying why it is one."""
    if not holds:
        raise ValueError(f"{type(law).__name__}({name}={getattr(law, name)}): {why}.")
