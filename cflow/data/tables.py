"""Tables in files, .csv, .npy and .npz: read whole, or streamed in chunks of constant memory."""

from __future__ import annotations

import copy
import csv
import itertools
import os
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
LOOKED_AT = 20  # lines that show how a file is written


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table: ``values [n, C]`` in float64, and what is wrong with those that are bad.

    ``places [n]`` says where each row is in the file: the number of its line, from 1, in a text file, the number of the
    row, from 0, in an array. ``bad`` maps positions in the chunk to what is wrong there; such a row is NaN. ``labels``
    holds the texts of the column that names the rows, where one was asked for. ``passed`` counts the lines among these
    rows that are none: empty ones, and remarks.
    """

    values: Tensor
    places: Sequence[int]
    bad: dict[int, Fault] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    passed: int = 0


@dataclass(frozen=True)
class Table:
    """A whole table: ``values [N, C]`` in float64, ``names`` of the columns, and where its rows were.

    ``rows [N]`` are their numbers among the rows of the file, from 0; ``places``, ``labels`` and ``passed`` are as in
    :class:`Chunk`. ``dropped`` counts the rows with missing values that were left out.
    """

    values: Tensor
    names: tuple[str, ...] | None
    rows: Tensor
    places: Tensor
    unit: str
    labels: list[str] | None = None
    dropped: int = 0
    passed: int = 0


class TableFile:
    """A table in a file: the names of its columns, and its rows in chunks.

    Text files (.csv, and .tsv with tabs) hold one row a line: a quote that is not closed on its line spoils this row
    alone. Fields are separated by commas, semicolons or tabs, whichever most of the first lines have as many of. Where
    no field of the first line is a number, it is taken for the names of the columns; a column without a name is the
    index that tables are written with, and is left out. Every other line is a row, but for remarks (lines that begin
    with ``#``, before the first row or with another number of fields) and empty lines; in a table of one column only
    the empty lines at the end are none. Arrays are ``[N, C]``, or ``[N, *event]`` whose rows are flattened, or ``[N]``;
    a .npy file is mapped and not loaded.

    Args:
        path: the file.
        columns: which columns, by name or by number from 0, and in which order; all but ``label`` unless given.
        header: whether a text file begins with names; seen from its first line unless given.
        key: the name of the array in a .npz file that holds several.
        label: the column whose text names the rows.

    Attributes:
        columns: numbers of the columns that are read.
        names: of these, or None where the file has none.
        unnamed: numbers of the columns that were left out as they have no name, though the others have.
        unit: what a place in the file is called, ``"line"`` or ``"row"``.

    Raises:
        FileNotFoundError: if there is no such file.
        IsADirectoryError: if it is a folder.
        ValueError: for another ending, a file that holds neither text nor numbers, is empty, or has no such column; and
            where the first line may be a row as well as names that are numbers, such as years, and ``header`` is not
            given.
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
            raise IsADirectoryError(
                f"TableFile({str(path)!r}): that is a folder; name the file in it that is the table."
            )
        self.path = find([Path(path).parent], [Path(path).name])
        ending = self.path.suffix.lower()
        if ending not in ENDINGS:
            raise ValueError(
                f"TableFile({str(path)!r}): a file ending in {ending!r} is not read as a table; write it as "
                f"{', '.join(ENDINGS)}."
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

    def chunks(self, size: int = 10_000) -> Iterator[Chunk]:
        """Yields the rows in order, ``size`` at a time; bad rows are kept in their places, and said to be bad.

        Raises:
            ValueError: if the file turns out to be no text of lines.
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
            if len(held) == size:  # not before: to the last chunk belong all lines that follow its rows
                yield self._parsed(held, passed)
                held, passed = [], 0
            held.append((number, fields))
        if held:
            yield self._parsed(held, passed)

    def read(self, *, drop_missing: bool = False) -> Table:
        """Reads the whole table, as :func:`read_table` does."""
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
                    faults.setdefault((each.column, each.kind), [0, chunk.places[position], each])[0] += 1
            kept = [position for position in range(len(chunk.values)) if position not in chunk.bad]
            parts.append(chunk.values[kept])
            rows.append(torch.tensor(kept, dtype=torch.int64) + total)
            places.append(torch.tensor([chunk.places[position] for position in kept], dtype=torch.int64))
            labels += [] if chunk.labels is None else [chunk.labels[position] for position in kept]
            total, passed = total + len(chunk.values), passed + chunk.passed
        if bad:
            found = self._said(sorted(faults.values(), key=lambda each: -each[0]), total)
            raise ValueError(
                f"read_table({str(self.path)!r}): {bad} of {total} rows are not numbers throughout. {found}."
            )
        if not sum(map(len, parts)):
            why = f"all {total} rows miss a value" if dropped else "there are no rows in it; write one row a line"
            raise ValueError(f"read_table({str(self.path)!r}): {why}.")
        joined = (torch.cat(each) for each in (rows, places))
        named = None if self.label is None else labels
        return Table(torch.cat(parts), self.names, *joined, self.unit, named, dropped, passed)

    def _said(self, faults: list[tuple[int, int, Fault]], total: int) -> str:
        """Says what is wrong and what to do, by ``(how often, where first, what)`` for each kind of fault."""
        said = []
        for count, line, fault in faults[:3]:
            place = f"{self.unit} {line}"
            more = f" (and {count - 1} like it)" if count > 1 else ""
            said.append(f"{place}: {fault}{more}: {fault.advice(count, total, place)}")
        for _, line, fault in faults[3:6]:
            said.append(f"{self.unit} {line}: {fault.kind}" + (f" in {fault.column}" if fault.column else ""))
        if len(faults) > 6:
            said.append(f"and {len(faults) - 6} more of other kinds")
        spoilt = {fault.column for _, _, fault in faults if not fault.missing}
        sound = [name for name in map(str, self.names or self.columns) if name not in spoilt]
        if None not in spoilt and 0 < len(sound) < len(self.columns):
            some = ", ".join(sound[:8]) + (", ..." if len(sound) > 8 else "")
            gaps = {fault.column for _, _, fault in faults if fault.missing} & set(sound)
            said.append(f"numbers{', or no value,' if gaps else ' alone'} are in {some}: choose by columns=...")
        if any(fault.missing for _, _, fault in faults):
            said.append("drop_missing=True drops rows without a value")
        return "; ".join(said)

    def choose(self, columns: Sequence[str | int]) -> TableFile:
        """Gives the same file with other columns, by name or by number."""
        other = copy.copy(self)
        other.columns = [self.find(each) for each in columns]
        other.names = None if self.names is None else tuple(self._all[i] for i in other.columns)
        return other

    def find(self, column: str | int) -> int:
        """Finds a column by its name in the file, or by its number, and gives the number."""
        count = self._array.shape[1] if self.unit == "row" else self._width
        names = self._all if self.names is not None else []
        if names.count(column) > 1:
            where = [i for i, name in enumerate(names) if name == column]
            raise ValueError(
                f"TableFile({str(self.path)!r}): several columns are called {column!r}; name one by its number, "
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
            remedy = f"name them one by one: {' '.join(several)}" if together else "name one"
            raise ValueError(
                f"TableFile({str(self.path)!r}): there is no column {column!r}; the file has {there}; {remedy}."
            )
        return number

    # Arrays

    def _open_array(self, ending: str, key: str | None) -> np.ndarray:
        array = read_array(self.path, key).numpy() if ending == ".npz" else map_array(self.path)
        if array.dtype.kind not in "biuf" or array.ndim == 0 or 0 in array.shape:
            raise ValueError(
                f"TableFile({str(self.path)!r}): the array is {array.dtype} of shape {array.shape}, where a table of "
                f"real numbers is wanted; save one of shape [rows, columns]."
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
        """Reads the first lines: the delimiter, the names; gives the columns that there are."""
        try:
            lines = (line for _, line in lines_of(self.path) if line.strip() and not line.lstrip().startswith("#"))
            first = list(itertools.islice(lines, LOOKED_AT))
        except UnicodeDecodeError as error:
            raise decode_error(self.path, error) from None
        if not first:
            raise ValueError(f"TableFile({str(self.path)!r}): the file is empty; write one row a line.")
        self._delimiter = delimiter_of(first)
        try:
            fields = split(first[0], self._delimiter)
        except csv.Error as error:
            raise ValueError(
                f"TableFile({str(self.path)!r}): the first line has a stray quote, or a line break inside quotes "
                f"({error}); remove it: names stand on one line."
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
        """Raises where every row has one field more than there are names."""
        rows = [_fields(line, self._delimiter) for line in lines]
        if not rows or any(len(fields) != self._width + 1 for fields in rows):
            return
        if any(fields[-1].strip() for fields in rows):
            what = "the header lacks a name for the first column"
            remedy = "write one before the others (R's write.table does with col.names=NA)"
        else:
            what, remedy = "every row ends with a separator, and the header does not", "remove it from the rows"
        raise ValueError(
            f"TableFile({str(self.path)!r}): the rows have {self._width + 1} fields, where there are {self._width} "
            f"names: {what}; {remedy}."
        )

    def _refuse(self, others: list[list[str]]) -> None:
        """Raises for a first row that looks like names, some or all of which are numbers."""
        if len(others) < 2:
            return
        words = [i for i, each in enumerate(self._all) if kind_of(each) == WORD]
        beside = any(all(is_number(row[i]) for row in others) for i in words)
        if beside or (_counts(self._all) and not any(_counts(row) for row in others)):
            shown = ", ".join(self._all[:4]) + (", ..." if self._width > 4 else "")
            raise ValueError(
                f"TableFile({str(self.path)!r}): the first line ({shown}) may be a row of numbers, or names of "
                f"columns; pass header=True if it holds names, header=False if not."
            )

    def _rows(self) -> Iterator[tuple[int, list[str] | None]]:
        """Yields the number of every line after the names, with its fields; None in the place of fields for no row."""
        begun, empty = False, []
        try:
            for number, line in lines_of(self.path):
                bare = line.strip()
                if not bare and self._delimiter not in line:
                    if begun and self._width == 1:  # between the values of one column, a value that is missing
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
        """Makes numbers of lines: all at once where all are sound, else one by one."""
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
                bad[position] = Fault(stray, stray, "remove it; a row is one line, and a quote ends on it")
            elif len(fields) != self._width:
                bad[position] = Fault(
                    f"{counted(len(fields), 'field')}, where there are {self._width}", "another number of fields",
                    "write as many in every line",
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
    """Reads a whole table of numbers.

    Arguments and files are those of :class:`TableFile`; columns that are not read may hold anything.

    Args:
        path: the file.
        columns: which columns; all but ``label`` unless given.
        header: whether a text file begins with names.
        key: the name of the array in a .npz file.
        label: the column whose text names the rows.
        drop_missing: leaves out, and counts, the rows with missing values (empty fields, NaN, NA and their like).

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :class:`TableFile`, and for rows that hold text, infinity, values that are missing, or too few or
            many fields; the message says where, and what to do about each kind.

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
    """Splits a line; none are the fields of one that cannot be split."""
    try:
        return split(line, delimiter)
    except csv.Error:
        return []


def _are_names(fields: Sequence[str], others: Sequence[Sequence[str]]) -> bool:
    """Tells names of columns from a row: no number is among them, nor only what rows hold in the place of numbers."""
    kinds = [kind_of(each) for each in fields]
    below = [{kind_of(row[i]) for row in others} for i in range(len(fields))]
    # A comma decimal in one row may be none in another.
    like = lambda kind, seen: kind in seen or ("comma" in kind and NUMERIC in seen)
    held = [kind == NONE or (kind != WORD and like(kind, seen)) for kind, seen in zip(kinds, below)]
    return NUMERIC not in kinds and not all(held)


def _joined(faults: Sequence[Fault]) -> Fault:
    """Gives the faults of a row as one: the first that is no missing value, where there is any, with the others."""
    first, *others = sorted(faults, key=lambda fault: fault.missing)
    return replace(first, others=tuple(others))


def _counts(fields: Sequence[str]) -> bool:
    """Tells years and numbers of columns: whole, each one more than the one before."""
    if len(fields) < 2 or not all(each.strip().isdecimal() for each in fields):
        return False
    return all(int(b) - int(a) == 1 for a, b in itertools.pairwise(fields))


def _shown(value: float) -> str:
    return str(int(value)) if value == int(value) else str(value)
