"""Lines of a text table, and their fields."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["decode_error", "delimiter_of", "lines_of", "split"]

DELIMITERS = "\t;,"
LONGEST = 1 << 24  # characters in a line; a longer line is not a row of numbers, and would need too much memory


def lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yields every line of a file with its number, from 1. The file is UTF-8, or UTF-16 with a byte order mark.

    Raises:
        ValueError: if a line is longer than any row of numbers.
        UnicodeDecodeError: if the file has another encoding.
    """
    number = 0
    with path.open(encoding=_encoding(path)) as file:
        while line := file.readline(LONGEST):
            number += 1
            if len(line) == LONGEST:
                raise ValueError(
                    f"{path}: line {number} has more than {LONGEST:,} characters; write one row per line, or use .npy."
                )
            yield number, line


def decode_error(path: Path, error: UnicodeDecodeError) -> ValueError:
    """Returns the error for a file with another encoding, with the first wrong line."""
    encoding, place = _encoding(path), ""
    if encoding == "utf-8-sig":
        with path.open(encoding=encoding, errors="surrogateescape") as file:
            lines = enumerate(iter(lambda: file.readline(LONGEST), ""), 1)
            wrong = next((k for k, line in lines if re.search("[\udc80-\udcff]", line)), "?")
        place = f" in line {wrong}"
    name = encoding.removesuffix("-sig").upper()
    return ValueError(
        f"{path}: not {name} text ({error.reason}{place}); save it as UTF-8 (in a spreadsheet: CSV UTF-8), or as .npy."
    )


def delimiter_of(lines: Sequence[str]) -> str:
    """Finds the delimiter: the one that most lines have as often as the first line. Ties: tab, semicolon, comma."""

    def agreeing(mark: str) -> int:
        counts = [len(_tried(line, mark)) for line in lines]
        return counts.count(counts[0]) if counts[0] > 1 else 0

    found = max(DELIMITERS, key=agreeing)
    return found if agreeing(found) else ","


def split(line: str, delimiter: str) -> list[str]:
    """Splits a line into its fields; a field cannot continue on the next line.

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
