"""Flows that are bijections of the data space: the protocol, and the base class that implements it."""

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
    """Lists the additional members of flows that are bijections of the data space: continuous and discrete-time flows.

    Example:
        >>> import cflow
        >>> def round_trip(flow: InvertibleFlow, x: Tensor) -> Tensor:
        ...     return flow.decode(flow.encode(x)[0])[0]
        >>> x = torch.randn(3, 2)
        >>> torch.allclose(round_trip(cflow.discrete.nsf(2), x), x, atol=1e-5)
        True
    """

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data ``x`` to latents, given ``context``; returns latents and log-determinants."""
        ...

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latents ``z`` to data, given ``context``; returns data and log-determinants."""
        ...

    def rsample(self, shape=(), context: Tensor | None = None, *, generator=None) -> Tensor:
        """Draws as ``sample(shape, context, generator=generator)``, with gradients."""
        ...

    def rsample_and_log_prob(self, shape=(), context: Tensor | None = None, *, generator=None):
        """Draws as ``rsample(shape, context, generator=generator)`` and returns the log-densities as well."""
        ...


class BaseInvertibleFlow(BaseFlow):
    """Implements :class:`InvertibleFlow` from the methods ``_encode`` and ``_decode`` and a ``base``.

    A subclass sets ``self.base`` and writes ``_encode(x, context, generator, **options) -> (z, ladj [B])`` and
    ``_decode(z, context, generator, *, ladj=True, **options) -> (x, ladj [B] or None)``. With ``ladj=False`` the caller
    does not need the log-determinant. Densities follow from the change of variables

    .. math:: \\log p(x) = \\log p_0(z) + \\log |\\det \\partial z / \\partial x|, \\qquad z = \\mathrm{encode}(x).

    The arguments are those of :class:`cflow.BaseFlow`.

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
        """The shape of one latent ``z``. Default: ``model_shape``."""
        return self.model_shape

    def _encode(self, x: Tensor, context: Tensor | None, generator, **options) -> tuple[Tensor, Tensor]:
        raise TypeError(f"{type(self).__qualname__} does not define _encode; write it.")

    def _decode(self, z: Tensor, context: Tensor | None, generator, *, ladj: bool = True, **options):
        raise TypeError(f"{type(self).__qualname__} does not define _decode; write it.")

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
        """Maps data to latents: returns ``(z [*batch, *latent], ladj [*batch])`` with ``ladj = log|det dz/dx|``.

        Args:
            x: data ``[*batch, *event]``.
            context: contexts ``[*batch, *context_shape]``; None for an unconditional flow.
            generator: source of random numbers, for flows whose maps or divergence draw. Default: torch's.
            **options: keywords of the flow, such as ``solver``; see :meth:`options_of`.
        """
        self._check(options, "encode", generator)
        x, context, batch = self._enter(x, context, "encode")
        u, outer = self.preprocess(x, context, generator=generator)
        z, ladj = self._encode(u, context, generator, **options)
        return unflatten(z, batch), (ladj + outer).reshape(batch)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None, **options) -> tuple[Tensor, Tensor]:
        """Maps latents to data: returns ``(x [*batch, *event], ladj [*batch])`` with ``ladj = log|det dx/dz|``.

        Args:
            z: latents ``[*batch, *latent]``.
            context: contexts ``[*batch, *context_shape]``; None for an unconditional flow.
            generator: source of random numbers, for flows whose maps or divergence draw. Default: torch's.
            **options: keywords of the flow, such as ``solver``; see :meth:`options_of`.

        Raises:
            ValueError: if a map of the flow has no inverse, such as a surjection.
        """
        self._check(options, "decode", generator)
        self._needs_bijection("decode")
        z, context, batch = self._enter(z, context, "decode", self.latent_shape, "z")
        u, ladj = self._decode(z, context, generator, **options)
        x, outer = self.postprocess(u, context, generator=generator)
        return unflatten(x, batch), (ladj + outer).reshape(batch)

    def rsample(self, shape=(), context: Tensor | None = None, *, generator=None, **options) -> Tensor:
        """Draws samples ``[*shape, *context_batch, *event]`` with gradients to parameters and context.

        The arguments ``shape``, ``context``, ``generator`` and ``options`` are those of :meth:`sample`.

        Raises:
            ValueError: if a map of the flow has no ``rsample``, such as a surjection.
        """
        self._check(options, "rsample", generator)
        self._needs_bijection("rsample")
        context, batch = self._count(shape, context, "rsample")
        u = self._sample(math.prod(batch), context, generator, **options)
        return unflatten(self.postprocess(u, context, generator=generator)[0], batch)

    def rsample_and_log_prob(
        self, shape=(), context: Tensor | None = None, *, generator=None, **options
    ) -> tuple[Tensor, Tensor]:
        """Draws samples and computes their log-densities in one pass, both with gradients.

        The arguments ``shape``, ``context``, ``generator`` and ``options`` are those of :meth:`sample`.

        Shapes: returns ``([*shape, *context_batch, *event], [*shape, *context_batch])``.

        Raises:
            ValueError: if a map of the flow has no ``rsample``, such as a surjection.
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
        """Draws samples and computes their log-densities in one pass. Builds no graph.

        If a map rounds (dequantisation), the log-density is computed for the rounded sample in a second pass. The
        arguments ``shape``, ``context``, ``generator`` and ``options`` are those of :meth:`sample`.
        """
        self._check(options, "sample_and_log_prob", generator)
        if self.has_rsample and self.likelihood != "bound":
            return self.rsample_and_log_prob(shape, context, generator=generator, **options)
        return super().sample_and_log_prob(shape, context, generator=generator, **options)

    def _needs_bijection(self, method: str) -> None:
        if not self.has_rsample:
            names = {type(each).__name__ for each in self.modules() if isinstance(each, Map) and not each.has_rsample}
            raise ValueError(
                f"flow.{method}: {', '.join(sorted(names - {'Compose'}))} rounds or loses information; use flow.sample "
                f"and flow.log_prob, or a flow without it."
            )
