import itertools

import numpy
import ot
import pytest
import torch

from cflow.couplings import OptimalTransport, Partial, partial


def samples(count, dimension, generator):
    x0 = torch.randn(count, dimension, generator=generator, dtype=torch.float64)
    return x0, 1.5 * torch.randn(count, dimension, generator=generator, dtype=torch.float64) + 1


def total(x0, x1):
    return float((x0 - x1).square().sum())


@pytest.mark.parametrize("kept", [1, 2, 3, 4])
def test_no_choice_of_pairs_is_cheaper(kept, generator):
    x0, x1 = samples(5, 2, generator)
    got = Partial(kept / 5)(x0, x1)
    pairs = itertools.product(itertools.combinations(range(5), kept), itertools.permutations(range(5), kept))
    best = min(total(x0[list(i)], x1[list(j)]) for i, j in pairs)
    assert total(got[0], got[1]) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("mass", [0.3, 0.9, 1.0])
@pytest.mark.parametrize("count", [40, 300])
def test_both_solvers_agree_with_pot(mass, count, generator, monkeypatch):
    x0, x1 = samples(count, 3, generator)
    cost = torch.cdist(x0, x1).square().numpy()
    ones = numpy.ones(count)
    kept = round(mass * count)
    plan = ot.partial.partial_wasserstein(ones, ones, cost, m=kept) if mass < 1 else ot.emd(ones, ones, cost)
    for threshold in (0, 10_000):
        monkeypatch.setattr(partial, "SIMPLEX_FROM", threshold)
        rows, columns = Partial(mass).indices(x0, x1)
        assert len(rows) == len(rows.unique()) == len(columns.unique()) == kept
        assert torch.equal(columns, columns.sort().values)
        assert total(x0[rows], x1[columns]) == pytest.approx(float((plan * cost).sum()), rel=1e-9)


def test_the_whole_mass_is_the_optimal_transport(generator):
    x0, x1 = samples(60, 2, generator)
    rows, columns = Partial(1.0).indices(x0, x1)
    assert torch.equal(columns, torch.arange(60))
    assert torch.equal(rows, OptimalTransport().indices(x0, x1))


def test_outliers_of_both_sides_are_left_out_and_labels_follow(generator):
    x0 = torch.randn(100, 2, generator=generator)
    x1 = x0[torch.randperm(100, generator=generator)] + 0.1
    x0[:10], x1[40:50] = x0[:10] + 100, x1[40:50] - 100
    label = {"row": torch.arange(100)}
    y0, y1, got = Partial(0.8)(x0, x1, label)
    assert len(y0) == len(y1) == len(got["row"]) == 80
    assert torch.equal(x1[got["row"]], y1)
    assert y0.abs().max() < 10
    assert y1.abs().max() < 10
    assert len(label["row"]) == 100


@pytest.mark.parametrize("count", [50, 300])
def test_where_everything_coincides_pairs_are_still_whole(count):
    x = torch.zeros(count, 2)
    rows, columns = Partial(0.5).indices(x, x)
    assert len(rows.unique()) == len(columns.unique()) == count // 2


def test_a_plan_with_split_masses_is_solved_again(generator, monkeypatch):
    x0, x1 = samples(30, 2, generator)
    expected = Partial(0.5).indices(x0, x1)
    monkeypatch.setattr(partial, "SIMPLEX_FROM", 0)
    monkeypatch.setattr(ot, "emd", lambda *args, **kwargs: numpy.full((31, 31), 0.5))
    got = Partial(0.5).indices(x0, x1)
    assert torch.equal(got[0], expected[0])
    assert torch.equal(got[1], expected[1])


def test_masses_that_pair_nothing_are_refused():
    for mass in (0.0, -0.5, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"Partial\(mass=.*in \(0, 1\]; pass 0.9"):
            Partial(mass)


def test_small_batches_keep_one_pair():
    x0, x1 = torch.tensor([[0.0], [5.0], [9.0]]), torch.tensor([[7.0], [5.1], [20.0]])
    y0, y1, _ = Partial(0.1)(x0, x1)
    assert (y0.tolist(), y1.tolist()) == ([[5.0]], x1[1:2].tolist())
