"""Alphabets: text as whole numbers, and back, for flows over tokens."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.registry import register

__all__ = ["Alphabet", "Bytes", "Characters", "check_text"]

REST = "\ufffd"  # Unicode's replacement character


class Alphabet(ABC):
    """Converts text to tokens and back; the contract of alphabets.

    Tokens are whole numbers from 0 to ``size - 1``. A flow over tokens is built with an alphabet and saved with it, so
    that its samples are text. An alphabet is a frozen dataclass with a registered name.

    Shapes: ``encode`` returns int64 ``[L]``; ``decode`` and ``shown`` take integers ``[L]`` of any dtype.

    Example:
        >>> alphabet = Characters("ACGT")
        >>> alphabet.encode("GATTACA"), alphabet.decode([2, 0, 3]), alphabet.shown([2, 4, 3])
        (tensor([2, 0, 3, 3, 0, 1, 0]), 'GAT', 'G_T')
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """The number of tokens."""

    @property
    def blank(self) -> str:
        """The character with which :meth:`shown` draws the mask state."""
        return "\u2588"

    @property
    def end_token(self) -> int | None:
        """The token that ends a text which is shorter than its row; None if every text has the length of a row."""
        return None

    @abstractmethod
    def encode(self, text: str) -> Tensor:
        """Converts ``text`` to tokens ``[L]``.

        Raises:
            ValueError: for a character outside the alphabet; the message has the character and its position.
            TypeError: if ``text`` is not a string.
        """

    @abstractmethod
    def _join(self, tokens: list[int]) -> str:
        """Converts tokens to text; they lie in 0 to ``size - 1``."""

    def decode(self, tokens: Tensor) -> str:
        """Converts ``tokens`` ``[L]`` to text; it stops before the first :attr:`end_token`, if there is one.

        Raises:
            ValueError: for a token outside the alphabet, the mask state included, and for tokens of another shape.
            TypeError: if the tokens are not integers.
        """
        return self._join(self._cut(self._checked(tokens, "decode", self.size)))

    def shown(self, tokens: Tensor) -> str:
        """Converts ``tokens`` ``[L]`` to text, in which the mask state ``size`` is drawn as :attr:`blank`.

        Each part between masks is converted alone: a character with a masked byte is shown as U+FFFD. As in
        :meth:`decode`, the text stops before the first :attr:`end_token`.

        Raises:
            ValueError: as :meth:`decode`, except for the mask state.
            TypeError: if the tokens are not integers.
        """
        values = self._cut(self._checked(tokens, "shown", self.size + 1))
        runs = itertools.groupby(values, lambda token: token == self.size)
        return "".join(self.blank * len([*run]) if masked else self._join([*run]) for masked, run in runs)

    def _cut(self, values: list[int]) -> list[int]:
        """Returns the tokens before the first end."""
        return list(itertools.takewhile(lambda token: token != self.end_token, values))

    def _checked(self, tokens: Tensor, method: str, states: int) -> list[int]:
        called = f"{type(self).__name__}.{method}"
        tokens = torch.as_tensor(tokens)
        if tokens.dim() != 1:
            raise ValueError(
                f"{called}(tokens of shape {list(tokens.shape)}): one text has shape [L]; convert a batch row by row: "
                f"[alphabet.{method}(row) for row in tokens]."
            )
        if not tokens.numel():
            return []
        if tokens.dtype.is_floating_point or tokens.dtype == torch.bool:
            raise TypeError(f"{called}(tokens of {tokens.dtype}): tokens are integers; pass for example tokens.long().")
        values = tokens.tolist()
        wrong = next((place for place, value in enumerate(values) if not 0 <= value < states), None)
        if wrong is not None:
            mask = values[wrong] == self.size
            advice = f"alphabet.shown draws the mask state as {self.blank!r}" if mask else "check the tokens"
            raise ValueError(
                f"{called}: token {values[wrong]} at position {wrong} is outside the alphabet, 0 to {self.size - 1}; "
                f"{advice}."
            )
        return values


