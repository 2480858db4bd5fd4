"""A limit on the memory and operations of a module while it is built from a damaged or hostile description."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

__all__ = ["Budget"]

SMALL = 1 << 22  # results with at most so many numbers are not checked beforehand
TINY = 4096  # tensors of at most so many bytes are not counted
SQUARES = (torch.ops.aten.eye, torch.ops.aten.diag_embed, torch.ops.aten.diag)  # n numbers in, n^2 out


class Budget(TorchDispatchMode):
    """Raises before a constructor uses more memory or operations than the size of its saved tensors justifies.

    If the result of an operation may be large, its shape is first computed without memory (on the ``meta`` device).
    Constructors need more memory than the saved tensors: masks, tables, initial values. The limits allow for that.
    They stop a size of 10^9 in a file before it uses minutes and gigabytes.

    Args:
        tensors: number of saved tensors.
        size: their total size in bytes.

    Cost: some 20 microseconds per operation of a constructor.

    Example:
        >>> with Budget(tensors=2, size=24):
        ...     torch.nn.Linear(60_000, 60_000)
        Traceback (most recent call last):
        ValueError: it needs 14,400 MB of memory, too much for 0 MB of saved tensors
    """

    def __init__(self, tensors: int, size: int) -> None:
        super().__init__()
        self.size, self.limit = size, (1 << 28) + 32 * size
        self.operations_left = 500_000 + 1000 * tensors + size // 64
        self._taken, self._living = 0, []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:  # otherwise the first use imports torch's compiler, which takes two seconds
        return False

    def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        self.operations_left -= 1
        if self.operations_left < 0:
            raise ValueError("it needs too many operations for its saved tensors")
        if function._schema.is_mutable or function.is_view:
            return function(*args, **kwargs)
        if _bound(function, args, kwargs) > SMALL:
            self._check(_asked(function, args, kwargs))
        result = function(*args, **kwargs)
        for each in _leaves(result):
            if isinstance(each, Tensor) and each.nbytes > TINY and each.device.type != "meta":
                self._taken += each.nbytes
                self._living.append((StorageWeakRef(each.untyped_storage()), each.nbytes))
                self._check(0)
        return result

    def _check(self, wanted: int) -> None:
        if self._taken + wanted > self.limit:
            self._living = [(storage, size) for storage, size in self._living if not storage.expired()]
            self._taken = sum(size for _, size in self._living)
        if self._taken + wanted > self.limit:
            raise ValueError(
                f"it needs {(self._taken + wanted) / 1e6:,.0f} MB of memory, too much for {self.size / 1e6:,.0f} MB of "
                f"saved tensors"
            )


def _bound(function, args, kwargs) -> int:
    """Computes a quick upper bound on the size of a result."""
    leaves = [*_leaves(args), *_leaves(tuple(kwargs.values()))]
    tensors = [each for each in leaves if isinstance(each, Tensor)]
    if tensors and torch.Tag.pointwise in function.tags:
        rank = max(each.dim() for each in tensors)
        shapes = [(1,) * (rank - each.dim()) + tuple(each.shape) for each in tensors]
        return math.prod(map(max, zip(*shapes))) if rank else 1
    if function.overloadpacket is torch.ops.aten.mm:
        return len(tensors[0]) * tensors[1].shape[1]
    numbers = [abs(int(each)) for each in leaves if isinstance(each, int | float) and math.isfinite(each)]
    largest = math.prod(max(1, each) for each in (*numbers, *(each.numel() for each in tensors)))
    return largest**2 if function.overloadpacket in SQUARES else largest


def _asked(function, args, kwargs) -> int:
    """Computes the bytes of an operation's result without computing the result; 0 where they depend on values."""
    unreal = lambda each: each.to("meta") if isinstance(each, Tensor) else each
    unreal_args, options = tree_map(unreal, args), tree_map(unreal, kwargs)
    if any(each.name == "device" for each in function._schema.arguments):
        options["device"] = torch.device("meta")
    options.pop("generator", None)
    try:
        result = function(*unreal_args, **options)
    except (RuntimeError, NotImplementedError, TypeError):  # what operations without a meta kernel raise
        return 0  # the shape is known only after the operation has run: it is counted afterwards
    return sum(each.nbytes for each in _leaves(result) if isinstance(each, Tensor))


def _leaves(values) -> list:
    if not isinstance(values, list | tuple):
        return [values]
    return [leaf for each in values for leaf in (_leaves(each) if isinstance(each, list | tuple) else (each,))]
