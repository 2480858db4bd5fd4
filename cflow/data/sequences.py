"""Texts and sequences: in rows of one length, and read from FASTA files."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.data.files import find

__all__ = ["lengths", "padded", "read_fasta", "windows"]

STRANGE = re.compile(r"[^A-Za-z*.-]")  # what no sequence has: "*" is a stop, "-" and "." are gaps


def windows(tokens: Tensor, length: int, stride: int | None = None) -> Tensor:
    """Cuts a long text into rows: row i starts at token ``i * stride``.

    Tokens at the end that do not fill a row are dropped.

    Args:
        tokens: the text, ``[L]``, as :meth:`Alphabet.encode` returns it; any dtype.
        length: tokens in a row.
        stride: tokens between the starts of two rows. Default: ``length``, so that no token is in two rows.

    Shapes: returns ``[N, length]`` with ``N = (L - length) // stride + 1``. Cost: none: the rows are a view of
    ``tokens``.

    Raises:
        TypeError: if ``tokens`` is not a tensor.
        ValueError: for a text that is shorter than a row, a batch of texts, or a length or stride below 1.

    Example:
        >>> import torch
        >>> windows(torch.arange(8), 3)
        tensor([[0, 1, 2],
                [3, 4, 5]])
        >>> windows(torch.arange(8), 4, stride=2).tolist()
        [[0, 1, 2, 3], [2, 3, 4, 5], [4, 5, 6, 7]]
    """
    stride = length if stride is None else stride
    if not is_integer(length, 1) or not is_integer(stride, 1):
        raise ValueError(f"windows(length={length!r}, stride={stride!r}): both are integers of at least 1; pass such.")
    if not isinstance(tokens, Tensor):
        raise TypeError(
            f"windows(tokens={type(tokens).__name__}): not a tensor of tokens; pass alphabet.encode(text) first."
        )
    if tokens.dim() != 1:
        raise ValueError(
            f"windows(tokens of shape {list(tokens.shape)}): a text has shape [L]; cut each text, then torch.cat the "
            f"rows."
        )
    if len(tokens) < length:
        raise ValueError(
            f"windows({len(tokens)} tokens, length={length}): this is less than one row; pass a longer text, or a "
            f"smaller length."
        )
    return tokens.unfold(0, length, stride)


def padded(sequences: Sequence[Tensor], end: int, length: int | None = None) -> Tensor:
    """Places sequences of different lengths in rows: each is followed by the token ``end``, up to the end of its row.

    A sequence that is as long as a row has no ``end``.

    Args:
        sequences: one or more sequences ``[L]``, as :meth:`Alphabet.encode` returns them; ``end`` is in none of them.
        end: the token that ends a sequence, ``alphabet.end_token``.
        length: tokens in a row. Default: those of the longest sequence.

    Shapes: returns ``[N, length]``, with the dtype of the first sequence.

    Raises:
        TypeError: if a sequence is not a tensor.
        ValueError: without sequences, for one that is longer than a row or contains ``end``, and for a length below 1.

    Example:
        >>> from cflow.data import Characters
        >>> names = Characters("Aant\\n", end="\\n")
        >>> rows = padded([names.encode("Anna"), names.encode("Ata")], names.end_token, length=5)
        >>> rows.tolist(), lengths(rows, names.end_token).tolist()
        ([[0, 2, 2, 1, 4], [0, 3, 1, 4, 4]], [5, 4])
    """
    sequences = list(sequences)
    if not sequences:
        raise ValueError("padded([]): there are no sequences; pass one or more.")
    strange = next((each for each in sequences if not isinstance(each, Tensor) or each.dim() != 1), None)
    if strange is not None:
        what = f"shape {list(strange.shape)}" if isinstance(strange, Tensor) else f"a {type(strange).__name__}"
        raise TypeError(f"padded(sequences with {what}): a sequence is a tensor [L]; pass alphabet.encode(text).")
    length = max(1, *map(len, sequences)) if length is None else length
    if not is_integer(length, 1):
        raise ValueError(f"padded(length={length!r}): this is not an integer of at least 1; pass one.")
    rows = sequences[0].new_full((len(sequences), length), end)
    for place, (row, tokens) in enumerate(zip(rows, sequences)):
        if len(tokens) > length:
            raise ValueError(
                f"padded(length={length}): sequence {place} has {len(tokens)} tokens; omit it, or pass a larger length."
            )
        if (tokens == end).any():
            raise ValueError(
                f"padded(end={end}): sequence {place} contains this token at position "
                f"{int((tokens == end).nonzero()[0])}; choose an end that is in no sequence."
            )
        row[: len(tokens)] = tokens
    return rows


def lengths(rows: Tensor, end: int | None) -> Tensor:
    """Counts the tokens of each row up to its first ``end``, which is counted too; what follows is padding.

    Args:
        rows: rows of tokens ``[N, L]``.
        end: the token that ends a sequence; None if there is none, and all tokens count.

    Shapes: returns int64 ``[N]``, between 1 and L.
    """
    if end is None:
        return torch.full((len(rows),), rows.shape[1], device=rows.device)
    return ((rows == end).cumsum(1) == 0).sum(1).add(1).clamp(max=rows.shape[1])


def read_fasta(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Reads the sequences of a FASTA file, with or without gzip, which is recognised from the first bytes.

    The name of a sequence is the whole line after ``>``. The lines of a sequence are joined, and its letters become
    upper case. A sequence has letters, ``*`` (a stop), ``-`` and ``.`` (gaps). Empty lines, and comments (lines that
    start with ``;``), are skipped.

    Args:
        path: the file.

    Returns:
        A list of ``(name, sequence)``.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file without sequences, a line before the first name, a name without a sequence, and
            characters that no sequence has; the message has the line.

    Source: Pearson and Lipman, Improved tools for biological sequence comparison, 1988 (the FASTA programs).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "a.fasta").write_text(">first\\nACGTN\\nacg\\n>second\\nTTT\\n")
        ...     read_fasta(Path(folder, "a.fasta"))
        [('first', 'ACGTNACG'), ('second', 'TTT')]
    """
    path = find([Path(path).parent], [Path(path).name])
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    wrong = lambda number, what: ValueError(f"read_fasta({str(path)!r}): line {number}: {what}.")
    found: list[tuple[str, int, list[str]]] = []  # name, its line, the lines of its sequence
    opened = gzip.open if packed else open
    try:
        with opened(path, "rt", encoding="utf-8-sig", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                line = line.strip()
                if line.startswith(">"):
                    found.append((line[1:].strip(), number, []))
                elif line and not line.startswith(";"):
                    if not found:
                        raise wrong(number, f"{line[:20]!r} comes before the first name; start with a line '>name'")
                    strange = STRANGE.search(line)
                    if strange:
                        raise wrong(
                            number,
                            f"{strange[0]!r} at position {strange.start()} is in no sequence; write letters, '*', '-' "
                            f"or '.'",
                        )
                    found[-1][2].append(line.upper())
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"read_fasta({str(path)!r}): the gzip stream is damaged ({error}); get it again.") from error
    if not found:
        raise ValueError(f"read_fasta({str(path)!r}): there are no sequences; a name is a line that starts with '>'.")
    empty = [(name, number) for name, number, parts in found if not parts]
    if empty:
        name, number = empty[0]
        raise wrong(number, f"{name[:40]!r} has no sequence; add it, or delete the line")
    return [(name, "".join(parts)) for name, _, parts in found]