@register("data.Characters")
@dataclass(frozen=True)
class Characters(Alphabet):
    """Uses one token for each character of a list. Token i is ``symbols[i]``.

    The mask state is shown as ``_``, or as a full block (U+2588) if ``_`` is one of the symbols.

    Args:
        symbols: the characters, each once, such as ``"ACGTN"``.
        other: the symbol that stands for all characters outside the alphabet. Default: such a character is an error.
        end: the symbol that ends a text, such as a line break for names of which each is a line;
            :func:`cflow.data.padded` fills rows with it. Default: None, texts have the length of a row.

    Raises:
        ValueError: if there are no symbols, a symbol occurs twice, or ``other`` or ``end`` is not one of them.
        TypeError: if ``symbols`` is not a string.

    Example:
        >>> alphabet = Characters.fit("to be or not to be")
        >>> alphabet
        Characters(symbols=' benort', other=None, end=None)
        >>> alphabet.encode("tea")
        Traceback (most recent call last):
        ...
        ValueError: Characters.encode: 'a' at position 2 is not one of the 7 symbols; replace it, or build the \
alphabet from all texts with Characters.fit.
        >>> names = Characters("Aan\\n", end="\\n")
        >>> names.decode(names.encode("Anna\\n\\n\\n"))
        'Anna'
    """

    symbols: str
    other: str | None = None
    end: str | None = None

    def __post_init__(self) -> None:
        check_text("Characters", self.symbols)
        if not self.symbols:
            raise ValueError("Characters(''): there are no symbols; pass the characters of the texts, such as 'ACGTN'.")
        twice = [each for each, count in Counter(self.symbols).items() if count > 1]
        if twice:
            raise ValueError(f"Characters({self.symbols!r:.60}): {twice[0]!r} occurs twice; pass each character once.")
        for name, symbol in (("other", self.other), ("end", self.end)):
            if symbol is not None and (len(symbol) != 1 or symbol not in self.symbols):
                raise ValueError(
                    f"Characters({name}={symbol!r:.20}): this is not one of the symbols; pass one of them."
                )

    @classmethod
    def fit(cls, text: str, size: int | None = None, *, end: str | None = None) -> Characters:
        """Returns the alphabet of a text: all its characters, sorted, or the most frequent ones.

        If ``text`` has more than ``size`` different characters, the ``size - 1`` most frequent ones are used, and all
        others are encoded as the replacement character (U+FFFD), which is the symbol ``other``. The character ``end``
        is always used.

        Raises:
            ValueError: for an empty text, and for a size below 2.
        """
        check_text("Characters.fit", text)
        if size is not None and not is_integer(size, 2):
            raise ValueError(f"Characters.fit(size={size!r}): a size is an integer of at least 2; omit it for all.")
        counts = Counter(text)
        if not counts:
            raise ValueError("Characters.fit(''): the text is empty; pass the text of the training data.")
        if end is not None:
            counts[end] += len(text)  # so it is the most frequent one
        if size is None or len(counts) <= size:
            return cls("".join(sorted(counts)), end=end)
        del counts[REST]
        frequent = sorted(counts, key=lambda each: (-counts[each], each))[: size - 1]
        return cls("".join(sorted([*frequent, REST])), REST, end)

    @property
    def size(self) -> int:
        """The number of symbols."""
        return len(self.symbols)

    @property
    def end_token(self) -> int | None:
        """The token of the symbol ``end``; None without one."""
        return None if self.end is None else self.symbols.index(self.end)

    @property
    def blank(self) -> str:
        """The character with which :meth:`shown` draws the mask state; it is not one of the symbols."""
        return next(each for each in ("_", *map(chr, range(0x2588, 0x110000))) if each not in self.symbols)

    def encode(self, text: str) -> Tensor:
        """Converts ``text`` to tokens ``[L]``, one for each character; see :meth:`Alphabet.encode`."""
        check_text("Characters.encode", text)
        symbols, order = _codes(self.symbols)
        codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")
        found = np.searchsorted(symbols, codes).clip(max=len(symbols) - 1)
        tokens, unknown = order[found], symbols[found] != codes
        if unknown.any():
            if self.other is None:
                place = int(unknown.argmax())
                raise ValueError(
                    f"Characters.encode: {text[place]!r} at position {place} is not one of the {self.size} symbols; "
                    f"{self._advice(text[place])}, or build the alphabet from all texts with Characters.fit."
                )
            tokens[unknown] = self.symbols.index(self.other)
        return torch.from_numpy(tokens)

    def _advice(self, character: str) -> str:
        for case in ("upper", "lower"):
            changed = getattr(character, case)()
            if changed != character and changed in self.symbols:
                return f"pass text.{case}()"
        return "replace it"

    def _join(self, tokens: list[int]) -> str:
        return "".join(map(self.symbols.__getitem__, tokens))


@register("data.Bytes")
@dataclass(frozen=True)
class Bytes(Alphabet):
    """Uses the 256 bytes of UTF-8 as tokens: every text can be encoded, with nothing to fit.

    A character outside ASCII has two to four tokens. ``decode`` shows bytes that are not valid UTF-8, such as those of
    a character that is cut at the end, as the replacement character (U+FFFD).

    Example:
        >>> Bytes().encode("né"), Bytes().decode([110, 195, 169])
        (tensor([110, 195, 169]), 'né')
    """

    @property
    def size(self) -> int:
        """The number of tokens, 256."""
        return 256

    def encode(self, text: str) -> Tensor:
        """Converts ``text`` to tokens ``[L]``, one for each byte of its UTF-8; see :meth:`Alphabet.encode`."""
        check_text("Bytes.encode", text)
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"Bytes.encode: {text[error.start]!r} at position {error.start} is half of a character, which has no "
                f"UTF-8; read the text with errors='replace'."
            ) from None
        return torch.from_numpy(np.frombuffer(content, np.uint8).astype(np.int64))

    def _join(self, tokens: list[int]) -> str:
        return bytes(tokens).decode("utf-8", "replace")


def check_text(called: str, text: str) -> None:
    """Raises a TypeError unless ``text`` is a string."""
    if not isinstance(text, str):
        raise TypeError(f"{called}({text!r:.40}): this is not text; pass a string, such as Path(file).read_text().")


@lru_cache(maxsize=16)
def _codes(symbols: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted code points of the symbols, and the token of each."""
    codes = np.frombuffer(symbols.encode("utf-32-le", "surrogatepass"), "<u4")
    order = np.argsort(codes)
    return codes[order], order
