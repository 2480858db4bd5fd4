"""Pieces of words as tokens, by the tokenizers library."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.data.alphabets import Alphabet, check_text
from cflow.registry import register

__all__ = ["WordPieces"]


@register("data.WordPieces")
@dataclass(frozen=True, repr=False)
class WordPieces(Alphabet):
    """Uses pieces of words as tokens, as a tokenizer of the tokenizers library has them.

    :meth:`fit` trains one, of byte pairs. Any other fast tokenizer can be used by its JSON text, which is saved with
    the flow. Special tokens (such as the start of a sentence) are not added. A tokenizer with an unknown token encodes
    what it does not know as this token.

    The package is needed when text is converted, and not for loading a flow: ``pip install tokenizers``.

    Args:
        vocabulary_json: the JSON text of a tokenizer: ``tokenizer.to_str()``, or the content of a ``tokenizer.json``.

    Raises:
        ValueError: if this is not the JSON text of a tokenizer.
        ImportError: if tokenizers is not installed, when text is converted.

    Source: Sennrich, Haddow and Birch, Neural Machine Translation of Rare Words with Subword Units, 2015,
    arXiv:1508.07909 (byte pairs; here of bytes, not of characters).

    Example:
        >>> alphabet = WordPieces.fit("the cat and the other cat", size=262)  # doctest: +SKIP
        >>> alphabet.decode(alphabet.encode("the cat"))  # doctest: +SKIP
        'the cat'
    """

    vocabulary_json: str

    def __post_init__(self) -> None:
        check_text("WordPieces", self.vocabulary_json)
        try:
            document = json.loads(self.vocabulary_json)
        except ValueError:
            document = None
        if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
            raise ValueError(
                f"WordPieces({self.vocabulary_json!r:.40}): this is not the JSON text of a tokenizer; pass "
                f"tokenizer.to_str(), or Path('tokenizer.json').read_text()."
            )

    @classmethod
    def fit(cls, text: str, size: int) -> WordPieces:
        """Trains a tokenizer of byte pairs on a text: the 256 bytes, and pieces that are frequent in the text.

        It has ``size`` tokens, or fewer for a short ``text``. It encodes every text, and ``decode`` returns the same
        text. Cost: 0.2 s for 465,000 characters and 2048 pieces.

        Raises:
            ValueError: for an empty text, and for a size below 256.
            ImportError: if tokenizers is not installed.
        """
        check_text("WordPieces.fit", text)
        if not is_integer(size, 256) or not text:
            raise ValueError(
                f"WordPieces.fit(text of {len(text)} characters, size={size!r}): the 256 bytes are always tokens, the "
                f"text has the others; pass a text and a size of at least 256, such as 2048."
            )
        library = _library("WordPieces.fit")
        byte_level = library.pre_tokenizers.ByteLevel
        tokenizer = library.Tokenizer(library.models.BPE())
        tokenizer.pre_tokenizer = byte_level(add_prefix_space=False)
        tokenizer.decoder = library.decoders.ByteLevel()
        trainer = library.trainers.BpeTrainer(
            vocab_size=size, initial_alphabet=byte_level.alphabet(), show_progress=False
        )
        tokenizer.train_from_iterator([text], trainer)
        return cls(tokenizer.to_str())

    def __repr__(self) -> str:
        """Shows the kind of the tokenizer and the length of its JSON text."""
        kind = json.loads(self.vocabulary_json)["model"].get("type", "a tokenizer")
        return f"WordPieces({kind} in {len(self.vocabulary_json):,} characters of JSON)"

    @property
    def size(self) -> int:
        """The number of pieces, special tokens included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> Tensor:
        """Converts ``text`` to tokens ``[L]``, fewer than its characters; see :meth:`Alphabet.encode`."""
        check_text("WordPieces.encode", text)
        numbers = lambda part: self._tokenizer.encode(part, add_special_tokens=False).ids
        # The tokenizer would omit these characters.
        lost = [each for each in set(text) if not each.isspace() and not numbers(each)]
        if lost:
            place = min(map(text.index, lost))
            raise ValueError(
                f"WordPieces.encode: {text[place]!r} at position {place} is in none of the {self.size} pieces; replace "
                f"it, or build the alphabet from all texts with WordPieces.fit."
            )
        return torch.tensor(numbers(text), dtype=torch.int64)

    def _join(self, tokens: list[int]) -> str:
        return self._tokenizer.decode(tokens, skip_special_tokens=False)

    @property
    def _tokenizer(self) -> Any:
        return _built(self.vocabulary_json)


@lru_cache(maxsize=8)
def _built(document: str) -> Any:
    """Builds a tokenizer, once for each JSON text; a text is neither cut nor filled up to a length."""
    library = _library("WordPieces")
    try:
        tokenizer = library.Tokenizer.from_str(document)
    except Exception as error:  # the library has no class of its own for this; it raises Exception itself
        raise ValueError(
            f"WordPieces: this JSON text is not a tokenizer ({error!s:.80}); write it by tokenizer.to_str()."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _library(called: str) -> ModuleType:
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(f"{called}: tokenizers is not installed; pip install tokenizers.") from error
    return tokenizers
