"""Batches from data, in a new, reproducible order in every epoch."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import Dataset, IterableDataset, Subset, default_collate

from cflow.storage import bytes_of
from cflow.training.streams import EPOCH, LOADER, generator_for, stream

__all__ = ["EmptyBatches", "LoaderBatches", "RawBatch", "RowBatches", "batches_of"]

CPU = torch.device("cpu")
Split = Callable[[Any], tuple[Any, Any]]  # splits an item into x and context


@dataclass
class RawBatch:
    """One batch as it is in the data, and the position of the next one."""

    x: Any
    context: Any
    epoch: int
    used: int  # batches of this epoch so far, including this one
    mark: int | None = None  # a checksum that a resumed run compares


def _pair(item: Any) -> tuple[Any, Any]:
    """Splits ``x`` or ``(x, context)``."""
    if isinstance(item, list | tuple):
        if len(item) not in (1, 2):
            raise ValueError(f"fit(data=...): a batch or an item has {len(item)} parts; pass x, (x,) or (x, context).")
        return (item[0], item[1]) if len(item) == 2 else (item[0], None)
    return item, None


def _alone(item: Any) -> tuple[Any, Any]:
    """Returns rows without entries as ``x``, and the item as the context."""
    if isinstance(item, list | tuple):
        if len(item) != 1:
            raise ValueError(f"data with items of {len(item)} parts: the objective takes no x; pass contexts alone.")
        item = item[0]
    return torch.empty(len(tree_leaves(item)[0]), 0), item


def _heights(weights: Tensor, size: int) -> Tensor:
    """Checks the weights of the rows, and returns their cumulative sum."""
    weights = torch.as_tensor(weights).detach().to("cpu", torch.float64)
    if weights.shape != (size,) or not bool((weights.isfinite() & (weights >= 0)).all()) or not weights.sum() > 0:
        raise ValueError(
            f"fit(weights of shape {list(weights.shape)}): pass one weight for each of the {size} rows, finite, not "
            f"negative and not all zero."
        )
    return weights.cumsum(0)


def _collate_of(dataset: Dataset) -> Callable[[list], Any]:
    """Returns the ``collate`` method of the dataset, or of the dataset of a ``Subset``. Default: torch's."""
    while getattr(dataset, "collate", None) is None and isinstance(dataset, Subset):
        dataset = dataset.dataset
    own = getattr(dataset, "collate", None)
    if own is not None and not callable(own):
        raise TypeError(
            f"fit(data={type(dataset).__name__}): its collate is {own!r:.40}; write a method collate(items) that "
            f"returns x or (x, context)."
        )
    return default_collate if own is None else own


def _checksum(values: Iterable[Any]) -> int:
    """Computes a checksum of tensors, arrays and plain values; only the class of other objects counts."""
    checksum = 0
    for value in values:
        if isinstance(value, Tensor):
            checksum = zlib.crc32(bytes_of(value), checksum)
            continue
        seen = type(value).__qualname__.encode()
        if isinstance(value, str | bytes | int | float | None):
            seen = repr(value).encode()
        elif hasattr(value, "__array__") or hasattr(value, "__array_interface__"):  # arrays and pictures
            array = numpy.asarray(value)
            seen = seen if array.dtype.hasobject else array.tobytes()
        checksum = zlib.crc32(seen, checksum)
    return checksum


def _content(dataset: Any, seed: int) -> int | None:
    """Computes a checksum of some items of a map-style dataset; None if items differ between two reads.

    Items may draw from torch's default generator, which has the same state for both reads.
    """

    def look() -> int:
        with stream(CPU, seed, LOADER, 0):
            rows = torch.linspace(0, len(dataset) - 1, min(len(dataset), 16), dtype=torch.float64).long().tolist()
            return _checksum(leaf for row in rows for leaf in tree_leaves(dataset[row]))

    first = look()
    return first if look() == first else None


class EmptyBatches:
    """Returns batches of rows without entries, for objectives that learn from the flow's own draws."""

    mark, marks = None, False

    def __init__(self, batch_size: int, world: int = 1, across: bool = False) -> None:
        self.batch_size, self.world = (batch_size * world, 1) if across else (batch_size, world)

    def describe(self) -> dict[str, Any]:
        """Returns the settings that must be equal for a resumed run to repeat this one."""
        return {"data": "none", "batch_size": self.batch_size * self.world}

    def seek(self, step: int, epoch: int, used: int) -> None:
        """Does nothing, since all steps are equal."""

    def rows(self, step: int) -> None:
        """Returns None: there are no rows."""

    def fetch(self) -> RawBatch:
        """Returns the next batch."""
        return RawBatch(torch.empty(self.batch_size, 0), None, 0, 0)


