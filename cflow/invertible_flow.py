"""Flows that are bijections of the data space: the protocol, and the base class that derives it from two directions."""

from __future__ import annotations

import math
from typing import Protocol, runtime_checkable

import torch
from torch import Size, Tensor, nn

from cflow.bijections.map import Likelihood, Map, weakest
from cflow.flow import BaseFlow, Flow
from cflow.shapes import unflatten

__all__ = ["BaseInvertibleFlow", "InvertibleFlow"]


@runtime_checkable
class InvertibleFlow(Flow, Protocol):
    """A flow that is a bijection of the data space: continuous and discrete-time flows."""

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]: ...

    def rsample(self, shape=(), context: Tensor | None = None, *, generator=None) -> Tensor: ...

    def rsample_and_log_prob(self, shape=(), context: Tensor | None = None, *, generator=None): ...


class BaseInvertibleFlow(BaseFlow):
    """Derives the protocol of a flow that is a bijection from ``_encode``, ``_decode`` and a ``base``.

    A subclass sets ``self.base`` and writes ``_encode(x, context, generator, **options) -> (z, ladj [B])`` and
    ``_decode(z, context, generator, *, ladj=True, **options) -> (x, ladj [B] or None)``; ``ladj=False`` says that the
    caller has no use for it. Densities follow from the change of variables

    .. math:: \\log p(x) = \\log p_0(z) + \\log |\\det \\partial z / \\partial x|, \\qquad z = \\mathrm{encode}(x).

    Example:
        >>> from cflow import bases
        >>> class Doubled(BaseInvertibleFlow):
        ...     def __init__(self):
        ...         super().__init__(2)
        ...         self.base = bases.Normal(2)
        ...     def _encode(self, x, context, generator):
        ...         return x / 2, x.new_full((len(x),), -2 * math.log(2.0))
        ...     def _decode(self, z, context, generator, *, ladj=True):
        ...         return 2 * z, z.new_full((len(z),), 2 * math.log(2.0))
        >>> Doubled().log_prob(torch.zeros(2))
        tensor(-3.2242)
    """

    base: nn.Module

    @property
    def latent_shape(self) -> Size:
        """The shape of one latent, ``z``: that of what is modelled, unless a subclass says otherwise."""
        return self.model_shape

    def _encode(self, x: Tensor, context: Tensor | None, generator, **options) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__qualname__} does not define _encode.")

    def _decode(self, z: Tensor, context: Tensor | None, generator, *, ladj: bool = True, **options):
        raise TypeError(f"{type(self).__qualname__} does not define _decode.")

    @property
    def has_rsample(self) -> bool:
        return all(each.has_rsample for each in self._maps())

    @property
    def likelihood(self) -> Likelihood:
        if not getattr(self.base, "has_density", True):
            return "none"
        return weakest(*[each.likelihood for each in self._maps()])

    def _log_prob(self, x: Tensor, context: Tensor | None, generator, **options) -> Tensor:
        z, ladj = self._encode(x, context, generator, **options)
        return self.base.log_prob(z) + ladj

    def _sample(self, count: int, context: Tensor | None, generator, **options) -> Tensor:
        z = self.cast(self.base.sample((count,), generator=generator))
        return self._decode(z, context, generator, ladj=False, **options)[0]

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None, **options) -> tuple[Tensor, Tensor]:
        """Carries data to the latent space: ``(z [*batch, *latent], ladj [*batch])``, ``ladj = log|det dz/dx|``."""
        self._check(options, "encode", generator)
        x, context, batch = self._enter(x, context, "encode")
        u, outer = self.preprocess(x, context, generator=generator)
        z, ladj = self._encode(u, context, generator, **options)
        return unflatten(z, batch), (ladj + outer).reshape(batch)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None, **options) -> tuple[Tensor, Tensor]:
        """Carries latents to the data space: ``(x [*batch, *event], ladj [*batch])``, ``ladj = log|det dx/dz|``."""
        self._check(options, "decode", generator)
        self._needs_bijection("decode")
        z, context, batch = self._enter(z, context, "decode", self.latent_shape, "z")
        u, ladj = self._decode(z, context, generator, **options)
        x, outer = self.postprocess(u, context, generator=generator)
        return unflatten(x, batch), (ladj + outer).reshape(batch)

    def rsample(self, shape=(), context: Tensor | None = None, *, generator=None, **options) -> Tensor:
        """Draws samples ``[*shape, *context_batch, *event]`` with gradients to parameters and context, in one pass.

        Raises:
            ValueError: where a map on the way has no ``rsample``, as a surjection has none.
        """
        self._check(options, "rsample", generator)
        self._needs_bijection("rsample")
        context, batch = self._count(shape, context, "rsample")
        u = self._sample(math.prod(batch), context, generator, **options)
        return unflatten(self.postprocess(u, context, generator=generator)[0], batch)

    def rsample_and_log_prob(
        self, shape=(), context: Tensor | None = None, *, generator=None, **options
    ) -> tuple[Tensor, Tensor]:
        """Draws samples and their log-density with gradients, both from one pass.

        Shapes: ``([*shape, *context_batch, *event], [*shape, *context_batch])``.

        Raises:
            ValueError: where a map on the way has no ``rsample``, as a surjection has none.
        """
        self._check(options, "rsample_and_log_prob", generator)
        self._needs_bijection("rsample_and_log_prob")
        context, batch = self._count(shape, context, "rsample_and_log_prob")
        z = self.cast(self.base.sample((math.prod(batch),), generator=generator))
        u, ladj = self._decode(z, context, generator, **options)
        x, outer = self.postprocess(u, context, generator=generator)
        return unflatten(x, batch), (self.base.log_prob(z) - ladj - outer).reshape(batch)

    @torch.no_grad()
    def sample_and_log_prob(
        self, shape=(), context: Tensor | None = None, *, generator=None, **options
    ) -> tuple[Tensor, Tensor]:
        """Draws samples and computes their log-density, both from one pass. Builds no graph.

        Where a map rounds (dequantisation), the log-density is evaluated anew for the rounded sample.
        """
        self._check(options, "sample_and_log_prob", generator)
        if self.has_rsample and self.likelihood != "bound":
            return self.rsample_and_log_prob(shape, context, generator=generator, **options)
        return super().sample_and_log_prob(shape, context, generator=generator, **options)

    def _needs_bijection(self, method: str) -> None:
        if not self.has_rsample:
            names = {type(each).__name__ for each in self.modules() if isinstance(each, Map) and not each.has_rsample}
            raise ValueError(
                f"flow.{method}: {', '.join(sorted(names - {'Compose'}))} rounds or loses something on the way to the "
                f"data, so samples have no gradient and no Jacobian; use flow.sample and flow.log_prob, or a flow "
                f"without it."
            )
