"""Tables in files, .csv, .npy and .npz: read whole, or streamed in chunks of constant memory."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cflow.data.files import find, read_array

__all__ = ["Chunk", "TableFile", "read_table"]

ENDINGS = (".csv", ".tsv", ".npy", ".npz")
DELIMITERS = ",;\t"


@dataclass(frozen=True)
class Chunk:
    """Some rows of a table: ``values [n, C]`` in float64, and what is wrong with those that are bad.

    ``places [n]`` says where each row is in the file: the number of its line, from 1, in a text file, the number of the
    row, from 0, in an array. ``bad`` maps positions in the chunk to what is wrong there; such a row is NaN.
    """

    values: Tensor
    places: Sequence[int]
    bad: dict[int, str] = field(default_factory=dict)


class TableFile:
    """A table in a file: the names of its columns, and its rows in chunks.

    Text files (.csv, and .tsv with tabs) hold one row a line, split at commas, semicolons or tabs, whichever the first
    line has most of. Where no field of the first line is a number, it is taken for the names of the columns; a column
    without a name is the index that tables are written with, and is left out. Empty lines, and lines that begin with
    ``#``, are passed over. Arrays are ``[N, C]``, or ``[N, *event]`` whose rows are flattened, or ``[N]``; a .npy file
    is mapped and not loaded.

    Args:
        path: the file.
        columns: which columns, by name or by number from 0, and in which order; all unless given.
        header: whether a text file begins with names; seen from its first line unless given.
        key: the name of the array in a .npz file that holds several.

    Attributes:
        columns: numbers of the columns that are read.
        names: of these, or None where the file has none.
        unit: what a place in the file is called, ``"line"`` or ``"row"``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for another ending, a file that holds neither text nor numbers, is empty, or has no such column.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        *,
        columns: Sequence[str | int] | None = None,
        header: bool | None = None,
        key: str | None = None,
    ):
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
        self.columns = list(everything) if columns is None else [self.find(each) for each in columns]
        if self.names is not None:
            self.names = tuple(self._all[i] for i in self.columns)

    def chunks(self, size: int = 10_000) -> Iterator[Chunk]:
        """Yields the rows in order, ``size`` at a time; bad rows are kept in their places, and said to be bad."""
        if self.unit == "row":
            for start in range(0, len(self._array), size):
                values = torch.tensor(self._array[start : start + size][:, self.columns], dtype=torch.float64)
                yield _marked(values, range(start, start + len(values)), {})
            return
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                lines = self._lines(file)
                if self._headed:
                    next(lines)
                while part := list(itertools.islice(lines, size)):
                    yield self._parsed(part)
        except (UnicodeDecodeError, csv.Error) as error:
            raise self._no_text(error) from None

    def find(self, column: str | int) -> int:
        """Finds a column by its name in the file, or by its number, and gives the number."""
        count = self._array.shape[1] if self.unit == "row" else self._width
        names = self._all if self.names is not None else []
        if column in names:
            return names.index(column)
        number = int(column) if str(column).isdecimal() else -1
        if not 0 <= number < count:
            there = f"the columns {', '.join(names)}" if names else f"{count} columns without names, 0 to {count - 1}"
            raise ValueError(
                f"TableFile({str(self.path)!r}): there is no column {column!r}; the file has {there}; name one."
            )
        return number

    # Arrays

    def _open_array(self, ending: str, key: str | None) -> np.ndarray:
        if ending == ".npz":
            array = read_array(self.path, key).numpy()
        else:
            try:
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError) as error:
                raise ValueError(
                    f"TableFile({str(self.path)!r}): not a readable .npy file of plain numbers ({error}); save the "
                    f"numbers with numpy.save."
                ) from None
        if array.dtype.kind not in "biuf" or array.ndim == 0 or 0 in array.shape:
            raise ValueError(
                f"TableFile({str(self.path)!r}): the array is {array.dtype} of shape {array.shape}, where a table of "
                f"real numbers is wanted; save one of shape [rows, columns]."
            )
        return array.reshape(len(array), -1)

    # Text

    def _open_text(self, header: bool | None) -> list[int]:
        """Reads the first line: the delimiter, the names; gives the columns that there are."""
        try:
            with self.path.open(newline="", encoding="utf-8-sig") as file:
                first = next((line for line in file if line.strip() and not line.lstrip().startswith("#")), "")
        except UnicodeDecodeError as error:
            raise self._no_text(error) from None
        if not first:
            raise ValueError(f"TableFile({str(self.path)!r}): the file is empty; write one row a line.")
        self._delimiter = max(DELIMITERS, key=first.count)
        with self.path.open(newline="", encoding="utf-8-sig") as file:
            _, fields = next(self._lines(file))
        self._width, self._all = len(fields), [each.strip() for each in fields]
        self._headed = not any(_is_number(each) for each in fields) if header is None else header
        if not self._headed:
            return list(range(self._width))
        self.names = tuple(self._all)
        return [i for i, name in enumerate(self._all) if name]

    def _lines(self, file) -> Iterator[tuple[int, list[str]]]:
        """Yields the number of each line that holds something, and its fields."""
        reader = csv.reader(file, delimiter=self._delimiter, skipinitialspace=True)
        for fields in reader:
            if any(each.strip() for each in fields) and not fields[0].lstrip().startswith("#"):
                yield reader.line_num, fields

    def _parsed(self, part: list[tuple[int, list[str]]]) -> Chunk:
        """Makes numbers of lines: all at once where all are sound, else one by one."""
        places = [place for place, _ in part]
        if all(len(fields) == self._width for _, fields in part):
            try:
                values = np.array([[fields[i] for i in self.columns] for _, fields in part], dtype=np.float64)
                return _marked(torch.from_numpy(values), places, {})
            except ValueError:  # some field is no number: which one is found below
                pass
        values, bad = torch.full((len(part), len(self.columns)), torch.nan, dtype=torch.float64), {}
        for position, (_, fields) in enumerate(part):
            if len(fields) != self._width:
                bad[position] = f"{len(fields)} fields, where there are {self._width} columns"
                continue
            wrong = [i for i in self.columns if not _is_number(fields[i])]
            if wrong:
                column = self._all[wrong[0]] if self._headed else wrong[0]
                shown = fields[wrong[0]].strip()
                bad[position] = (
                    f"column {column} holds {shown[:40]!r}, no number" if shown else f"column {column} is empty"
                )
            else:
                values[position] = torch.tensor([float(fields[i]) for i in self.columns], dtype=torch.float64)
        return _marked(values, places, bad)

    def _no_text(self, error: Exception) -> ValueError:
        return ValueError(
            f"TableFile({str(self.path)!r}): this is no text in UTF-8 with one row a line ({error}); write the table "
            f"as such, or as .npy."
        )


