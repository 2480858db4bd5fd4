import pytest
import torch

from cflow.metrics import nearest_distances, neighbours


@pytest.mark.parametrize("pairs", [1, 100, 1 << 22])
def test_finds_the_nearest(pairs, generator, monkeypatch):
    monkeypatch.setattr(neighbours, "PAIRS_AT_ONCE", pairs)
    x = torch.randn(20, 5, generator=generator)
    reference = torch.randn(30, 5, generator=generator)
    distances, index = nearest_distances(x, reference)
    all_pairs = (x[:, None] - reference).double().norm(dim=-1)
    assert torch.equal(index, all_pairs.argmin(1))
    assert torch.allclose(distances, all_pairs.min(1).values, rtol=1e-6)


def test_copies_are_at_distance_zero(generator):
    reference = torch.rand(100, 784, generator=generator) * 255 + 1e4
    order = torch.randperm(100, generator=generator)
    distances, index = nearest_distances(reference[order], reference)
    assert torch.equal(index, order)
    assert (distances == 0).all()


def test_one_row_far_away_costs_the_others_no_digits(generator):
    x, reference = torch.randn(2, 200, 2, generator=generator, dtype=torch.float64)
    x[0] = 1e10
    _, index = nearest_distances(x, reference)
    pairs = torch.cdist(x[1:], reference, compute_mode="donot_use_mm_for_euclid_dist")
    assert torch.equal(index[1:], pairs.argmin(1))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"pass x.flatten\(1\)"):
        nearest_distances(torch.zeros(3, 1, 2, 2), torch.zeros(3, 4))
