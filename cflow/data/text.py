"""Lines of a table in text: how they are found, and split into fields."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["decode_error", "delimiter_of", "lines_of", "split"]

DELIMITERS = "\t;,"
LONGEST = 1 << 24  # characters in a line: what is longer is no row of numbers, and would be held in memory whole


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields every line of a file with its number, from 1; UTF-8, or UTF-16 where the file begins with its mark.

    Raises:
        ValueError: if a line is longer than any row of numbers.
        UnicodeDecodeError: if the file is no such text.
    """
    number = 0
    with path.open(encoding=_encoding(path)) as file:
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise ValueError(
                    f"{path}: line {number} has more than {LONGEST:,} characters, which is no row of a table; write "
                    f"one row a line, or numbers as .npy."
                )
            yield number, line


def decode_error(path: Path, error: UnicodeDecodeError) -> ValueError:
    """Says in which line a file is no text."""
    encoding, place = _encoding(path), ""
    if encoding == "utf-8-sig":
        with path.open(encoding=encoding, errors="surrogateescape") as file:
            lines = enumerate(iter(lambda: file.readline(LONGEST), ""), 1)
            wrong = next((k for k, line in lines if re.search("[\udc80-\udcff]", line)), "?")
        place = f" in line {wrong}"
    name = encoding.removesuffix("-sig").upper()
    return ValueError(
        f"{path}: this is no text in {name} ({error.reason}{place}); save the table as text in UTF-8 (in a "
        f"spreadsheet: CSV UTF-8), or its numbers as .npy."
    )


def delimiter_of(lines: Sequence[str]) -> str:
    """Finds what separates the fields: what most lines have as many of as the first; tabs, semicolons, then commas."""

    def agreeing(mark: str) -> int:
        counts = [len(_tried(line, mark)) for line in lines]
        return counts.count(counts[0]) if counts[0] > 1 else 0

    found = max(DELIMITERS, key=agreeing)
    return found if agreeing(found) else ","


def split(line: str, delimiter: str) -> list[str]:
    """Splits a line into its fields; a field ends with its line.

    Raises:
        csv.Error: if a quote is not closed, or is followed by text.
    """
    line = line.rstrip("\r\n")
    if '"' not in line:
        return line.split(delimiter)
    return next(csv.reader([line], delimiter=delimiter, skipinitialspace=True, strict=True))


def _encoding(path: Path) -> str:
    with path.open("rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _tried(line: str, delimiter: str) -> list[str]:
    try:
        return split(line, delimiter)
    except csv.Error:
        return line.split(delimiter)
