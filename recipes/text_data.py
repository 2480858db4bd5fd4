"""Texts for ``text.py``: reading, cleaning, splitting and encoding them, and how well counts alone predict them."""

import random
import re
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from cflow import data

WORDS = ("reference", "stdlib")  # texts that every installation of Python has
FASTA = (".fa", ".fasta", ".fna", ".faa")
# Typographic quotes, dashes and dots, as a keyboard has them.
PLAIN = {0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2013: "-", 0x2014: "-", 0x2026: "..."}


@dataclass
class Corpus:
    """A text as rows of tokens.

    Attributes:
        name: a short name.
        note: what was read, and how it was cleaned.
        alphabet: what tokens stand for.
        train: rows to learn from, ``[N, L]``; they overlap.
        validation: rows that decide which weights are kept, ``[V, L]``: of the twentieth before the last tenth.
        held: rows of the last tenth of the text, ``[M, L]``; they do not overlap.
        seen: the tokens of the training part, ``[S]``, for counts; each line has its end.
        characters: characters of each held-out row, ``[M]``; the end of a line is one, padding is not counted.
    """

    name: str
    note: str
    alphabet: data.Alphabet
    train: torch.Tensor
    validation: torch.Tensor
    held: torch.Tensor
    seen: torch.Tensor
    characters: torch.Tensor


def reference() -> str:
    """Returns the prose of Python's language reference, without what it has twice.

    A block of lines is prose if it has 40 characters or more, all of ASCII and at least nine tenths of them letters or
    spaces, and ends with a full stop or a colon. So code, grammar, tables and headings are omitted. Each block becomes
    one line. Topics repeat blocks of each other; each is kept once, or held-out text would have been seen in training.
    """
    from pydoc_data.topics import topics

    kept: dict[str, None] = {}  # a dict keeps the order
    for name in sorted(topics):
        for block in re.split(r"\n\s*\n", topics[name]):
            line = " ".join(block.split()).translate(PLAIN)
            letters = sum(each.isalpha() or each == " " for each in line)
            if len(line) >= 40 and line.isascii() and line[-1] in ".:" and letters >= 0.9 * len(line):
                kept[line] = None
    return "\n".join(kept)


def library(most: int) -> str:
    """Returns sources of Python's own library, in the order of their names, up to ``most`` characters."""
    parts, size = [], 0
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        if size > most:
            break
        parts.append(file.read_text(encoding="utf-8", errors="replace"))
        size += len(parts[-1])
    return "\n".join(parts)


def is_fasta(name: str) -> bool:
    """Returns whether a file has sequences, by its ending."""
    return Path(name.removesuffix(".gz")).suffix.lower() in FASTA


def texts(name: str, most: int) -> tuple[list[str], str]:
    """Reads texts: one, or one for each sequence of a FASTA file; and says what was read.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a file that is not UTF-8.
    """
    if name == "reference":
        return [reference()[:most]], "prose of Python's language reference, each paragraph once"
    if name == "stdlib":
        return [library(most)[:most]], f"sources of Python's library, the first {most:,} characters"
    if is_fasta(name):
        found = [sequence for _, sequence in data.read_fasta(name)]
        total, kept = 0, []
        for sequence in found:
            kept.append(sequence[: most - total])
            total += len(kept[-1])
            if total >= most:
                break
        return kept, f"{len(kept)} of {len(found)} sequences"
    file = Path(name)
    if not file.is_file():
        raise FileNotFoundError(f"--data {name}: there is no such file; pass a text, or one of {', '.join(WORDS)}.")
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--data {name}: byte {error.start} is not UTF-8 text; save the file as UTF-8.") from None
    return [text[:most]], f"{file.name}" + (f", the first {most:,} characters" if len(text) > most else "")


