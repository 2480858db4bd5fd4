import copy
import pickle

import numpy as np
import pytest
import torch

import cflow
from cflow.data import Bytes, Characters, WordPieces

TEXT = "The quick brown fox\njumps over the lazy dog, twice. " * 4


def pieces(size=280):
    pytest.importorskip("tokenizers", reason="an extra: pip install tokenizers")
    return WordPieces.fit(TEXT, size)


ALPHABETS = {"characters": lambda: Characters.fit(TEXT), "bytes": Bytes, "pieces": pieces}


@pytest.fixture(params=ALPHABETS)
def alphabet(request):
    return ALPHABETS[request.param]()


@cflow.register("tests.Speaker")
class Speaker(torch.nn.Module):
    def __init__(self, alphabet):
        super().__init__()
        self.alphabet = alphabet


def test_text_comes_back(alphabet):
    tokens = alphabet.encode(TEXT)
    assert tokens.dtype == torch.int64
    assert tokens.dim() == 1
    assert 0 <= int(tokens.min()) <= int(tokens.max()) < alphabet.size
    for kind in (torch.int64, torch.int32, torch.int16):
        assert alphabet.decode(tokens.to(kind)) == TEXT
    assert alphabet.shown(tokens) == TEXT
    assert alphabet.encode("").shape == (0,)
    assert alphabet.encode("").dtype == torch.int64
    assert alphabet.decode(torch.empty(0, dtype=torch.int64)) == ""
    every = torch.arange(alphabet.size)
    assert isinstance(alphabet.decode(every), str)


def test_masks_are_shown_between_the_text(alphabet):
    before, after = alphabet.encode("The quick"), alphabet.encode("fox")
    masks = torch.full((3,), alphabet.size)
    blank = alphabet.blank
    assert blank not in TEXT
    assert alphabet.shown(torch.cat([before, masks, after, masks[:1]])) == f"The quick{blank * 3}fox{blank}"
    with pytest.raises(ValueError, match=f"token {alphabet.size} at position 1 .*alphabet.shown draws"):
        alphabet.decode(torch.tensor([0, alphabet.size]))
    with pytest.raises(ValueError, match=f"token {alphabet.size + 1} at position 0 is outside"):
        alphabet.shown(torch.tensor([alphabet.size + 1]))


def test_an_alphabet_is_a_value_that_is_saved_with_a_flow(alphabet, tmp_path):
    for same in (
        cflow.load(cflow.save(Speaker(alphabet), tmp_path / "model")).alphabet,
        pickle.loads(pickle.dumps(alphabet)),
        copy.deepcopy(alphabet),
    ):
        assert same == alphabet
        assert hash(same) == hash(alphabet)
        assert same.decode(alphabet.encode(TEXT)) == TEXT
    assert alphabet != Characters("xyz")
    with pytest.raises(AttributeError):
        alphabet.symbols = "abc"
    assert len(repr(alphabet)) < 100


def test_what_is_not_one_text_of_integers_is_refused(alphabet):
    name = type(alphabet).__name__
    with pytest.raises(ValueError, match=rf"{name}.decode\(tokens of shape \[2, 3\]\).*row by row"):
        alphabet.decode(torch.zeros(2, 3, dtype=torch.int64))
    for kind in (torch.float32, torch.bool):
        with pytest.raises(TypeError, match="tokens are integers"):
            alphabet.decode(torch.ones(2, dtype=kind))
    with pytest.raises(ValueError, match="token -1 at position 2"):
        alphabet.decode(torch.tensor([0, 1, -1]))
    with pytest.raises(TypeError, match=f"{name}.encode.*pass a string"):
        alphabet.encode(b"bytes")


def test_characters_are_numbered_by_their_place_in_the_list():
    alphabet = Characters("TGCA\U0001f600-")
    assert alphabet.encode("AC\U0001f600GT-").tolist() == [3, 2, 4, 1, 0, 5]
    assert Characters.fit("banana split") == Characters(" abilnpst")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ACGé", "'é' at position 3 is not one of the 5 symbols; replace it, or build"),
        ("acg", "'a' at position 0 .*pass text.upper()"),
        ("A\U0001f600", "'\U0001f600' at position 1"),
        ("\0", "'.x00' at position 0"),
    ],
)
def test_an_unknown_character_is_named_with_its_position(text, message):
    with pytest.raises(ValueError, match=message):
        Characters("ACGTN").encode(text)


def test_the_most_frequent_characters_and_one_for_the_rest():
    text = "aaaa bbb cc d e"
    alphabet = Characters.fit(text, size=4)
    assert alphabet == Characters(" ab\ufffd", other="\ufffd")
    assert alphabet.decode(alphabet.encode(text)) == "aaaa bbb \ufffd\ufffd \ufffd \ufffd"
    assert alphabet.decode(alphabet.encode("é\ufffdb")) == "\ufffd\ufffdb"
    assert Characters.fit(text, size=6) == Characters.fit(text)
    assert Characters.fit("aab\ufffd\ufffd\ufffd", size=2) == Characters("a\ufffd", other="\ufffd")


