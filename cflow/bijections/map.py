"""The contract of maps with a log-determinant: data transforms, bijections and surjections."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Size, Tensor, nn

from cflow.shapes import as_shape, pattern

__all__ = ["Bijection", "Cost", "Likelihood", "Map", "Surjection", "weakest"]

Likelihood = Literal["exact", "estimate", "bound", "none"]

STRENGTH = ("exact", "estimate", "bound", "none")


def weakest(*kinds: Likelihood) -> Likelihood:
    """Returns the weakest of several kinds of likelihood: that of a density made of these parts.

    Example:
        >>> weakest("exact", "bound", "estimate"), weakest()
        ('bound', 'exact')
    """
    return STRENGTH[max([0, *[STRENGTH.index(each) for each in kinds]])]


class Cost(NamedTuple):
    """Counts the passes through networks of each direction; a pass that is done piece by piece counts once.

    Attributes:
        encode: passes of ``encode``.
        decode: passes of ``decode``.

    Example:
        >>> Cost(encode=1, decode=16) + Cost(encode=1, decode=1)
        Cost(encode=2, decode=17)
    """

    encode: int = 0
    decode: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(self.encode + other.encode, self.decode + other.decode)


class Map(nn.Module):
    r"""Maps data to latents and back, each with its contribution to a log-density.

    .. math:: \log p(x \mid c) = \log p(z \mid c) + \text{contribution}, \qquad (z, \text{contribution}) =
        \text{encode}(x; c)

    A subclass derives from :class:`Bijection` or :class:`Surjection`, or from this class if the density of latents says
    nothing about the data. It writes :meth:`encode` and :meth:`decode`, and calls :meth:`accept` first in both. The
    same map serves in front of a flow (``flow.with_transform``) and inside one
    (:class:`cflow.discrete.NormalizingFlow`).

    Shapes: ``x [B, *event_shape]``, ``z [B, *latent_shape]``, ``context [B, *context_shape]``, contributions ``[B]``,
    in the dtype of ``x`` or a wider one, float32 at least. There is exactly one batch dimension; flows take any batch.

    Attributes:
        event_shape: shape of one data point.
        latent_shape: shape of one latent. Default: ``event_shape``.
        context_shape: shape of the context that is read. Default: None, no context is read; one that is passed is
            ignored, so that maps with and without a context can be composed.
        likelihood: what the density of a flow with this map means: ``"exact"``; ``"estimate"`` where the contribution
            is random and unbiased; ``"bound"`` for a lower bound (:class:`Surjection`); ``"none"`` if there is no
            density. Fixed at construction.
        draws: whether a direction draws random numbers; only then does it use ``generator``. Fixed at construction.
        has_rsample: whether gradients pass through ``decode``. Fixed at construction.
        changes: whether the map depends on the batch in training mode, so that ``decode`` does not undo ``encode``.
        measures: whether ``encode`` in training mode measures its batches and keeps the results in buffers.
        turned: whether data pass through ``decode``, as inside an :class:`Inverse`, which sets it.
        takes_integers: whether ``encode`` takes whole numbers of any dtype; it converts them to floating point.
        reads_values: whether a direction reads values from the device (to reject some); such a map cannot be captured
            in a graph.
        fixed_buffers: whether the buffers are passed or measured once, so that averages of the weights skip them.
        levels: number of values that the data can have, where they are whole numbers from 0 on.
        domain: ends of the interval in which every entry of the data lies; None for all real numbers. For data beyond,
            ``encode`` raises, or takes the nearest number inside with a contribution of -inf and no gradient.
        image: the same for latents and ``decode``.
        holds_ends: whether the ends belong to the domain.
    """

    likelihood: Likelihood = "exact"
    draws: bool = False
    has_rsample: bool = True
    changes: bool = False
    measures: bool = False
    turned: bool = False
    takes_integers: bool = False
    reads_values: bool = False
    fixed_buffers: bool = False
    levels: int | None = None
    domain: tuple[float, float] | None = None
    image: tuple[float, float] | None = None
    holds_ends: bool = True

    def __init__(self, event_shape, context_shape=None, *, latent_shape=None):
        super().__init__()
        self.event_shape, self.context_shape = as_shape(event_shape), as_shape(context_shape)
        self.latent_shape = self.event_shape if latent_shape is None else as_shape(latent_shape)

    def encode(
        self, x: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps data to latents: ``(z [B, *latent_shape], contribution [B])``.

        Args:
            x: data ``[B, *event_shape]``.
            context: ``[B, *context_shape]``; ignored where no context is read.
            generator: source of random numbers. Default: torch's default generator. A map that does not draw ignores
                ``generator``.
        """
        raise TypeError(f"{type(self).__qualname__} does not define encode.")

    def decode(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps latents to data: ``(x [B, *event_shape], contribution [B])``, the negative contribution of ``encode``.

        Args:
            z: latents ``[B, *latent_shape]``.
            context: ``[B, *context_shape]``; ignored where no context is read.
            generator: source of random numbers. Default: torch's default generator. A map that does not draw ignores
                ``generator``.
        """
        raise TypeError(f"{type(self).__qualname__} does not define decode.")

    def members(self) -> list[Map]:
        """Returns the maps that data pass through, in order: the map itself, unless it is a chain."""
        return [self]

    def cost(self) -> Cost:
        """Returns how many passes through networks each direction takes."""
        return Cost()

    @property
    def is_trained(self) -> bool:
        """Whether training changes the map: it has parameters that require gradients, or measures its batches."""
        return self.measures or any(each.requires_grad for each in self.parameters())

    def accept(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor | None]:
        """Checks the shapes of a call without reading a value; returns value and context, or None for an unread one.

        Args:
            value: the first argument of the call.
            context: the context of the call.
            method: ``"encode"`` or ``"decode"``.

        Raises:
            TypeError: if ``value`` is not a tensor, or has a dtype that the map does not take.
            ValueError: if a shape does not fit, or a context is missing.
        """
        shape = self.event_shape if method == "encode" else self.latent_shape
        name = f"{type(self).__name__}.{method}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            value = self._floating(value, shape, name, method)
        if value.dim() != len(shape) + 1 or value.shape[1:] != shape:
            raise ValueError(
                f"{name}(tensor of shape {list(value.shape)}): this map takes one batch dimension and "
                f"{'events' if method == 'encode' else 'latents'} of shape {list(shape)}; pass {pattern(shape, 'B')}."
            )
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.context_shape is None:
            return value, None
        shown = pattern(self.context_shape, "B")
        if context is None:
            raise ValueError(f"{name}(context=None): this map is conditional; pass a context {shown}.")
        if context.shape != (value.shape[0], *self.context_shape):
            raise ValueError(
                f"{name}(context of shape {list(context.shape)}): the batch has {value.shape[0]} items; pass a context "
                f"{shown}, repeated for every item."
            )
        return value, context.to(value.dtype) if context.is_floating_point() else context

    def _floating(self, value, shape: Size, name: str, method: str) -> Tensor:
        """Converts whole numbers to floating point, where the map takes them."""
        if isinstance(value, Tensor) and not value.is_complex() and self.takes_integers and method == "encode":
            return value.to(torch.get_default_dtype())
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}({given}): this map takes floating tensors; pass {pattern(shape, 'B')}.")


def check_table(name: str, data: Tensor) -> None:
    """Raises unless ``data``, to which a map is fitted, is a tensor ``[N, *event]`` with at least one number."""
    if not isinstance(data, Tensor):
        raise TypeError(
            f"{name}.fit({type(data).__name__}): data must be a tensor [N, *event]; pass torch.as_tensor(data)."
        )
    if data.ndim < 1 or not data.numel():
        raise ValueError(
            f"{name}.fit(data of shape {list(data.shape)}): there are no numbers; pass [N, *event] with rows."
        )


class Bijection(Map):
    r"""Maps data to latents one to one; the contribution is the log-determinant of the direction's Jacobian.

    .. math:: z = b(x; c), \qquad \text{encode} = \bigl(z, \log|\det \partial z/\partial x|\bigr), \qquad
        \text{decode} = \bigl(x, \log|\det \partial x/\partial z|\bigr)

    Each direction is computed independently of the other where this is possible. Shapes and attributes are those of
    :class:`Map`.

    Example:
        >>> class Double(Bijection):
        ...     def encode(self, x, context=None, *, generator=None):
        ...         x, _ = self.accept(x, context, "encode")
        ...         return 2 * x, x.new_full((x.shape[0],), self.event_shape.numel()) * torch.log(x.new_tensor(2.0))
        ...     def decode(self, z, context=None, *, generator=None):
        ...         z, _ = self.accept(z, context, "decode")
        ...         return z / 2, -z.new_full((z.shape[0],), self.latent_shape.numel()) * torch.log(z.new_tensor(2.0))
        >>> Double(3).encode(torch.ones(2, 3))
        (tensor([[2., 2., 2.],
                [2., 2., 2.]]), tensor([2.0794, 2.0794]))
    """


class Surjection(Map):
    r"""Maps many latents to one data point: ``encode`` draws one of the latents, and the density is a lower bound.

    .. math:: \log p(x) \ge \mathbb E_{z \sim q(\cdot \mid x)} \bigl[\log p(z) + \log p(x \mid z) - \log q(z \mid x)
        \bigr]

    The contribution is the sum of the last two terms. ``decode`` returns the data point of a latent, so
    ``decode(encode(x))`` is x, but ``encode(decode(z))`` is not z. A surjection has no :class:`Inverse`. A flow with
    one has a bound for its density, and no ``decode`` or ``rsample``.

    Source: Nielsen et al., SurVAE Flows: Surjections to Bridge the Gap between VAEs and Flows, 2020, arXiv:2007.02731.

    Example:
        >>> class Abs(Surjection):
        ...     def encode(self, x, context=None, *, generator=None):  # draws a sign
        ...         x, _ = self.accept(x, context, "encode")
        ...         sign = 1 - 2 * torch.randint(2, x.shape, generator=generator, device=x.device)
        ...         return sign * x, self._contribution(x, 1)
        ...
        ...     def decode(self, z, context=None, *, generator=None):
        ...         z, _ = self.accept(z, context, "decode")
        ...         return z.abs(), self._contribution(z, -1)
        ...
        ...     def _contribution(self, value, sign):  # -log q(z | x) = log 2 for each number
        ...         return value.new_tensor(sign * math.log(2) * self.event_shape.numel()).expand(len(value))
        >>> import math
        >>> z, contribution = Abs(2).encode(torch.tensor([[1.0, 2.0]]))
        >>> Abs(2).decode(z)[0], contribution
        (tensor([[1., 2.]]), tensor([1.3863]))
    """

    likelihood = "bound"
    draws = True
    has_rsample = False
