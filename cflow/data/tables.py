"""Tables in .csv, .tsv, .npy and .npz files: read as a whole, or in chunks of constant memory."""

from __future__ import annotations

import copy
import csv
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cflow.data.faults import NONE, NUMERIC, WORD, Fault, counted, fault_of, is_finite, is_number, kind_of, numbers
from cflow.data.files import find
from cflow.data.npy import map_array, read_array
from cflow.data.text import decode_error, delimiter_of, lines_of, split

__all__ = ["Chunk", "Table", "TableFile", "read_table"]

ENDINGS = (".csv", ".tsv", ".npy", ".npz")
LOOKED_AT = 20  # the first lines, which decide about delimiter and header


@dataclass(frozen=True)
class Chunk:
    """Holds some rows of a table, with descriptions of the bad rows.

    Args:
        values: the rows, float64 ``[n, C]``; a bad row is NaN.
        places: where each row is in the file: the number of its line, from 1, in a text file, or the number of the row,
            from 0, in an array.
        bad: the error of each bad row, by its position in the chunk.
        labels: the texts of the label column, if one was chosen.
        passed: the number of lines between these rows that are not rows: empty lines and comments.
    """

    values: Tensor
    places: Sequence[int]
    bad: dict[int, Fault] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    passed: int = 0


@dataclass(frozen=True)
class Table:
    """Holds a table, as :func:`read_table` returns it.

    Attributes:
        values: the rows, float64 ``[N, C]``.
        names: the names of the columns, or None.
        rows: the number of each row among the rows of the file, from 0, ``[N]``.
        places: where each row is in the file, ``[N]``: the number of its line, from 1, in a text file, or of its row,
            from 0, in an array.
        unit: the meaning of ``places``: ``"line"`` or ``"row"``.
        labels: the texts of the label column, or None.
        dropped: the number of dropped rows with missing values.
        passed: the number of lines that are not rows: empty lines and comments.
    """

    values: Tensor
    names: tuple[str, ...] | None
    rows: Tensor
    places: Tensor
    unit: str
    labels: list[str] | None = None
    dropped: int = 0
    passed: int = 0

    def __repr__(self) -> str:
        """Shows the size and the columns, not the values."""
        return f"Table({list(self.values.shape)}, names={self.names}, dropped={self.dropped}, passed={self.passed})"