class RowBatches:
    """Draws batches without replacement from tensors or a map-style dataset; the last partial batch is dropped.

    The order of epoch ``e`` is a permutation drawn from ``(seed, e)``, so any step can be fetched by its number. With
    several processes each takes its own part of the same permutation. With ``across`` each takes the parts of all, in
    the order of one process with the total batch size.

    With ``weights [N]`` rows are drawn with replacement instead, in proportion to their weights; those of step ``n``
    are drawn from ``(seed, n)``.
    """

    mark, marks = None, False  # items have numbers, so no batch needs a checksum

    def __init__(
        self,
        data: Any,
        batch_size: int,
        seed: int,
        rank: int = 0,
        world: int = 1,
        across: bool = False,
        split: Split = _pair,
        weights: Tensor | None = None,
    ) -> None:
        self.dataset, self.split = data if isinstance(data, Dataset) else None, split
        self.x, self.context = (None, None) if self.dataset is not None else split(data)
        self.batch_size, self.seed, self.rank, self.world = batch_size, seed, rank, world
        if across:
            self.batch_size, self.rank, self.world = batch_size * world, 0, 1
        self.size = len(self.dataset) if self.dataset is not None else len(tree_leaves(self.x)[0])
        self.step, self._epoch, self._order = 0, -1, None
        self._heights = None if weights is None else _heights(weights, self.size)

    @property
    def replaces(self) -> bool:
        """Whether rows are drawn with replacement, so a batch may have more rows than the data."""
        return self._heights is not None

    @property
    def per_epoch(self) -> int:
        """The number of steps in one epoch; 1 if a batch of weighted rows has more rows than the data."""
        steps = self.size // (self.batch_size * self.world)
        return max(1, steps) if self.replaces else steps

    def describe(self) -> dict[str, Any]:
        """Returns the settings that must be equal for a resumed run to repeat this one."""
        kind = "dataset" if self.dataset is not None else "tensors"
        described = {"data": kind, "data size": self.size, "batch_size": self.batch_size * self.world}
        if self.dataset is not None:
            described["data content"] = _content(self.dataset, self.seed)
        else:
            # A thousand rows over the whole data: enough to notice other data, and cheap for any size.
            rows = torch.linspace(0, self.size - 1, min(self.size, 1000), dtype=torch.float64).long()
            leaves = [leaf for leaf in tree_leaves((self.x, self.context)) if leaf is not None]
            described["data content"] = _checksum([leaf[rows.to(leaf.device)] for leaf in leaves])
        if self._heights is not None:
            described["weights"] = _checksum([self._heights])
        return described

    def seek(self, step: int, epoch: int, used: int) -> None:
        """Moves to a step, which determines epoch and position."""
        self.step = step

    def rows(self, step: int) -> Tensor:
        """Returns the row indices of the batch of a step."""
        if self.replaces:
            generator = generator_for("cpu", self.seed, EPOCH, step)
            draws = torch.rand(self.batch_size * self.world, dtype=torch.float64, generator=generator)
            drawn = torch.searchsorted(self._heights, draws * self._heights[-1], right=True)
            # A draw that rounds up to the total belongs to the last row with a positive weight.
            last = int((self._heights < self._heights[-1]).sum())
            return drawn.clamp(max=last)[self.rank * self.batch_size : (self.rank + 1) * self.batch_size]
        epoch, position = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            generator = generator_for("cpu", self.seed, EPOCH, epoch)
            self._epoch, self._order = epoch, torch.randperm(self.size, generator=generator)
        start = (position * self.world + self.rank) * self.batch_size
        return self._order[start : start + self.batch_size]

    def fetch(self) -> RawBatch:
        """Returns the next batch."""
        x, context = self._take(self.rows(self.step), LOADER, self.step, self.rank)
        epoch, position = divmod(self.step, self.per_epoch)
        self.step += 1
        return RawBatch(x, context, epoch, position + 1)

    def once(self) -> Iterator[tuple[Any, Any]]:
        """Yields all rows in their order, including the last partial batch."""
        for number, rows in enumerate(torch.arange(self.size).split(self.batch_size)):
            yield self._take(rows, LOADER, number)

    def _take(self, rows: Tensor, *counters: int) -> tuple[Any, Any]:
        if self.dataset is None:
            take = lambda leaf: None if leaf is None else leaf[rows.to(leaf.device)]
            return tree_map(take, (self.x, self.context))
        # Augmentations draw from torch's default generator, so they too depend only on the step.
        with stream(CPU, self.seed, *counters):
            collate = _collate_of(self.dataset)
            return self.split(collate([self.dataset[row] for row in rows.tolist()]))