def lines_of(parts: Sequence[str], most: int) -> list[str]:
    """Returns the lines of texts that are not empty, each once and in random order, up to ``most`` characters.

    Files of names are often sorted, so their last tenth would be other names. A line that is there twice could be in
    the training and in the held-out part.
    """
    lines = list(dict.fromkeys(line for part in parts for line in part.split("\n") if line))
    random.Random(0).shuffle(lines)
    kept, total = [], 0
    for line in lines:
        total += len(line)
        if total > most:
            break
        kept.append(line)
    return kept


def split(parts: Sequence[str], shares: Sequence[int] = (17, 1, 2)) -> list[list[str]]:
    """Splits texts into consecutive parts with these shares of their characters; no character is in two parts."""
    whole, total = sum(map(len, parts)), sum(shares)
    ends = [whole * sum(shares[: k + 1]) // total for k in range(len(shares))]
    found, start = [], 0
    for end in ends:
        place, pieces = 0, []
        for part in parts:
            pieces.append(part[max(0, start - place) : max(0, end - place)])
            place += len(part)
        found.append([each for each in pieces if each])
        start = end
    return found


def alphabet_of(
    kind: str, train: Sequence[str], whole: Sequence[str], symbols: str | None, size: int, end: str | None = None
):
    """Builds the alphabet: characters of the whole text, bytes, or pieces that are frequent in the training part."""
    if end is not None and kind != "characters":
        raise ValueError(f"--rows lines --tokens {kind}: the end of a line is a character; omit --tokens.")
    if symbols is not None:
        if kind != "characters":
            raise ValueError(f"--alphabet {symbols!r:.40}: this option goes with --tokens characters; omit it.")
        return data.Characters(symbols if end is None else symbols.replace(end, "") + end, end=end)
    match kind:
        case "bytes":
            return data.Bytes()
        case "pieces":
            return data.WordPieces.fit("\n".join(train), size)
    return data.Characters.fit("".join(whole), size, end=end)


def smallest(tokens: torch.Tensor, size: int) -> torch.Tensor:
    """Stores tokens in the smallest integers that have them all."""
    return tokens.to(torch.uint8 if size <= 256 else torch.int32)


def cut(parts: Sequence[torch.Tensor], length: int, stride: int) -> torch.Tensor:
    """Cuts texts into rows ``[N, length]``; texts that are shorter than a row are not used."""
    rows = [data.windows(each, length, stride) for each in parts if len(each) >= length]
    if len(rows) == 1:
        return rows[0]  # a view of the text: overlapping rows need no memory
    return torch.cat(rows) if rows else torch.empty(0, length, dtype=torch.uint8)


def read(
    name: str, kind: str, symbols: str | None, size: int, most: int, length: int | None, by_line: bool = False
) -> Corpus:
    """Reads a text and cuts it into rows, or makes each of its lines a row.

    Args:
        name: a file, or one of ``WORDS``.
        kind: ``"characters"``, ``"bytes"`` or ``"pieces"``.
        symbols: the characters of the alphabet. Default: None, those of the text.
        size: the most tokens of an alphabet that is fitted.
        most: the most characters that are used.
        length: tokens in a row. Default: None, 64, or those of the longest line.
        by_line: whether a row is a line, or a sequence of a FASTA file, followed by line breaks.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: for a text that is too short, and for a character outside the alphabet.
    """
    parts, note = texts(name, sys.maxsize if by_line and name not in WORDS else most)
    if by_line:
        return read_lines(parts, name, kind, symbols, size, most, length)
    length = 64 if length is None else length
    train, validation, held = split(parts)
    if not train:
        raise ValueError(f"--data {name}: the text is empty; pass a longer one.")
    alphabet = alphabet_of(kind, train, parts, symbols, size)
    encoded = [[smallest(alphabet.encode(part), alphabet.size) for part in each] for each in (train, validation, held)]
    # Rows of one text start at every token; many sequences are cut at every quarter of a row, to save memory.
    short = sum(len(each) < length for each in encoded[0])
    if short:
        note += f"; {short} of {len(encoded[0])} texts to learn from have fewer than {length} tokens and are not used"
    rows = cut(encoded[0], length, 1 if len(encoded[0]) == 1 else max(1, length // 4))
    kept, tested = (cut(each, length, length) for each in encoded[1:])
    if not len(rows) or not len(kept) or len(tested) < 2:
        characters = sum(map(len, parts))
        # Texts that are shorter than a row are often lines.
        instead = "a longer text, or a smaller --length" + (", or --rows lines" if short else "")
        raise ValueError(
            f"--length {length}: of {characters:,} characters, {len(rows)} rows are left for training, {len(kept)} for "
            f"validation and {len(tested)} for the test{' (texts are shorter than a row)' if short else ''}; pass "
            f"{instead}."
        )
    characters = torch.tensor([len(alphabet.decode(row)) for row in tested])
    seen = torch.cat([each for each in encoded[0] if len(each) >= length]).long()
    return Corpus(short_name(name), note, alphabet, rows, kept, tested, seen, characters)


def read_lines(
    parts: Sequence[str], name: str, kind: str, symbols: str | None, size: int, most: int, length: int | None
) -> Corpus:
    """Makes each line of texts a row, for :func:`read`; lines that are longer than a row are not used."""
    lines = lines_of(parts, most)
    whole = len(lines)
    if length is not None:
        lines = [line for line in lines if len(line) <= length]
    length = max(map(len, lines), default=1) if length is None else length
    first, second = len(lines) * 17 // 20, len(lines) * 18 // 20
    if min(first, second - first, len(lines) - second - 1) < 1:
        raise ValueError(
            f"--data {name} --rows lines: {len(lines)} different lines of at most {length} characters are too few; "
            f"pass 20 or more, or a larger --length."
        )
    alphabet = alphabet_of(kind, lines[:first], lines, symbols, size, "\n")
    note = f"{len(lines):,} different lines of up to {length} characters, in random order"
    if len(lines) < whole:
        note += f"; {whole - len(lines):,} longer ones are not used"
    encoded = [smallest(alphabet.encode(line), alphabet.size) for line in lines]
    rows = data.padded(encoded, alphabet.end_token, length)
    seen = alphabet.encode("\n".join([*lines[:first], ""]))
    train, kept, tested = rows[:first], rows[first:second], rows[second:]
    characters = data.lengths(tested, alphabet.end_token)
    return Corpus(short_name(name), note, alphabet, train, kept, tested, seen, characters)


def short_name(name: str) -> str:
    """Returns the name of a text in the names of folders."""
    return name if name in WORDS else Path(name).stem


def counted_bits(corpus: Corpus) -> dict[str, float]:
    """Computes bits per character of the held-out rows, predicted by counts of the training text.

    ``unigram`` predicts a token by its frequency, ``bigram`` by the frequency of pairs, smoothed by the unigram: a pair
    that was never seen counts as if it had been seen as often as by chance among as many pairs as there are tokens. The
    first token of a line follows the end of another one. Padding is not predicted.
    """
    size, seen, held = corpus.alphabet.size, corpus.seen, corpus.held.long()
    end, total = corpus.alphabet.end_token, int(corpus.characters.sum())
    used = torch.arange(held.shape[1]) < data.lengths(held, end)[:, None]
    single = (torch.bincount(seen, minlength=size).double() + 1) / (len(seen) + size)
    pairs = torch.bincount(seen[:-1] * size + seen[1:], minlength=size**2) if size <= 2048 else None
    found = {"unigram": -float(single[held][used].log2().sum()) / total}
    if pairs is not None:
        pairs = pairs.reshape(size, size).double()
        weight = pairs.gt(0).sum(1, keepdim=True).clamp(min=1)  # Witten and Bell: as many as followers were seen
        after = (pairs + weight * single) / (pairs.sum(1, keepdim=True) + weight)
        first = (single if end is None else after[end])[held[:, 0]].log2().sum()
        found["bigram"] = -float(after[held[:, :-1], held[:, 1:]][used[:, 1:]].log2().sum() + first) / total
    return found
