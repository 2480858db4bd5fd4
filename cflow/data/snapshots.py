"""Snapshots: unpaired samples of one population at several times."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cflow.data.files import find
from cflow.data.npy import array_names, read_array
from cflow.data.tables import TableFile, read_table

__all__ = ["Snapshots", "read_snapshots"]

VALUES = ("pcs", "X", "x", "samples", "values", "data")
TIMES = ("sample_labels", "times", "time", "t", "day", "days", "labels", "label")


class Snapshots(Dataset):
    """Holds unpaired samples of a population at K times, as training data for :class:`objectives.MultiMarginal`.

    Item i has one sample of every snapshot: row i of the largest snapshot, and a random row of every other one. The
    random rows come from torch's default generator (which ``training.fit`` seeds at every step). So one epoch uses
    every row of the largest snapshot once, and rows of different snapshots are not paired.

    Args:
        samples: K tensors ``[N_k, *event]``, one per time.
        times: K increasing numbers in any unit. Default: equally spaced over [0, 1].

    Attributes:
        dropped: how many rows with missing values :func:`read_snapshots` dropped.

    Shapes: an item is ``[K, *event]``, in the widest dtype of the snapshots. Cost: one draw and one look-up per item.

    Raises:
        ValueError: for fewer than two snapshots, empty snapshots, events of different shapes, values that are not
            finite, times that do not increase, or another number of times than of snapshots.
        TypeError: if a snapshot is not a tensor.

    Example:
        >>> snapshots = Snapshots([torch.zeros(5, 2), torch.ones(8, 2), torch.ones(3, 2)], times=[2, 3, 7])
        >>> snapshots
        Snapshots(sizes=(5, 8, 3), times=(2.0, 3.0, 7.0), event_shape=(2,))
        >>> len(snapshots), snapshots[0].shape
        (8, torch.Size([3, 2]))
        >>> snapshots.normalised().without(1).times
        (0.0, 1.0)
    """

    dropped = 0

    def __init__(self, samples: Sequence[Tensor], times: Sequence[float] | None = None):
        samples = tuple(samples)
        if len(samples) < 2:
            raise ValueError(
                f"Snapshots({len(samples)} samples): at least two are needed; pass a list of tensors [N_k, *event], "
                f"one per time."
            )
        for k, each in enumerate(samples):
            _check_snapshot(k, each, samples[0])
        if times is None:
            times = [k / (len(samples) - 1) for k in range(len(samples))]
        self.times = tuple(float(each) for each in times)
        increase = all(a < b for a, b in itertools.pairwise(self.times)) and all(map(math.isfinite, self.times))
        if len(self.times) != len(samples) or not increase:
            raise ValueError(
                f"Snapshots({len(samples)} samples, times={self.times}): pass one time per snapshot, in increasing "
                f"order."
            )
        dtype = torch.get_default_dtype() if not samples[0].is_floating_point() else samples[0].dtype
        for each in samples:
            dtype = torch.promote_types(dtype, each.dtype)
        self.samples = tuple(each.detach().to(dtype) for each in samples)
        sizes = [len(each) for each in samples]
        self._rows = torch.cat(self.samples)
        self._sizes = torch.tensor(sizes)
        self._starts = self._sizes.cumsum(0) - self._sizes
        self._largest = sizes.index(max(sizes))

    @property
    def event_shape(self) -> torch.Size:
        """The shape of one sample."""
        return self.samples[0].shape[1:]

    def __len__(self) -> int:
        return int(self._sizes[self._largest])

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < len(self):
            raise IndexError(f"Snapshots[{index}]: the largest snapshot has {len(self)} rows; pass less.")
        # In float64 a draw below one, times a size, stays below the size.
        rows = (torch.rand(len(self.samples), dtype=torch.float64) * self._sizes).long()
        rows[self._largest] = index
        return self._rows[self._starts + rows]

    def without(self, k: int) -> Snapshots:
        """Returns the snapshots without snapshot ``k``; the others keep their times."""
        if not 0 <= k < len(self.samples):
            raise ValueError(f"Snapshots.without({k}): pass a number from 0 to {len(self.samples) - 1}.")
        if len(self.samples) < 3:
            raise ValueError(f"Snapshots.without({k}): at least two snapshots must remain; there are only two.")
        return Snapshots(self.samples[:k] + self.samples[k + 1 :], self.times[:k] + self.times[k + 1 :])

    def normalised(self) -> Snapshots:
        """Returns the same snapshots with times scaled to [0, 1], as a flow needs them."""
        first, last = self.times[0], self.times[-1]
        return Snapshots(self.samples, [(each - first) / (last - first) for each in self.times])

    def __repr__(self) -> str:
        sizes = tuple(self._sizes.tolist())
        return f"Snapshots(sizes={sizes}, times={self.times}, event_shape={tuple(self.event_shape)})"


def read_snapshots(
    path: str | os.PathLike,
    *,
    values: str | Sequence[str] | None = None,
    times: str | None = None,
    drop_missing: bool = False,
) -> Snapshots:
    """Reads snapshots from a .npz file (an array of samples and one of times) or a text table (one column of times).

    Rows with the same time form one snapshot. The times keep their unit. The layout of TrajectoryNet's embryoid body
    file, ``pcs [N, D]`` and ``sample_labels [N]``, can be read directly.

    Args:
        path: the file. A .csv or .tsv file starts with a line of column names.
        values: the name of the array of samples; for a .csv file the names of the columns. Default: the first of pcs,
            X, x, samples, values, data that exists; for a .csv file all named columns except the column of times.
        times: the name of the array or column of times. Default: the first of sample_labels, times, time, t, day, days,
            labels, label that exists.
        drop_missing: whether to drop, and count in ``dropped``, the rows with a missing value or time.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if a name is not found (the message lists the existing names), a value is not a number, or the rows
            cannot form snapshots.

    Source: Tong et al., TrajectoryNet: A Dynamic Optimal Transport Network for Modeling Cellular Dynamics, 2020,
    arXiv:2002.04461 (the layout).
    """
    path = find([Path(path).parent], [Path(path).name])
    match path.suffix.lower():
        case ".npz":
            samples, labels = _read_npz(path, values, times)
            dropped = 0
        case ".csv" | ".tsv":
            samples, labels, dropped = _read_text(path, values, times, drop_missing)
        case other:
            raise ValueError(
                f"read_snapshots({str(path)!r}): files ending in {other!r} are not supported; write a .npz with arrays "
                f"samples and times, or a .csv."
            )
    if samples.dim() == 0 or labels.shape != samples.shape[:1]:
        raise ValueError(
            f"read_snapshots({str(path)!r}): samples of shape {list(samples.shape)} need times of shape [N], not "
            f"{list(labels.shape)}; choose the arrays with values=... and times=..."
        )
    if drop_missing:
        missing = labels.isnan() | samples.reshape(len(samples), -1).isnan().any(1)
        samples, labels, dropped = samples[~missing], labels[~missing], dropped + int(missing.sum())
    if not bool(labels.isfinite().all()):
        raise ValueError(
            f"read_snapshots({str(path)!r}): {int((~labels.isfinite()).sum())} times are NaN or infinite; drop these "
            f"rows."
        )
    found = labels.unique()
    if len(found) < 2:
        raise ValueError(
            f"read_snapshots({str(path)!r}): all {len(samples)} rows have the same time, {found.tolist()}; choose "
            f"another column with times=..."
        )
    snapshots = Snapshots([samples[labels == each] for each in found], found.tolist())
    snapshots.dropped = dropped
    return snapshots


def _read_npz(path: Path, values, times) -> tuple[Tensor, Tensor]:
    if values is not None and not isinstance(values, str):
        raise ValueError(
            f"read_snapshots({str(path)!r}, values={values!r}): a .npz file has all samples in one array; pass its "
            f"name."
        )
    names = array_names(path)
    values, times = (_choose(path, names, *each) for each in (("values", values, VALUES), ("times", times, TIMES)))
    return read_array(path, values), read_array(path, times).to(torch.float64)


def _read_text(path: Path, values, times, drop_missing: bool) -> tuple[Tensor, Tensor, int]:
    names = TableFile(path, header=True).names
    times = _choose(path, names, "times", times, TIMES)
    values = [values] if isinstance(values, str) else values
    # A column without a name is the index that some programs write.
    values = [name for name in names if name and name != times] if values is None else list(values)
    for name in values:
        _choose(path, names, "values", name, ())
    try:
        table = read_table(path, columns=[*values, times], header=True, drop_missing=drop_missing)
    except ValueError as error:
        raise ValueError(str(error).replace(": columns=[", ", for values= and times=: [")) from None
    return table.values[:, :-1].to(torch.get_default_dtype()), table.values[:, -1], table.dropped


def _choose(path: Path, names: Sequence[str], argument: str, name: str | None, usual: Sequence[str]) -> str:
    """Finds an array or a column: the one asked for, or the first of the usual names."""
    chosen = next((each for each in usual if each in names), None) if name is None else name
    if chosen not in names:
        asked = f"looked for {', '.join(usual)}" if name is None else f"{argument}={name!r}"
        raise ValueError(
            f"read_snapshots({str(path)!r}): {asked}, but the file has {', '.join(map(repr, names)) or 'no names'}; "
            f"pass one of these as {argument}=..."
        )
    return chosen


def _check_snapshot(k: int, snapshot: Tensor, first: Tensor) -> None:
    if not isinstance(snapshot, Tensor):
        raise TypeError(
            f"Snapshots(samples[{k}] is a {type(snapshot).__name__}): not a tensor; convert it with torch.as_tensor."
        )
    if snapshot.dim() == 0 or len(snapshot) == 0 or snapshot.shape[1:] != first.shape[1:]:
        raise ValueError(
            f"Snapshots(samples[{k}] of shape {list(snapshot.shape)}, samples[0] of shape {list(first.shape)}): "
            f"pass non-empty tensors [N_k, *event] with the same event shape."
        )
    bad = ~snapshot.reshape(len(snapshot), -1).isfinite().all(1)
    if bool(bad.any()):
        raise ValueError(
            f"Snapshots(samples[{k}] of shape {list(snapshot.shape)}): {int(bad.sum())} rows have NaN or infinity; "
            f"remove or impute them."
        )