class LoaderBatches:
    """Takes batches from a loader, epoch after epoch, in a separate random stream.

    ``iter(loader)`` and every fetch in this process use torch's default generator in the state of this stream, which
    starts from ``(seed, epoch)``; loaders seed their workers from it. Augmentations with NumPy or ``random`` in this
    process are not controlled. To resume, the batches already used in the epoch are read and dropped; ``mark`` shows
    whether the last of them has changed.
    """

    def __init__(self, loader: Iterable, seed: int, world: int = 1, split: Split = _pair) -> None:
        self.loader, self.seed, self.world, self.split = loader, seed, world, split
        self.epoch, self.used, self._iterator, self._state = 0, 0, None, None
        # If items have no numbers, a resumed run compares the checksum of a batch.
        self.mark: int | None = None
        self.marks = False
        dataset = getattr(loader, "dataset", None)
        self._items = dataset if hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") else None

    def describe(self) -> dict[str, Any]:
        """Returns the settings that must be equal for a resumed run to repeat this one."""
        size = getattr(self.loader, "batch_size", None)
        described = {"data": "loader", "batch_size": size * self.world if isinstance(size, int) else None}
        if self._items is not None:
            described["data size"] = len(self._items)
            if self.world == 1:  # otherwise each process has different rows
                described["data content"] = _content(self._items, self.seed)
        return described

    def seek(self, step: int, epoch: int, used: int) -> None:
        """Moves to the position after ``used`` batches of an epoch."""
        self.epoch, self.used, self._iterator = epoch, 0, None
        for _ in range(used):
            self._next()

    def rows(self, step: int) -> None:
        """Returns None, since the rows of a loader are not known."""

    def fetch(self) -> RawBatch:
        """Returns the next batch, from the next epoch after the last batch of this one."""
        item = self._next()
        if item is None:
            if self.used == 0:
                raise ValueError(
                    "fit(data=loader): the loader gave no batch; check that it is not empty or used up (a generator "
                    "can be read once only), and drop_last."
                )
            self.epoch, self.used, self._iterator = self.epoch + 1, 0, None
            return self.fetch()
        return RawBatch(*self.split(item), self.epoch, self.used, self.mark)

    def _next(self) -> Any:
        with stream(CPU, self.seed, LOADER, self.epoch):
            if self._iterator is None:
                sampler = getattr(self.loader, "sampler", None)
                if hasattr(sampler, "set_epoch"):
                    sampler.set_epoch(self.epoch)
                self._iterator = iter(self.loader)
            else:
                torch.default_generator.set_state(self._state)
            item = next(self._iterator, None)
            self._state = torch.default_generator.get_state()
        self.used += item is not None
        if self._items is None and self.marks:
            self.mark = _checksum(tree_leaves(item))
        return item

    def once(self) -> Iterator[tuple[Any, Any]]:
        """Yields all batches of the loader once, in the same order every time."""
        again = LoaderBatches(self.loader, self.seed)
        while (item := again._next()) is not None:
            yield self.split(item)


def batches_of(
    data: Any,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world: int = 1,
    across: bool = False,
    samples_per_item: int | None = None,
    weights: Tensor | None = None,
) -> RowBatches | LoaderBatches | EmptyBatches:
    """Returns the source of batches for data; if ``samples_per_item`` is 0, the data are contexts or None.

    Raises:
        TypeError: for data that are not tensors, a map-style dataset or a loader.
        ValueError: for a loader with ``across`` or with weights.
    """
    first = data[0] if isinstance(data, list | tuple) and data else data
    has_rows = isinstance(data, Dataset) or isinstance(first, Tensor | dict)
    if weights is not None and not has_rows:
        raise ValueError(
            f"fit(data={type(data).__name__}, weights=...): weights need rows; pass tensors or a Dataset, or let the "
            f"loader draw by weight."
        )
    if data is None:
        return EmptyBatches(batch_size, world, across)
    split = _alone if samples_per_item == 0 else _pair
    if isinstance(data, IterableDataset):
        raise TypeError(
            "fit(data=IterableDataset): it returns items, not batches; wrap it in "
            "torch.utils.data.DataLoader(data, batch_size=...)."
        )
    if has_rows:
        return RowBatches(data, batch_size, seed, rank, world, across, split, weights)
    if hasattr(data, "__iter__") and not isinstance(data, list | tuple) and not hasattr(data, "__array__"):
        if across:
            raise ValueError(
                "fit(data=loader, across_processes=True): a loader has only the rows of its process; pass tensors or a "
                "map-style Dataset."
            )
        return LoaderBatches(data, seed, world, split)
    kinds = f"({', '.join(type(each).__name__ for each in data[:3])})" if isinstance(data, list | tuple) else ""
    raise TypeError(
        f"fit(data={kinds or type(data).__name__}): pass a tensor [N, *event] (torch.as_tensor of an array, pairs.x of "
        f"Pairs), a pair (x, context) of tensors, a Dataset or a loader of batches."
    )
