"""Kinds of fields in a text table: a number, a missing value, or something else, and how to correct it."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

__all__ = [
    "NONE", "NUMERIC", "WORD", "Fault", "counted", "fault_of", "is_finite", "is_number", "kind_of", "numbers",
]  # fmt: skip

# The marks of a missing value in spreadsheets, R, pandas, SAS and the UCI repository.
MISSING = frozenset(" na n/a #n/a #na nan -nan <na> null none nil nat ? - -- . missing".split(" "))  # noqa: SIM905
# float() accepts more than this: underscores, and the digits of every script.
NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?|[+-]?(inf|infinity)", re.ASCII | re.IGNORECASE)
NUMERIC, NONE, COMMA, WORD = "number", "no value", "a decimal comma", "not a number"
DATE, TRUTH = "a date", "a truth value"
WHOLE = (DATE, TRUTH, WORD)  # if only few cells of a column are of this kind, the cells are wrong, not the column
# Kinds of fields that are not numbers, and how to correct them; the first match counts.
KINDS = (
    (
        r"\d{4}[-/.]\d{1,2}([-/.]\d{1,2})?([T ].*)?|\d{1,2}[-/.]\d{1,2}[-/.]\d{2,4}( .*)?|\d{1,2}:\d\d(:\d\d(\.\d*)?)?"
        r"|\d{1,2}[- ][A-Za-z]{3,9}\.?[- ,]+\d{2,4}|[A-Za-z]{3,9}\.? \d{1,2},? \d{4}",
        DATE,
        "write dates as numbers, such as days since a start, or omit the column",
    ),
    (
        r"[+-]?\d{1,3},\d{3}",
        "a comma, of decimals or of thousands",
        "write 1234, or 1.234 (pandas.read_csv has thousands=',' and decimal=',')",
    ),
    (
        r"[+-]?(\d+|\d{1,3}([. ]\d{3})+)?,\d+([eE][+-]?\d+)?",
        COMMA,
        "write points: pandas.read_csv(OLD, sep={delimiter!r}, decimal=',').to_csv(NEW, index=False)",
    ),
    (r"[+-]?\d{1,3}([,' \u00a0\u202f]\d{3})+(\.\d*)?", "digits in groups", "write numbers without separators"),
    (r"[+-]?[\d.]+(\s+[+-]?[\d.]+)+", "several numbers", "separate columns by commas, semicolons or tabs"),
    (
        r"true|false|yes|no",
        TRUTH,  # not T and F, which are also spectral types, sexes and bases
        "write 1 and 0, or omit the column",
    ),
    (
        r"[+-]?[\d_]+(\.[\d_]*)?([eE][+-]?[\d_]+)?",
        "a number in other signs than 0 to 9",
        "write plain digits",
    ),
    (
        r"[\u2010-\u2015\u2212\ufe63\uff0d]\s?[\d.,]+([eE][+-]?\d+)?",
        "a minus sign other than '-'",
        "write '-', the hyphen of the keyboard",
    ),
    (
        r"['\u2018\u2019`\u00b4]+[+-]?[\d.,]+['\u2018\u2019`\u00b4]*|[+-]?[\d.,]+['\u2018\u2019`\u00b4]+",
        "a number with an apostrophe",
        "write the number alone",
    ),
    (r"[+-]?[\d.,]+\s?([*\u2020\u2021\u00a7#]+|\([a-z]\))", "a number with a footnote", "write the number alone"),
    (
        r"[<>~\u2264\u2265\u2248]=?\s?[+-]?[\d.,]+([eE][+-]?\d+)?",
        "a limit, not a number",
        "write a value for it, such as half of a limit of detection, or leave the cell empty",
    ),
    (r"[+-]?[\d.]+[eE][+-]?", "an incomplete number", "complete it"),
    (
        r"[^\w\s.+-]{0,3}\s?[+-]?\d[\d.,]*\s?[^\d\s.,]{1,8}|[^\w\s.+-]{1,3}\s?[+-]?\d[\d.,]*",
        "a number with a unit",
        "write the number alone",
    ),
)
INFINITE = "infinity", "drop such rows, or write a finite number"


@dataclass(frozen=True)
class Fault:
    """Describes an error in a row of a table.

    Args:
        text: the description for this row.
        kind: the kind of the error, the same for all similar rows.
        remedy: how to correct this kind of error.
        column: the name of the column.
        missing: whether the row has all its fields, and each field without a number has the mark of a missing value.
        others: other errors of the same row.
        value: the field, for an error of one field.
    """

    text: str
    kind: str
    remedy: str
    column: str | None = None
    missing: bool = False
    others: tuple[Fault, ...] = ()
    value: str = ""

    def __str__(self) -> str:
        return self.text

    def advice(self, count: int, total: int, where: str) -> str:
        """Returns how to correct ``count`` of ``total`` rows with this error, which are at ``where``."""
        return self.remedy if self.kind not in WHOLE or 2 * count >= total else f"correct or delete {where}"


def counted(count: int, what: str) -> str:
    """Formats a count with its noun, which gets an s where the count is not one.

    Args:
        count: the number.
        what: the noun in the singular.

    Example:
        >>> counted(1, "row"), counted(3, "row")
        ('1 row', '3 rows')
    """
    return f"{count} {what}{'s' * (count != 1)}"


def numbers(rows: Sequence[Sequence[str]]) -> np.ndarray | None:
    """Converts rows of fields to float64 ``[n, C]``; returns None if some field is not a number."""
    together = "".join(itertools.chain.from_iterable(rows))
    if not together.isascii() or "_" in together:
        return None
    try:
        return np.array(rows, dtype=np.float64)
    except ValueError:
        return None


def is_number(text: str) -> bool:
    """Returns whether a text is a number, finite or infinite, written with the digits 0 to 9."""
    return NUMBER.fullmatch(text.strip()) is not None


def is_finite(text: str) -> bool:
    """Returns whether a text is a finite number."""
    return is_number(text) and math.isfinite(float(text.strip()))


def _is_missing(text: str) -> bool:
    return text.strip().lower() in MISSING


def kind_of(text: str) -> str:
    """Returns the kind of a field: ``NUMERIC``, ``NONE`` for a missing value, or another kind."""
    if is_number(text):
        return NUMERIC
    return NONE if _is_missing(text) else _kind(text.strip())[0]


def fault_of(column: str | int, text: str, delimiter: str = ",") -> Fault:
    """Describes a field that is not a finite number, in a table with this ``delimiter``."""
    text = text.strip()
    if _is_missing(text):
        what = f"holds {text!r}, a missing value" if text else "is empty"
        return Fault(
            f"column {column} {what}", NONE, "drop such rows, or fill them", str(column), missing=True, value=text
        )
    shown = repr(text if len(text) <= 40 else text[:37] + "...")
    kind, remedy = INFINITE if is_number(text) else _kind(text)
    return Fault(
        f"column {column} holds {shown}, {kind}", kind, remedy.format(delimiter=delimiter), str(column), value=text
    )


def _kind(text: str) -> tuple[str, str]:
    found = (each for pattern, *each in KINDS if len(text) <= 40 and re.fullmatch(pattern, text, re.IGNORECASE))
    return next(found, (WORD, "omit the column, or write a column of 0 and 1 for each category"))