def read_table(
    path: str | os.PathLike,
    *,
    columns: Sequence[str | int] | None = None,
    header: bool | None = None,
    key: str | None = None,
) -> tuple[Tensor, tuple[str, ...] | None]:
    """Reads a whole table of numbers: ``(values [N, C] in float64, names of the columns or None)``.

    Arguments and files are those of :class:`TableFile`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: as :class:`TableFile`, and for rows that hold text, NaN or infinity, or too few or many fields; the
            message says where.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.csv").write_text("mass,spin\\n1.0,2.0\\n3.0,4.0\\n")
        ...     read_table(Path(folder, "a.csv"), columns=["spin"])
        (tensor([[2.],
                [4.]], dtype=torch.float64), ('spin',))
    """
    file = TableFile(path, columns=columns, header=header, key=key)
    parts, bad = [], []
    for chunk in file.chunks():
        parts.append(chunk.values)
        bad += [f"{file.unit} {chunk.places[position]}: {what}" for position, what in sorted(chunk.bad.items())]
    if bad:
        more = f"; and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"read_table({str(path)!r}): {len(bad)} rows are not numbers throughout ({'; '.join(bad[:3])}{more}); mend "
            f"or drop them, or choose other columns."
        )
    if not parts:
        raise ValueError(f"read_table({str(path)!r}): there are no rows in it; write one row a line.")
    return torch.cat(parts), file.names


def _marked(values: Tensor, places: Sequence[int], bad: dict[int, str]) -> Chunk:
    """Marks the rows that hold NaN or infinity."""
    for position in (~values.isfinite().all(1)).nonzero().flatten().tolist():
        bad.setdefault(position, "NaN or infinity")
        values[position] = torch.nan
    return Chunk(values, places, bad)


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
