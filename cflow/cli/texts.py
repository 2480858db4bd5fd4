"""The rows of a text file for a flow with an alphabet, in the chunks of a table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from cflow.cli.outputs import RULE, alphabet_of, has_line_break
from cflow.data.faults import Fault, counted
from cflow.data.files import find
from cflow.data.sequences import padded, windows
from cflow.data.tables import Chunk
from cflow.data.text import decode_error, lines_of

__all__ = ["TextFile"]


class TextFile:
    """Reads a text as rows of tokens. What is a row depends on the alphabet.

    Without a line break in the alphabet, each line is a row; empty lines are not rows. A line must have the flow's
    length, or be shorter if the alphabet has a token that ends a text, which then fills the row. With a line break,
    the texts between lines of dashes are the rows, as ``cflow sample`` writes them. If there is no line of dashes, the
    text is one sequence, and is cut into rows of the flow's length. Tokens at the end that do not fill a row are not
    used.

    Args:
        flow: a flow with an alphabet.
        path: the text, in UTF-8 or UTF-16.

    Attributes:
        unit: the meaning of a place in a chunk: ``"line"``, from 1, or ``"row"``, from 0.
        unused: the number of tokens at the end that do not fill a row.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a flow without an alphabet or with a condition, and for a text that cannot be encoded.
    """

    names = None
    unused = 0

    def __init__(self, flow, path: Path):
        self.path, self.alphabet = find([path.parent], [path.name]), alphabet_of(flow)
        if self.alphabet is None or len(flow.event_shape) != 1:
            raise ValueError(f"score {path}: this flow has no alphabet for texts; pass a table, such as .csv or .npy.")
        if flow.context_shape is not None:
            raise ValueError(
                f"score {path}: each row needs its condition, which a text does not have; pass a table of tokens, with "
                f"the condition in the last columns."
            )
        (self.length,) = flow.event_shape
        self.columns = range(self.length)
        self.unit = "row" if has_line_break(self.alphabet) else "line"
        self._rows = self._read() if self.unit == "row" else []

    def chunks(self, size: int) -> Iterator[Chunk]:
        """Yields chunks of ``size`` rows: tokens as float64 ``[n, length]``; a bad row is NaN."""
        if self.unit == "row":
            for start in range(0, len(self._rows), size):
                rows = self._rows[start : start + size]
                places = range(start, start + len(rows))
                whole = isinstance(rows, Tensor)
                yield Chunk(rows.double(), places) if whole else self._encoded(list(zip(places, rows)), 0)
            return
        try:
            lines, passed = lines_of(self.path), 0
            while part := list(itertools.islice(lines, size)):
                texts = [(number, line.rstrip("\r\n")) for number, line in part]
                rows = [(number, text) for number, text in texts if text]
                passed = len(part) - len(rows)
                yield self._encoded(rows, passed)
        except UnicodeDecodeError as error:
            raise decode_error(self.path, error) from None

    def _encoded(self, rows: list[tuple[int, str]], passed: int) -> Chunk:
        values, bad = torch.full((len(rows), self.length), torch.nan, dtype=torch.float64), {}
        end = self.alphabet.end_token
        for position, (_, text) in enumerate(rows):
            try:
                tokens = self.alphabet.encode(text)
                if end is not None and len(tokens) <= self.length:
                    tokens = padded([tokens], end, self.length)[0]
            except ValueError as error:
                bad[position] = Fault(str(error), "a character outside the alphabet", "replace it, or omit such lines")
                continue
            if len(tokens) == self.length:
                values[position] = tokens.double()
            else:
                most = "" if end is None else "at most "
                what = f"{counted(len(tokens), 'token')} instead of {most}{self.length}"
                between = "line" if self.unit == "line" else f"text between lines of {len(RULE)} dashes"
                remedy = f"write {most}{self.length} tokens in every {between}"
                bad[position] = Fault(what, "another number of tokens", remedy)
        return Chunk(values, [number for number, _ in rows], bad, None, passed)

    def _read(self) -> Tensor | list[str]:
        """Returns the texts between lines of dashes, or the rows of a text that is one sequence, ``[N, length]``."""
        try:
            lines = list(lines_of(self.path))
        except UnicodeDecodeError as error:
            raise decode_error(self.path, error) from None
        if any(line.rstrip("\n") == RULE for _, line in lines):
            return "".join(line for _, line in lines).removesuffix("\n").split(f"\n{RULE}\n")
        return self._cut(lines)

    def _cut(self, lines: list[tuple[int, str]]) -> Tensor:
        try:
            tokens = self.alphabet.encode("".join(line for _, line in lines))
        except ValueError:
            for number, line in lines:
                try:
                    self.alphabet.encode(line)
                except ValueError as error:
                    raise ValueError(f"score {self.path}: line {number}: {error}") from None
            raise
        if len(tokens) < self.length:
            raise ValueError(
                f"score {self.path}: the text has {counted(len(tokens), 'token')}, and a row of this flow has "
                f"{self.length}; pass a longer text."
            )
        self.unused = len(tokens) % self.length
        return windows(tokens, self.length)
