"""Counts of the operations of a piece of code, and of the values that it reads to the host."""

from __future__ import annotations

from collections import Counter

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Operations"]

READS = frozenset(("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique"))
VIEWS = frozenset(
    (
        *("view", "expand", "unsqueeze", "unbind", "select", "slice", "t", "transpose", "permute", "_unsafe_view"),
        *(
            "alias",
            "detach",
            "squeeze",
            "as_strided",
            "split",
            "split_with_sizes",
            "unflatten",
            "lift_fresh",
            "_reshape_alias",
        ),
    )
)


class Operations(TorchDispatchMode):
    """Counts operations by name in ``counts``, without views, which launch nothing; and host reads in ``reads``.

    ``tolist`` is counted separately, since it is not dispatched on a CPU.

    Example:
        >>> with Operations() as operations:
        ...     value = torch.ones(2).add(1).unsqueeze(0).sum().item()
        >>> operations.counts.total(), operations.reads
        (3, 1)
    """

    def __enter__(self):
        self.counts, self.reads, self.tolist = Counter(), 0, torch.Tensor.tolist

        def counted(tensor):
            self.reads += 1
            return self.tolist(tensor)

        torch.Tensor.tolist = counted
        return super().__enter__()

    def __exit__(self, *rest):
        torch.Tensor.tolist = self.tolist
        return super().__exit__(*rest)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.split(".")[0]
        if name in READS:
            self.reads += 1
        elif name not in VIEWS:
            self.counts[name] += 1
        return function(*args, **(kwargs or {}))