def test_the_blank_is_never_a_symbol():
    assert Characters("abc").blank == "_"
    assert Characters("abc_").blank == "\u2588"
    assert Characters("_\u2588abc").blank == "\u2589"


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Characters(""), "no symbols"),
        (lambda: Characters("abca"), "'a' occurs twice"),
        (lambda: Characters("abc", other="d"), "not one of the symbols"),
        (lambda: Characters("abc", other="ab"), "not one of the symbols"),
        (lambda: Characters.fit(""), "the text is empty"),
        (lambda: Characters.fit("abc", size=1), "at least 2"),
        (lambda: WordPieces("{}"), "not the JSON text of a tokenizer"),
        (lambda: WordPieces("the cat"), "not the JSON text of a tokenizer"),
        (lambda: WordPieces.fit("the cat", 255), "at least 256"),
        (lambda: WordPieces.fit("", 300), "text of 0 characters"),
    ],
)
def test_what_is_no_alphabet_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_bytes_are_those_of_utf8_and_broken_ones_are_shown():
    alphabet = Bytes()
    assert alphabet.size == 256
    text = "né 漢 \U0001f600\0"
    assert alphabet.encode(text).tolist() == list(text.encode())
    assert alphabet.decode(alphabet.encode("漢字")[:-1]) == "漢\ufffd"
    with pytest.raises(ValueError, match="at position 1 is half of a character"):
        alphabet.encode("a\ud800")


def test_pieces_of_words_are_fewer_than_bytes_and_cover_every_text():
    alphabet = pieces()
    assert 256 < alphabet.size <= 280
    assert len(alphabet.encode(TEXT)) < 0.8 * len(TEXT)
    for text in ("né 漢 \U0001f600", "  two  spaces\n\n\tand a tab ", "unseen WORDS"):
        assert alphabet.decode(alphabet.encode(text)) == text
    assert WordPieces.fit(TEXT, 280) == alphabet  # the same text, the same pieces


def test_a_tokenizer_of_others_is_used_without_its_special_tokens_and_limits():
    tokenizers = pytest.importorskip("tokenizers", reason="an extra: pip install tokenizers")
    words = {"[UNK]": 0, "the": 1, "cat": 2, "[BOS]": 3}
    other = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    other.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    other.post_processor = tokenizers.processors.TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 3)])
    other.enable_truncation(2)
    other.enable_padding(length=9)
    alphabet = WordPieces(other.to_str())
    assert alphabet.size == 4
    assert alphabet.encode("the cat the dog").tolist() == [1, 2, 1, 0]
    known = tokenizers.Tokenizer(tokenizers.models.BPE({"a": 0, "b": 1}, []))  # drops what it does not know
    with pytest.raises(ValueError, match="'é' at position 2 is in none of the 2 pieces"):
        WordPieces(known.to_str()).encode("abéa")
    with pytest.raises(ValueError, match="not a tokenizer"):
        WordPieces('{"model": {"type": "nothing"}}').encode("a")


def test_a_missing_tokenizers_is_named_when_text_is_converted(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tokenizers", None)
    alphabet = WordPieces('{"model": {"type": "BPE", "note": "another text"}}')
    with pytest.raises(ImportError, match="pip install"):
        alphabet.encode("a")


def test_a_long_text_is_converted_as_a_whole():
    """By arrays, not character by character: the text of a book in a fraction of a second."""
    text = "".join(map(chr, np.random.default_rng(0).integers(32, 127, 200_000)))
    alphabet = Characters.fit(text)
    expected = [alphabet.symbols.index(each) for each in text[:1000]]
    assert alphabet.encode(text)[:1000].tolist() == expected
    assert alphabet.decode(alphabet.encode(text)) == text


def test_the_end_of_a_text_is_not_shown():
    alphabet = Characters.fit("Anna\nOtto", end="\n")
    assert alphabet == Characters("\nAOanot", end="\n")
    row = alphabet.encode("Anna\nOtto")
    assert alphabet.decode(row) == "Anna"
    assert alphabet.shown(torch.where(row == alphabet.encode("a"), alphabet.size, row)) == "Ann_"
    assert alphabet.decode(alphabet.encode("\n")) == ""
    assert Characters.fit("abcabcabd", 4, end="\n").end_token is not None  # however rare it is
    assert Characters.fit("ab").end_token is None
    with pytest.raises(ValueError, match=r"Characters\(end='x'\): this is not one of the symbols"):
        Characters("ab", end="x")
