"""What a bijection is, and the three ways to make one of others: composed, inverted, counted."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Size, Tensor, nn

from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Bijection", "Compose", "Cost", "Inverse"]


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


class Bijection(nn.Module):
    r"""Maps data to latents and back, each with the log-determinant of its own Jacobian.

    .. math:: z = b(x; c), \qquad \text{encode} = \bigl(z, \log|\det \partial z/\partial x|\bigr), \qquad
        \text{decode} = \bigl(x, \log|\det \partial x/\partial z|\bigr)

    A subclass writes :meth:`encode` and :meth:`decode`, computed independently of each other wherever mathematics
    allows, and calls :meth:`accept` first in both. A bijection keeps no state between calls.

    Shapes: ``x [B, *event_shape]``, ``z [B, *latent_shape]``, ``context [B, *context_shape]``, log-determinants
    ``[B]``, in the dtype of ``x``, which is float32 or better. There is exactly one batch dimension;
    :class:`~cflow.discrete.NormalizingFlow` takes any batch.

    Attributes:
        event_shape: the shape of one data point.
        latent_shape: the shape of one latent; the event's unless said otherwise.
        changes: whether the map depends on the batch, in training, so that decoding does not undo encoding.
        context_shape: the shape of the context that is read; None where none is read (one that is given is ignored, so
            that bijections with and without a context may be composed).

    Example:
        >>> class Double(Bijection):
        ...     def encode(self, x, context=None):
        ...         x, _ = self.accept(x, context, "encode")
        ...         return 2 * x, x.new_full((len(x),), self.event_shape.numel()) * torch.log(x.new_tensor(2.0))
        ...     def decode(self, z, context=None):
        ...         z, _ = self.accept(z, context, "decode")
        ...         return z / 2, -z.new_full((len(z),), self.latent_shape.numel()) * torch.log(z.new_tensor(2.0))
        >>> Double(3).encode(torch.ones(2, 3))
        (tensor([[2., 2., 2.],
                [2., 2., 2.]]), tensor([2.0794, 2.0794]))
    """

    changes = False

    def __init__(self, event_shape, context_shape=None, *, latent_shape=None):
        super().__init__()
        self.event_shape, self.context_shape = as_shape(event_shape), as_shape(context_shape)
        self.latent_shape = self.event_shape if latent_shape is None else as_shape(latent_shape)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps data to latents: ``(z [B, *latent_shape], log|det dz/dx| [B])``."""
        raise TypeError(f"{type(self).__qualname__} does not define encode.")

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Maps latents to data: ``(x [B, *event_shape], log|det dx/dz| [B])``."""
        raise TypeError(f"{type(self).__qualname__} does not define decode.")

    def cost(self) -> Cost:
        """Says how many passes through networks each direction takes."""
        return Cost()

    def accept(self, value: Tensor, context: Tensor | None, method: str) -> tuple[Tensor, Tensor | None]:
        """Checks the shapes of a call without reading a value, and leaves out a context that is not read.

        Raises:
            TypeError: where ``value`` is no floating tensor.
            ValueError: where a shape does not fit, or a context is missing.
        """
        shape = self.event_shape if method == "encode" else self.latent_shape
        name = f"{type(self).__name__}.{method}"
        if not isinstance(value, Tensor) or not value.is_floating_point():
            given = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"{name}({given}): a bijection maps floating tensors; pass one of shape {_wanted(shape)}.")
        if value.dim() != len(shape) + 1 or value.shape[1:] != shape:
            raise ValueError(
                f"{name}(tensor of shape {list(value.shape)}): this bijection was built for one batch dimension and "
                f"{'events' if method == 'encode' else 'latents'} of shape {list(shape)}; pass {_wanted(shape)} (a "
                f"NormalizingFlow takes any batch)."
            )
        value = value.to(torch.promote_types(value.dtype, torch.float32))
        if self.context_shape is None:
            return value, None
        wanted = _wanted(self.context_shape)
        if context is None:
            raise ValueError(f"{name}(context=None): this bijection is conditional; pass a context of shape {wanted}.")
        if context.shape != (value.shape[0], *self.context_shape):
            raise ValueError(
                f"{name}(context of shape {list(context.shape)}): with a batch of {value.shape[0]}, the context has "
                f"shape {wanted}; repeat it for every item."
            )
        return value, context.to(value.dtype) if context.is_floating_point() else context


@register("discrete.Compose")
class Compose(Bijection):
    """Chains bijections: ``encode`` applies them from the first to the last, ``decode`` from the last to the first.

    Every member is given the whole context; those that read none ignore it. Members stay reachable by index, and a
    slice is a ``Compose`` of the same members.

    Cost: the sum of the members'.

    Raises:
        ValueError: where there are no members, the same module is given twice (its weights would be tied in silence),
            shapes do not follow one another, or two members read contexts of different shapes.

    Example:
        >>> from cflow.discrete import LULinear, Permute
        >>> both = Compose(Permute([1, 0]), LULinear(2))
        >>> both.encode(torch.tensor([[1.0, 2.0]]))[0]
        tensor([[2., 1.]], grad_fn=...)
        >>> len(both), both[1]
        (2, LULinear(features=2))
    """

    def __init__(self, *bijections: Bijection):
        if not bijections:
            raise ValueError("Compose(): there is nothing to compose; pass one bijection or more.")
        for i, each in enumerate(bijections):
            if not isinstance(each, Bijection):
                raise TypeError(
                    f"Compose(..., {type(each).__qualname__}): item {i} is no bijection; pass objects such as "
                    "discrete.Coupling(discrete.Affine(), features=6), or unpack a list with a star."
                )
            if i and each.event_shape != bijections[i - 1].latent_shape:
                raise ValueError(
                    f"Compose: item {i - 1} ({type(bijections[i - 1]).__name__}) gives "
                    f"{list(bijections[i - 1].latent_shape)} and item {i} ({type(each).__name__}) takes "
                    f"{list(each.event_shape)}; build both for the same shape."
                )
        _refuse_shared(bijections)
        contexts = {each.context_shape for each in bijections} - {None}
        if len(contexts) > 1:
            shown = " and ".join(str(list(each)) for each in sorted(contexts))
            raise ValueError(f"Compose: members read contexts of the shapes {shown}; build all for one context.")
        super().__init__(
            bijections[0].event_shape, contexts.pop() if contexts else None, latent_shape=bijections[-1].latent_shape
        )
        self.bijections = nn.ModuleList(bijections)

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        return chain(x, context, [each.encode for each in self.bijections])

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        return chain(z, context, [each.decode for each in reversed(self.bijections)])

    def cost(self) -> Cost:
        return sum((each.cost() for each in self.bijections), Cost())

    def __len__(self) -> int:
        return len(self.bijections)

    def __getitem__(self, index: int | slice) -> Bijection:
        return Compose(*self.bijections[index]) if isinstance(index, slice) else self.bijections[index]


@register("discrete.Inverse")
class Inverse(Bijection):
    """Views a bijection from the other side: its ``encode`` is the other's ``decode``. Weights are shared, not copied.

    Example:
        >>> from cflow.discrete import LULinear
        >>> layer = LULinear(2)
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> bool((Inverse(layer).decode(x)[0] == layer.encode(x)[0]).all())
        True
    """

    def __init__(self, bijection: Bijection):
        super().__init__(bijection.latent_shape, bijection.context_shape, latent_shape=bijection.event_shape)
        self.bijection = bijection

    def encode(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.decode(x, context)

    def decode(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.bijection.encode(z, context)

    def cost(self) -> Cost:
        return Cost(*reversed(self.bijection.cost()))


def chain(value: Tensor, context: Tensor | None, maps: list) -> tuple[Tensor, Tensor]:
    """Applies maps one after the other and adds their log-determinants."""
    value, total = maps[0](value, context)
    for each in maps[1:]:
        value, ladj = each(value, context)
        total = total + ladj
    return value, total


def _refuse_shared(bijections: tuple[Bijection, ...]) -> None:
    """Raises where a module, or one of its parameters, belongs to two members."""
    owner: dict[int, int] = {}
    for i, each in enumerate(bijections):
        for part in {id(part): part for part in (*each.modules(), *each.parameters())}.values():
            if owner.setdefault(id(part), i) != i:
                raise ValueError(
                    f"Compose: items {owner[id(part)]} and {i} share a {type(part).__qualname__}, so their weights "
                    "would be tied; build each layer anew, or pass copy.deepcopy(layer)."
                )


def _wanted(shape: Size) -> str:
    return "[" + ", ".join(["B", *map(str, shape)]) + "]"
