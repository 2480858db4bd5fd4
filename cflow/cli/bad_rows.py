"""Rows of numbers that a flow cannot score: codes of missing values, and numbers that are not tokens."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cflow.cli.texts import TextFile
from cflow.data.faults import NONE, Fault
from cflow.data.tables import Chunk, TableFile

__all__ = ["mark_missing", "mark_no_tokens"]


def mark_missing(chunk: Chunk, codes: Tensor, file: TableFile | TextFile) -> None:
    """Adds the rows with a code of a missing value, which a run has stored, to the bad rows of a chunk."""
    for position, column in torch.isin(chunk.values, codes).nonzero().tolist():
        name, value = (file.names or file.columns)[column], float(chunk.values[position, column])
        what = f"column {name} holds {value:.17g}, a code of a missing value in this run"
        chunk.bad.setdefault(position, Fault(what, NONE, "drop such rows, or fill them", str(name), missing=True))


def mark_no_tokens(chunk: Chunk, vocabulary: int, size: int, file: TableFile | TextFile) -> None:
    """Adds the rows with a number that is not a token to the bad rows of a chunk; only for flows over tokens."""
    values = chunk.values[:, :size]
    if not vocabulary:
        return
    for position, column in ((values != values.floor()) | (values < 0) | (values >= vocabulary)).nonzero().tolist():
        name, value = (file.names or file.columns)[column], float(values[position, column])
        if not math.isnan(value):  # a row that is bad already
            what = "not a whole number" if value != math.floor(value) else "not a token of this flow"
            said = f"column {name} holds {value:.9g}, {what} (0 to {vocabulary - 1})"
            remedy = f"write whole numbers from 0 to {vocabulary - 1}"
            chunk.bad.setdefault(position, Fault(said, what, remedy, str(name)))
