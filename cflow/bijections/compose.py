"""Chains of maps."""

from __future__ import annotations

from torch import Tensor, nn

from cflow.bijections.map import Cost, Map, weakest
from cflow.registry import register
from cflow.shapes import as_shape

__all__ = ["Compose"]


@register("bijections.Compose")
class Compose(Map):
    """Chains maps: ``encode`` applies them from the first to the last, ``decode`` from the last to the first.

    Every member receives the whole context (members that read none ignore it), and the generator if it draws. The
    ``likelihood`` of the chain is that of its weakest member. Gradients pass through ``decode`` if they pass through
    every member. ``chain[i]`` is a member; a slice is a ``Compose`` of the same members.

    Args:
        maps: the members. A chain without members is the identity.
        event_shape: shape of one data point; needed only for a chain without members.

    Cost: the sum of the members' costs.

    Raises:
        TypeError: if a member is not a :class:`Map`.
        ValueError: if there are neither members nor an ``event_shape``; if a module occurs twice (its weights would be
            tied), the shapes of two neighbours differ, or two members read contexts of different shapes.

    Example:
        >>> import torch
        >>> from cflow.bijections import LULinear, Permute
        >>> both = Compose(Permute([1, 0]), LULinear(2))
        >>> both.encode(torch.tensor([[1.0, 2.0]]))[0]
        tensor([[2., 1.]], grad_fn=...)
        >>> len(both), both[1]
        (2, LULinear(features=2))
    """

    def __init__(self, *maps: Map, event_shape=None):
        if not maps and event_shape is None:
            raise ValueError("Compose(): there are no maps; pass at least one, or event_shape=... for the identity.")
        _check_members(maps)
        event = as_shape(event_shape) if event_shape is not None else maps[0].event_shape
        if maps and event != maps[0].event_shape:
            raise ValueError(
                f"Compose(event_shape={list(event)}): the first map ({type(maps[0]).__name__}) takes "
                f"{list(maps[0].event_shape)}; omit event_shape."
            )
        contexts = {each.context_shape for each in maps} - {None}
        if len(contexts) > 1:
            shown = " and ".join(str(list(each)) for each in sorted(contexts))
            raise ValueError(f"Compose: members read contexts of shapes {shown}; build all for one shape.")
        super().__init__(
            event, contexts.pop() if contexts else None, latent_shape=maps[-1].latent_shape if maps else None
        )
        self.maps = nn.ModuleList(maps)
        # Fixed here, so that compiled calls need no look-up.
        self.likelihood = weakest(*(each.likelihood for each in maps))
        self.has_rsample = all(each.has_rsample for each in maps)
        self.draws, self.changes, self.measures, self.reads_values = (
            any(getattr(each, name) for each in maps) for name in ("draws", "changes", "measures", "reads_values")
        )
        self.takes_integers = bool(maps) and maps[0].takes_integers
        self.levels = maps[0].levels if maps else None
        # Whether some data have a contribution of -inf: only then are contributions checked for it.
        self.bounded = any(each.domain is not None and not each.reads_values for each in self.members())

    def encode(self, x: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        x, context = self.accept(x, context, "encode")
        return chain(x, context, self._directions("encode"), generator)

    def decode(self, z: Tensor, context: Tensor | None = None, *, generator=None) -> tuple[Tensor, Tensor]:
        z, context = self.accept(z, context, "decode")
        return chain(z, context, self._directions("decode"), generator)

    def members(self) -> list[Map]:
        return [part for each in self.maps for part in each.members()]

    def cost(self) -> Cost:
        return sum((each.cost() for each in self.maps), Cost())

    @property
    def trained_from(self) -> int:
        """The index of the first member that training changes (``len(self)`` where there is none)."""
        return next((i for i, each in enumerate(self.maps) if each.is_trained), len(self.maps))

    def _directions(self, method: str) -> list:
        """Returns the calls in order, each with whether it draws."""
        maps = self.maps if method == "encode" else reversed(self.maps)
        return [(getattr(each, method), each.draws) for each in maps]

    def __len__(self) -> int:
        return len(self.maps)

    def __getitem__(self, index: int | slice) -> Map:
        if not isinstance(index, slice):
            return self.maps[index]
        members = self.maps[index]
        first = range(len(self))[index].start
        inside = self.event_shape if first == 0 else self.maps[min(first, len(self)) - 1].latent_shape
        return Compose(*members, event_shape=None if len(members) else inside)


def chain(value: Tensor, context: Tensor | None, calls: list, generator=None) -> tuple[Tensor, Tensor]:
    """Applies maps one after another and adds their contributions; ``calls`` are pairs ``(map, whether it draws)``."""
    total = None
    for call, draws in calls:
        value, part = call(value, context, generator=generator) if draws else call(value, context)
        total = part if total is None else total + part
    return value, value.new_zeros(value.shape[0]) if total is None else total


def _check_members(maps: tuple[Map, ...]) -> None:
    """Raises if a member is not a map, the shapes of neighbours differ, or two members share a module or parameter."""
    owner: dict[int, int] = {}
    for i, each in enumerate(maps):
        if not isinstance(each, Map):
            raise TypeError(
                f"Compose(..., {type(each).__qualname__}): item {i} is not a bijections.Map; pass maps, and unpack a "
                "list with a star."
            )
        if i and each.event_shape != maps[i - 1].latent_shape:
            raise ValueError(
                f"Compose: item {i - 1} ({type(maps[i - 1]).__name__}) returns {list(maps[i - 1].latent_shape)}, item "
                f"{i} ({type(each).__name__}) takes {list(each.event_shape)}; build both for one shape."
            )
        for part in {id(part): part for part in (*each.modules(), *each.parameters())}.values():
            if owner.setdefault(id(part), i) != i:
                raise ValueError(
                    f"Compose: items {owner[id(part)]} and {i} share the weights of a {type(part).__qualname__}; pass "
                    "copy.deepcopy(layer)."
                )