class TableFile:
    """Opens a table in a file: the names of its columns, and its rows in chunks.

    Text files (.csv, .tsv) have one row per line, so a quote that is not closed affects only its own row. Fields are
    separated by commas, semicolons or tabs; the first lines decide. If no field of the first line is a number, this
    line has the names of the columns. A column without a name is the index that some programs write, and is omitted.
    Every other line is a row, except empty lines and comments (lines that start with ``#``, before the first row or
    with another number of fields). In a table of one column an empty line between rows is a missing value.

    Arrays are ``[N, C]``, ``[N]``, or ``[N, *event]``, whose rows are flattened. A .npy file is memory-mapped, not
    loaded.

    Args:
        path: the file.
        columns: the columns to read, in this order, by name or by number from 0. Default: all except ``label``.
        header: whether a text file starts with names. Default: decided from the first line.
        key: the name of the array in a .npz file; not needed if it has only one.
        label: the column with labels of the rows, which may be text.

    Attributes:
        columns: the numbers of the columns that are read.
        names: their names, or None if the file has no names.
        unnamed: the numbers of the columns that are omitted because they have no name.
        unit: the meaning of a position in the file: ``"line"`` or ``"row"``.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ValueError: for another ending, a file that has neither text nor numbers, an empty file, and an unknown column;
            and if ``header`` is None and the first line may be either a row or names that are numbers, such as years.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("mass,spin\\n1.0,2.0\\n3.0,NA\\n")
        ...     file = TableFile(Path(folder, "a.csv"))
        ...     chunk = next(file.chunks())
        >>> file.names, chunk.values.shape, str(chunk.bad[1])
        (('mass', 'spin'), torch.Size([2, 2]), "column spin holds 'NA', a missing value")
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        columns: Sequence[str | int] | None = None,
        header: bool | None = None,
        key: str | None = None,
        label: str | int | None = None,
    ):
        if Path(path).is_dir():
            raise IsADirectoryError(f"TableFile({str(path)!r}): this is a folder; pass a file in it.")
        self.path = find([Path(path).parent], [Path(path).name])
        ending = self.path.suffix.lower()
        if ending not in ENDINGS:
            raise ValueError(
                f"TableFile({str(path)!r}): files ending in {ending!r} are not supported; use {', '.join(ENDINGS)}."
            )
        self.unit = "row" if ending in (".npy", ".npz") else "line"
        self.names: tuple[str, ...] | None = None
        if self.unit == "row":
            self._array = self._open_array(ending, key)
            everything = range(self._array.shape[1])
        else:
            everything = self._open_text(header)
        self.label = None if label is None else self.find(label)
        unread = [] if self.names is None or columns is not None else range(self._width)
        self.unnamed = [i for i in unread if i not in everything and i != self.label]
        chosen = [i for i in everything if i != self.label] if columns is None else columns
        self.columns = [self.find(each) for each in chosen]
        if self.names is not None:
            self.names = tuple(self._all[i] for i in self.columns)

    def __repr__(self) -> str:
        return f"TableFile({str(self.path)!r}, columns={self.columns}, names={self.names})"

    def chunks(self, size: int = 10_000) -> Iterator[Chunk]:
        """Yields the rows in order, in chunks of ``size`` rows. Bad rows keep their positions; see :class:`Chunk`.

        Raises:
            ValueError: if a text file has another encoding, or a line that is too long.
        """
        if self.unit == "row":
            for start in range(0, len(self._array), size):
                yield self._cut(start, self._array[start : start + size])
            return
        held, passed = [], 0
        for number, fields in self._rows():
            if fields is None:
                passed += 1
                continue
            if len(held) == size:  # not earlier: the last chunk includes all lines after its rows
                yield self._parsed(held, passed)
                held, passed = [], 0
            held.append((number, fields))
        if held:
            yield self._parsed(held, passed)

    def read(self, *, drop_missing: bool = False) -> Table:
        """Reads the whole table; ``drop_missing`` and errors are those of :func:`read_table`."""
        parts, rows, places, labels = [], [], [], []
        faults: dict[tuple, list] = {}
        total = bad = dropped = passed = 0
        for chunk in self.chunks():
            for position, fault in sorted(chunk.bad.items()):
                if drop_missing and fault.missing:
                    dropped += 1
                    continue
                bad += 1
                for each in (fault, *fault.others):
                    found = faults.setdefault((each.column, each.kind), [0, chunk.places[position], each, {}])
                    found[0] += 1
                    if len(found[3]) < 4:
                        found[3][each.value] = None  # a set in the order of the file
            kept = [position for position in range(len(chunk.values)) if position not in chunk.bad]
            parts.append(chunk.values[kept])
            rows.append(torch.tensor(kept, dtype=torch.int64) + total)
            places.append(torch.tensor([chunk.places[position] for position in kept], dtype=torch.int64))
            labels += [] if chunk.labels is None else [chunk.labels[position] for position in kept]
            total, passed = total + len(chunk.values), passed + chunk.passed
        if bad:
            found = self._said(sorted(faults.values(), key=lambda each: -each[0]), total)
            raise ValueError(f"read_table({str(self.path)!r}): {bad} of {total} rows are not only numbers:\n{found}")
        if not sum(map(len, parts)):
            why = f"all {total} rows miss a value" if dropped else "there are no rows; write one row per line"
            raise ValueError(f"read_table({str(self.path)!r}): {why}.")
        joined = (torch.cat(each) for each in (rows, places))
        named = None if self.label is None else labels
        return Table(torch.cat(parts), self.names, *joined, self.unit, named, dropped, passed)

    def _said(self, faults: list[tuple[int, int, Fault, dict]], total: int) -> str:
        """Lists the errors, one line for each kind in each column, and what to do.

        ``faults`` are ``(how often, where first, what, some of the fields)``.
        """
        said = []
        for count, line, fault, values in faults[:6]:
            place = f"{self.unit} {line}"
            rows = place if count == 1 else f"{count} of {total} rows, first in {place}"
            if fault.column is None:
                more = f" (and {count - 1} similar)" if count > 1 else ""
                said.append(f"  {place}: {fault}{more}: {fault.remedy}")
                continue
            shown = [repr(each if len(each) <= 40 else each[:37] + "...") for each in values if each][:3]
            shown = f" ({', '.join(shown)}{', ...' if len(values) > 3 else ''})" if shown else ""
            what = {WORD: "text", NONE: "a missing value"}.get(fault.kind, fault.kind)
            advice = fault.advice(count, total, "it" if count == 1 else "them")
            column = fault.column if self.names else f"column {fault.column}"
            said.append(f"  {column}: {what} in {rows}{shown}: {advice}")
        if len(faults) > 6:
            rest = dict.fromkeys(str(fault.column or f"{self.unit} {line}") for _, line, fault, _ in faults[6:])
            said.append(f"  also {', '.join([*rest][:8])}{', ...' if len(rest) > 8 else ''}")
        spoilt = {fault.column for _, _, fault, _ in faults if not fault.missing}
        sound = [name for name in map(str, self.names or self.columns) if name not in spoilt]
        missing = any(fault.missing for _, _, fault, _ in faults)
        if None not in spoilt and 0 < len(sound) < len(self.columns):
            gaps = {fault.column for _, _, fault, _ in faults if fault.missing} & set(sound)
            kinds = f"columns with only numbers{' or missing values' if gaps else ''}"
            if len(sound) <= 12 and all(re.fullmatch(r"[\w .+-]+", name) for name in sound):
                said.append(f"{kinds}: columns={sound if self.names else [*map(int, sound)]}")
            else:
                said.append(f"{kinds}: {', '.join(sound[:8])}{', ...' if len(sound) > 8 else ''}; use columns=...")
        if missing:
            said.append("drop_missing=True drops rows with missing values")
        return "\n".join(said)

    def choose(self, columns: Sequence[str | int]) -> TableFile:
        """Returns the same file with other ``columns``, by name or by number."""
        other = copy.copy(self)
        other.columns = [self.find(each) for each in columns]
        other.names = None if self.names is None else tuple(self._all[i] for i in other.columns)
        return other

    def find(self, column: str | int) -> int:
        """Returns the number of a ``column``, which is found by its name in the file or by its number."""
        count = self._array.shape[1] if self.unit == "row" else self._width
        names = self._all if self.names is not None else []
        if names.count(column) > 1:
            where = [i for i, name in enumerate(names) if name == column]
            raise ValueError(
                f"TableFile({str(self.path)!r}): several columns have the name {column!r}; use a number, "
                f"{' or '.join(map(str, where))}."
            )
        if column in names:
            return names.index(column)
        text = str(column)
        number = int(text) if text.isascii() and text.isdecimal() else -1
        if not 0 <= number < count:
            there = (
                f"the columns {', '.join(names)}"
                if names
                else f"{counted(count, 'column')} without names, 0 to {count - 1}"
            )
            several = [each.strip() for each in text.split(",")]
            together = len(several) > 1 and set(several) <= {*names, *map(str, range(count))}
            remedy = f"list them separately: {' '.join(several)}" if together else "choose one of these"
            raise ValueError(f"TableFile({str(self.path)!r}): no column {column!r}; the file has {there}; {remedy}.")
        return number

    # Arrays

    def _open_array(self, ending: str, key: str | None) -> np.ndarray:
        array = read_array(self.path, key).numpy() if ending == ".npz" else map_array(self.path)
        if array.dtype.kind not in "biuf" or array.ndim == 0 or 0 in array.shape:
            raise ValueError(
                f"TableFile({str(self.path)!r}): the array is {array.dtype} of shape {array.shape}; save real numbers "
                f"of shape [rows, columns]."
            )
        return array.reshape(len(array), -1)

    def _cut(self, start: int, array: np.ndarray) -> Chunk:
        values = torch.tensor(array[:, self.columns], dtype=torch.float64)
        bad = {}
        for position in (~values.isfinite().all(1)).nonzero().flatten().tolist():
            faults = [
                fault_of(column, str(value))
                for column, value in zip(self.columns, values[position].tolist())
                if not np.isfinite(value)
            ]
            bad[position] = _joined(faults)
            values[position] = torch.nan
        labels = None if self.label is None else [_shown(each) for each in array[:, self.label].tolist()]
        return Chunk(values, range(start, start + len(values)), bad, labels)

    # Text

    def _open_text(self, header: bool | None) -> list[int]:
        """Reads delimiter and names from the first lines; returns the numbers of the columns."""
        try:
            lines = (line for _, line in lines_of(self.path) if line.strip() and not line.lstrip().startswith("#"))
            first = list(itertools.islice(lines, LOOKED_AT))
        except UnicodeDecodeError as error:
            raise decode_error(self.path, error) from None
        if not first:
            raise ValueError(f"TableFile({str(self.path)!r}): the file is empty; write one row per line.")
        self._delimiter = delimiter_of(first)
        try:
            fields = split(first[0], self._delimiter)
        except csv.Error as error:
            raise ValueError(
                f"TableFile({str(self.path)!r}): the first line has a stray quote, or a line break inside quotes "
                f"({error}); remove it."
            ) from None
        self._width, self._all = len(fields), [each.strip() for each in fields]
        others = [row for line in first[1:] if len(row := line.split(self._delimiter)) == self._width]
        self._headed = _are_names(fields, others) if header is None else header
        if self._headed:
            self._check_width(first[1:])
        if not self._headed:
            if header is None:
                self._refuse(others)
            return list(range(self._width))
        self.names = tuple(self._all)
        return [i for i, name in enumerate(self._all) if name]

    def _check_width(self, lines: list[str]) -> None:
        """Raises if every row has one field more than the header."""
        rows = [_fields(line, self._delimiter) for line in lines]
        if not rows or any(len(fields) != self._width + 1 for fields in rows):
            return
        if any(fields[-1].strip() for fields in rows):
            what = "the first column has no name"
            remedy = "add one (R's write.table does with col.names=NA)"
        else:
            what, remedy = "every row ends with a separator, the header does not", "remove it from the rows"
        raise ValueError(
            f"TableFile({str(self.path)!r}): the rows have {self._width + 1} fields, the header {self._width}: {what}; "
            f"{remedy}."
        )

    def _refuse(self, others: list[list[str]]) -> None:
        """Raises if the first row may be names, of which some or all are numbers."""
        if len(others) < 2:
            return
        words = [i for i, each in enumerate(self._all) if kind_of(each) == WORD]
        beside = any(all(is_number(row[i]) for row in others) for i in words)
        if beside or (_counts(self._all) and not any(_counts(row) for row in others)):
            shown = ", ".join(self._all[:4]) + (", ..." if self._width > 4 else "")
            raise ValueError(
                f"TableFile({str(self.path)!r}): the first line ({shown}) may be a row or a header; pass header=True "
                f"if it has names, header=False if not."
            )

    def _rows(self) -> Iterator[tuple[int, list[str] | None]]:
        """Yields the number and the fields of every line after the header; None as fields of a line without a row."""
        begun, empty = False, []
        try:
            for number, line in lines_of(self.path):
                bare = line.strip()
                if not bare and self._delimiter not in line:
                    if begun and self._width == 1:  # between the values of one column: a missing value
                        empty.append(number)
                    else:
                        yield number, None
                elif not begun:
                    begun = not bare.startswith("#")
                    if not begun:
                        yield number, None
                    elif not self._headed:
                        yield number, _fields(line, self._delimiter)
                else:
                    fields = _fields(line, self._delimiter)
                    if bare.startswith("#") and (self._width == 1 or len(fields) != self._width):
                        yield number, None
                        continue
                    yield from ((each, [""]) for each in empty)
                    empty = []
                    yield number, fields
        except UnicodeDecodeError as error:
            raise decode_error(self.path, error) from None
        yield from ((each, None) for each in empty)

    def _parsed(self, part: list[tuple[int, list[str]]], passed: int) -> Chunk:
        """Converts lines to numbers: all at once if all are good, otherwise line by line."""
        places = [place for place, _ in part]
        labels = None
        if self.label is not None:
            labels = [fields[self.label].strip() if len(fields) > self.label else "" for _, fields in part]
        if all(len(fields) == self._width for _, fields in part):
            chosen = [[fields[i] for i in self.columns] for _, fields in part]
            values = numbers(chosen)
            if values is not None and np.isfinite(values).all():
                return Chunk(torch.from_numpy(values), places, {}, labels, passed)
        values, bad = torch.full((len(part), len(self.columns)), torch.nan, dtype=torch.float64), {}
        for position, (_, fields) in enumerate(part):
            if not fields:
                stray = "a stray quote, or a line break inside quotes"
                bad[position] = Fault(stray, stray, "remove it; a row is one line")
            elif len(fields) != self._width:
                bad[position] = Fault(
                    f"{counted(len(fields), 'field')} instead of {self._width}", "another number of fields",
                    "write the same number in every line",
                )  # fmt: skip
            elif wrong := [i for i in self.columns if not is_finite(fields[i])]:
                faults = [fault_of(self._all[i] if self._headed else i, fields[i], self._delimiter) for i in wrong]
                bad[position] = _joined(faults)
            else:
                values[position] = torch.tensor([float(fields[i].strip()) for i in self.columns], dtype=torch.float64)
        return Chunk(values, places, bad, labels, passed)


def read_table(
    path: str | os.PathLike,
    *,
    columns: Sequence[str | int] | None = None,
    header: bool | None = None,
    key: str | None = None,
    label: str | int | None = None,
    drop_missing: bool = False,
) -> Table:
    """Reads a table of numbers. For the formats of files see :class:`TableFile`.

    Columns that are not read may contain anything.

    Args:
        path: the file.
        columns: the columns to read, in this order, by name or by number from 0. Default: all except ``label``.
        header: whether a text file starts with names. Default: decided from the first line.
        key: the name of the array in a .npz file; not needed if it has only one.
        label: the column with labels of the rows, which may be text.
        drop_missing: whether to drop, and count, the rows with missing values (empty fields, NaN, NA and similar).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :class:`TableFile`, and for rows with text, infinity, missing values, or too few or many fields;
            the message shows where, and how to correct each kind.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("star,mass,spin\\nSun,1.0,2.0\\nVega,NA,4.0\\n")
        ...     table = read_table(Path(folder, "a.csv"), columns=["mass", "spin"], label="star", drop_missing=True)
        >>> table.values, table.names, table.labels, table.dropped
        (tensor([[1., 2.]], dtype=torch.float64), ('mass', 'spin'), ['Sun'], 1)
    """
    return TableFile(path, columns=columns, header=header, key=key, label=label).read(drop_missing=drop_missing)


def _fields(line: str, delimiter: str) -> list[str]:
    """Splits a line; a line that cannot be split has no fields."""
    try:
        return split(line, delimiter)
    except csv.Error:
        return []


def _are_names(fields: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Returns whether fields are names of columns: no number is among them, and not only marks that rows have, too."""
    kinds = [kind_of(each) for each in fields]
    below = [{kind_of(row[i]) for row in others} for i in range(len(fields))]
    # A decimal comma in one row may be a plain number in another.
    like = lambda kind, seen: kind in seen or ("comma" in kind and NUMERIC in seen)
    held = [kind == NONE or (kind != WORD and like(kind, seen)) for kind, seen in zip(kinds, below)]
    return NUMERIC not in kinds and not all(held)


def _joined(faults: Sequence[Fault]) -> Fault:
    """Combines the errors of a row: the first that is not a missing value, if there is one, with the others."""
    first, *others = sorted(faults, key=lambda fault: fault.missing)
    return replace(first, others=tuple(others))


def _counts(fields: Sequence[str]) -> bool:
    """Returns whether fields count up: integers, each one more than the one before, such as years."""
    if len(fields) < 2 or not all(each.strip().isdecimal() for each in fields):
        return False
    return all(int(b) - int(a) == 1 for a, b in itertools.pairwise(fields))


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
