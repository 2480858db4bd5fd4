"""The variety of tokens against values computed by hand."""

import math
from itertools import pairwise

import pytest
import torch

from cflow.metrics import distinct_ngrams, token_entropy


def test_entropy_of_known_frequencies():
    rows = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [2, 2, 2, 1]])
    quarter = -(0.25 * math.log(0.25) + 0.75 * math.log(0.75))
    assert torch.allclose(token_entropy(rows, 5), torch.tensor([0, math.log(4), quarter], dtype=torch.float64))
    together = [5 / 12, 2 / 12, 4 / 12, 1 / 12]  # of the twelve tokens
    assert float(token_entropy(rows.flatten(), 5)) == pytest.approx(-sum(p * math.log(p) for p in together))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_entropy_of_every_integer_dtype_and_batch(dtype, generator):
    rows = torch.randint(0, 7, (2, 3, 40), generator=generator)
    expected = [[-sum(f * math.log(f) for f in _frequencies(row)) for row in part.tolist()] for part in rows]
    assert torch.allclose(token_entropy(rows.to(dtype), 7), torch.tensor(expected, dtype=torch.float64))


def _frequencies(row):
    return [row.count(token) / len(row) for token in set(row)]


def test_distinct_ngrams_are_counted_within_rows(generator):
    rows = torch.randint(0, 3, (6, 9), generator=generator)
    pairs = [pair for row in rows.tolist() for pair in pairwise(row)]
    assert distinct_ngrams(rows, 2) == len(set(pairs)) / len(pairs)
    assert distinct_ngrams(rows.to(torch.uint8), 1) == len(rows.unique()) / rows.numel()
    assert distinct_ngrams(torch.arange(12), 3) == 1  # one row
    assert distinct_ngrams(torch.tensor([[0, 1], [1, 0]]), 2) == 1  # "1 1" would cross the end of a row
    assert distinct_ngrams(torch.zeros(4, 5, dtype=torch.int64), 5) == 1 / 4


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: token_entropy(torch.rand(2, 3), 4), TypeError, "tokens are integers"),
        (lambda: token_entropy(torch.tensor([[0, 4]]), 4), ValueError, "between 0 and 4"),
        (lambda: token_entropy(torch.tensor([[0, -1]]), 4), ValueError, "between -1 and 0"),
        (lambda: token_entropy(torch.zeros(2, 0, dtype=torch.int64), 4), ValueError, "there are no tokens"),
        (lambda: distinct_ngrams(torch.tensor([[0, 4]]), 3), ValueError, "rows have 2 tokens"),
        (lambda: distinct_ngrams(torch.tensor([[0, 4]]), 0), ValueError, "rows have 2 tokens"),
        (lambda: distinct_ngrams(torch.tensor([[True]]), 1), TypeError, "tokens are integers"),
    ],
)
def test_mistakes_are_explained(call, error, message):
    with pytest.raises(error, match=message):
        call()
