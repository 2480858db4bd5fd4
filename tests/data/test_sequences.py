import gzip

import pytest
import torch

from cflow.data import Characters, lengths, padded, read_fasta, windows


@pytest.mark.parametrize("kind", [torch.uint8, torch.int32, torch.int64])
@pytest.mark.parametrize(("length", "stride"), [(3, None), (4, 1), (4, 7), (20, None), (1, 1)])
def test_windows_are_the_slices_of_a_text(kind, length, stride):
    tokens = torch.arange(20).to(kind)
    rows = windows(tokens, length, stride)
    starts = range(0, 20 - length + 1, stride or length)
    assert rows.dtype == kind
    assert torch.equal(rows, torch.stack([tokens[start : start + length] for start in starts]))
    assert rows.data_ptr() == tokens.data_ptr()  # a view


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.arange(5), 6), "less than one row"),
        ((torch.arange(5), 0), "at least 1"),
        ((torch.arange(5), 2, 0), "at least 1"),
        ((torch.zeros(2, 5), 2), r"shape \[2, 5\]"),
    ],
)
def test_windows_that_cannot_be(arguments, message):
    with pytest.raises(ValueError, match=message):
        windows(*arguments)


def test_a_fasta_file_is_read_with_or_without_gzip(tmp_path):
    content = ";an old comment\n>one first sequence\r\nACGT\r\nacgn\n\n>two\nMK*-.\n>two\nT"
    (tmp_path / "a.fasta").write_bytes(content.encode())
    (tmp_path / "b").write_bytes(gzip.compress(content.encode()))
    for name in ("a.fasta", "b"):
        found = read_fasta(tmp_path / name)
        assert found == [("one first sequence", "ACGTACGN"), ("two", "MK*-."), ("two", "T")]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"ACGT\n>a\nA\n", "line 1: 'ACGT' comes before the first name"),
        (b">a\nACGT\nAC1T\n", "line 3: '1' at position 2 is in no sequence"),
        (b">a\nAC GT\n", "line 2: ' ' at position 2"),
        (b">a\nAC\xe9\n", "line 2: '\ufffd' at position 2"),
        (b">a\nA\n>b\n>c\nA\n", "line 3: 'b' has no sequence"),
        (b">a\n", "line 1: 'a' has no sequence"),
        (b"", "there are no sequences"),
        (gzip.compress(b">a\nACGT\n" * 1000, mtime=0)[:-20], "gzip stream is damaged"),
    ],
)
def test_a_wrong_fasta_file_names_the_line(content, message, tmp_path):
    (tmp_path / "a.fa").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_fasta(tmp_path / "a.fa")


def test_a_missing_fasta_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nothing.fa not found"):
        read_fasta(tmp_path / "nothing.fa")


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64])
def test_padded_rows_are_the_texts_and_their_ends(kind):
    alphabet, texts = Characters("abc\n", end="\n"), ["cab", "", "abcab", "a"]
    sequences = [alphabet.encode(text).to(kind) for text in texts]
    for length in (None, 8):
        rows = padded(sequences, alphabet.end_token, length)
        assert rows.dtype == kind
        assert rows.shape == (4, length or 5)
        assert [alphabet.decode(row) for row in rows] == texts
        assert all((row[len(text) :] == alphabet.end_token).all() for text, row in zip(texts, rows))
        # Without a token after it, the end of the longest text needs no place.
        assert lengths(rows, alphabet.end_token).tolist() == [4, 1, 5 + (length is not None), 2]
    assert lengths(rows, None).tolist() == [8] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 0), ValueError, "there are no sequences"),
        (([torch.ones(2), torch.ones(4)], 0, 3), ValueError, "sequence 1 has 4 tokens; omit it"),
        (([torch.tensor([1, 1, 0])], 0), ValueError, "sequence 0 contains this token at position 2"),
        (([torch.ones(2)], 0, 0), ValueError, "at least 1"),
        ((torch.ones(2, 3, 1), 0), TypeError, r"shape \[3, 1\]"),
        ((["ab"], 0), TypeError, "a str"),
    ],
)
def test_sequences_that_cannot_be_padded(arguments, error, message):
    with pytest.raises(error, match=message):
        padded(*arguments)
