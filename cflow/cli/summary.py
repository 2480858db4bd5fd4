"""What `cflow score` prints: the bad rows, the mean and how to correct the rows."""

from __future__ import annotations

import math
import sys

from torch import Tensor

from cflow.data.faults import Fault, counted
from cflow.data.sequences import lengths
from cflow.data.tables import Chunk, TableFile

__all__ = ["Summary"]

SHOWN = 20  # bad rows that are listed


class Summary:
    """Collects the statistics that are printed at the end.

    Args:
        size: the number of columns that are data.
        end: the token that ends a text; those after it are not counted. Default: None, all are.
    """

    def __init__(self, size: int, end: int | None = None) -> None:
        self.size, self.end = size, end
        self.rows = self.bad = self.passed = self.tokens = 0
        self.faults: dict[str, tuple[int, str, Fault]] = {}  # by kind: count, first position, first error
        self.mean = self.squares = 0.0

    def add(self, scores: Tensor, chunk: Chunk, file: TableFile) -> None:
        """Adds a chunk to the statistics, and prints its bad rows."""
        for position, what in sorted(chunk.bad.items()):
            if self.bad < SHOWN:
                print(f"\r{file.path}: {file.unit} {chunk.places[position]}: {what}", file=sys.stderr)
            self.bad += 1
            count, place, first = self.faults.get(what.kind, (0, f"{file.unit} {chunk.places[position]}", what))
            self.faults[what.kind] = count + 1, place, first
        self.passed += chunk.passed
        self.rows += len(scores)
        sound = [position not in chunk.bad for position in range(len(scores))]
        self.tokens += int(lengths(chunk.values[sound, : self.size], self.end).sum())
        good = scores[sound].double()
        if len(good):  # combines means and squared deviations of two sets (Chan, Golub and LeVeque, 1979)
            before, after = self.rows - self.bad - len(good), self.rows - self.bad
            change = float(good.mean()) - self.mean
            self.squares += float((good - good.mean()).square().sum()) + change**2 * before * len(good) / after
            self.mean += change * len(good) / after

    def bits(self) -> float:
        """Computes bits per token from the mean; a token that ends a text is one, those after it are none."""
        return -self.mean * (self.rows - self.bad) / self.tokens / math.log(2)

    def said(self) -> str:
        """Formats mean and standard error."""
        count = self.rows - self.bad
        return f"{self.mean:.6g}" + (f" ± {math.sqrt(self.squares / (count - 1) / count):.2g}" if count > 1 else "")

    def tell_rest(self) -> None:
        """Prints how many bad rows were not listed, and the remedy for each kind."""
        if self.bad > SHOWN:
            print(f"and {counted(self.bad - SHOWN, 'more bad row')}", file=sys.stderr)
        for kind, (count, place, fault) in self.faults.items():
            where = place + (f" and {count - 1} similar" if count > 1 else "")
            print(f"{kind}: {fault.advice(count, self.rows, where)}", file=sys.stderr)
