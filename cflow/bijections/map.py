"""What a map with a log-determinant is: one contract for data transforms, bijections and surjections."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Size, Tensor, nn

from cflow.shapes import as_shape, pattern

__all__ = ["Bijection", "Cost", "Likelihood", "Map", "Surjection", "weakest"]

Likelihood = Literal["exact", "estimate", "bound", "none"]

STRENGTH = ("exact", "estimate", "bound", "none")


def weakest(*kinds: Likelihood) -> Likelihood:
    """Says what a density means that is made of parts: what the weakest of them gives.

    Example:
        >>> weakest("exact", "bound", "estimate"), weakest()
        ('bound', 'exact')
    """
    return STRENGTH[max([0, *[STRENGTH.index(each) for each in kinds]])]


class Cost(NamedTuple):
    """How many passes through networks a direction takes; a pass that is done piece by piece counts once.

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

    A subclass is a :class:`Bijection` or a :class:`Surjection`, writes :meth:`encode` and :meth:`decode`, and calls
    :meth:`accept` first in both. The same map stands in front of a flow (``flow.with_transform``) and inside one
    (:class:`cflow.discrete.NormalizingFlow`).

    Shapes: ``x [B, *event_shape]``, ``z [B, *latent_shape]``, ``context [B, *context_shape]``, contributions ``[B]``,
    in the dtype of ``x`` or better, float32 at least. There is exactly one batch dimension; flows take any batch.

    Attributes:
        event_shape: the shape of one data point.
        latent_shape: the shape of one latent; the event's unless said otherwise.
        context_shape: the shape of the context that is read; None where none is read (one that is given is ignored, so
            that maps with and without a context may be composed).
        likelihood: what a density behind the map means: ``"exact"``; ``"estimate"`` where the contribution is random
            and unbiased; ``"bound"`` where it makes a lower bound (of a :class:`Surjection`). Fixed at construction.
        draws: whether a direction draws random numbers; only then does it use ``generator``. Fixed at construction.
        has_rsample: whether gradients pass through ``decode``. Fixed at construction.
        changes: whether the map depends on the batch, in training, so that decoding does not undo encoding.
        measures: whether ``encode`` in training mode keeps what it measures on its batches, in buffers.
        turned: whether ``decode`` takes the place of ``encode`` in this, as inside an :class:`Inverse`; set by that.
        takes_integers: whether ``encode`` takes whole numbers of any dtype; they are made floating.
        reads_values: whether a direction reads values back from the device (to refuse some), as no graph can hold.
        fixed_buffers: whether the buffers are given or measured once, so that averages of the weights leave them alone.
        levels: how many whole numbers the data may be, where they are whole numbers from 0 on.
        domain: the ends of the interval in which every entry of the data lies; None for all real numbers. Data beyond
            are refused by ``encode``, or taken as the nearest inside with a contribution of -inf and no gradient.
        image: the same for ``decode`` and its latents.
        holds_ends: whether the ends of the domain belong to it.
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
        """Maps data to latents: ``(z [B, *latent_shape], contribution [B])``."""
        raise TypeError(f"{type(self).__qualname__} does not define encode.")

    def decode(
        self, z: Tensor, context: Tensor | None = None, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """Maps latents to data: ``(x [B, *event_shape], contribution [B])``; both contributions are opposite."""
        raise TypeError(f"{type(self).__qualname__} does not define decode.")

    def members(self) -> list[Map]:
        """Lists the maps that data meet one after the other: the map itself, unless it is a chain."""
        return [self]

    def cost(self) -> Cost:
        """Says how many passes through networks each direction takes."""
        return Cost()

    @property
    def is_trained(self) -> bool:
        """Whether training changes the map: it has parameters that require gradients, or keeps what it measures."""
        return self.measures or any(each.requires_grad for each in self.parameters())

    def accept(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor | None]:
        """Checks the shapes of a call without reading a value, and leaves out a context that is not read.

        Raises:
            TypeError: where ``value`` is not a tensor, or of a dtype that the map does not take.
            ValueError: where a shape does not fit, or a context is missing.
        """
        shape = self.event_shape if method == "encode" else self.latent_shape
        name = f"{type(self).__name__}.{method}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            value = self._floating(value, shape, name, method)
        if value.dim() != len(shape) + 1 or value.shape[1:] != shape:
            raise ValueError(
                f"{name}(tensor of shape {list(value.shape)}): this map was built for one batch dimension and "
                f"{'events' if method == 'encode' else 'latents'} of shape {list(shape)}; pass {pattern(shape, 'B')} "
                f"(a flow takes any batch)."
            )
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.context_shape is None:
            return value, None
        shown = pattern(self.context_shape, "B")
        if context is None:
            raise ValueError(f"{name}(context=None): this map is conditional; pass a context of shape {shown}.")
        if context.shape != (value.shape[0], *self.context_shape):
            raise ValueError(
                f"{name}(context of shape {list(context.shape)}): with a batch of {value.shape[0]}, the context has "
                f"shape {shown}; repeat it for every item."
            )
        return value, context.to(value.dtype) if context.is_floating_point() else context

    def _floating(self, value, shape: Size, name: str, method: str) -> Tensor:
        """Makes whole numbers floating, where the map takes them."""
        if isinstance(value, Tensor) and not value.is_complex() and self.takes_integers and method == "encode":
            return value.to(torch.get_default_dtype())
        given = value.dtype if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"{name}({given}): this map takes floating tensors; pass one of shape {pattern(shape, 'B')}.")


def check_table(name: str, data: Tensor) -> None:
    """Raises unless the data that a map is fitted to are a tensor ``[N, *event]`` with at least one number."""
    if not isinstance(data, Tensor):
        raise TypeError(
            f"{name}.fit({type(data).__name__}): data are a tensor [N, *event]; pass torch.as_tensor(data)."
        )
    if data.ndim < 1 or not data.numel():
        raise ValueError(
            f"{name}.fit(data of shape {list(data.shape)}): there is nothing to measure; pass [N, *event] with rows."
        )


class Bijection(Map):
    r"""Maps data to latents one to one; contributions are the log-determinants of each direction's own Jacobian.

    .. math:: z = b(x; c), \qquad \text{encode} = \bigl(z, \log|\det \partial z/\partial x|\bigr), \qquad
        \text{decode} = \bigl(x, \log|\det \partial x/\partial z|\bigr)

    Both directions are computed independently of each other wherever mathematics allows. See :class:`Map` for shapes
    and attributes.

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
    r"""Maps many latents to one data point: ``encode`` draws one of them, and its contribution makes a lower bound.

    .. math:: \log p(x) \ge \mathbb E_{z \sim q(\cdot \mid x)} \bigl[\log p(z) + \log p(x \mid z) - \log q(z \mid x)
        \bigr]

    the last two terms of which are the contribution. ``decode`` gives the data point of a latent, so
    ``decode(encode(x))`` is x and the other way round loses something. There is no :class:`Inverse` of one, and a flow
    with one has a bound for its density and no ``decode`` or ``rsample``.

    Source: Nielsen et al., SurVAE Flows: Surjections to Bridge the Gap between VAEs and Flows, 2020, arXiv:2007.02731.
    """

    likelihood = "bound"
    draws = True
    has_rsample = False
