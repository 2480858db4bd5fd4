"""A mark for tensors of a prepared batch that all rows share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["Shared"]


@dataclass(frozen=True)
class Shared:
    """Marks a value that all rows of a prepared batch share: a table, a grid of times, one drawn length.

    A batch may be cut into pieces (``fit(accumulate=..., pool=...)``, several processes). Each tensor is then cut along
    its first dimension, the rows; a marked value is passed to every piece whole. Without the mark, a table with as many
    entries as the batch has rows could not be distinguished from one value per row.

    Args:
        value: a tensor, or a nested tuple, list or dict of tensors. The loss reads it as ``batch.table.value``.

    Example:
        >>> import torch
        >>> batch = {"x": torch.zeros(64, 2), "table": Shared(torch.arange(64.0))}
        >>> batch["table"].value.shape
        torch.Size([64])
    """

    value: Any
