import itertools
import math

import pytest
import torch

from cflow.couplings import ConditionalOT, OptimalTransport
from cflow.couplings.conditional import condition_distances, open_weight


def samples(count, dimension, generator, dtype=torch.float64):
    x0 = torch.randn(count, dimension, generator=generator, dtype=dtype)
    return x0, 1.5 * torch.randn(count, dimension, generator=generator, dtype=dtype) + 1


def total(x0, x1):
    return float((x0 - x1).square().sum())


@pytest.mark.parametrize("method", [None, "simplex", "assignment"])
@pytest.mark.parametrize("dimension", [1, 2])
def test_inside_a_class_no_pairing_is_cheaper(method, dimension, generator):
    x0, x1 = samples(9, dimension, generator)
    label = torch.tensor([0, 1, 1, 0, 2, 1, 0, 1, 0])
    index = ConditionalOT(method=method).indices(x0, x1, label)
    assert torch.equal(label[index], label)
    for name in range(3):
        rows = (label == name).nonzero()[:, 0]
        best = min(total(x0[list(order)], x1[rows]) for order in itertools.permutations(rows.tolist()))
        assert total(x0[index[rows]], x1[rows]) == pytest.approx(best, rel=1e-12)


def test_a_finite_weight_minimises_the_weighted_cost(generator):
    x0, x1 = samples(6, 2, generator)
    context = torch.randn(6, 3, generator=generator, dtype=torch.float64)
    spread = context.std(0, correction=0)
    for weight in (0.0, 0.7, 20.0):
        index = ConditionalOT(weight).indices(x0, x1, context)

        def cost(order, weight=weight):
            apart = ((context[list(order)] - context) / spread).square().mean(1).sum()
            return total(x0[list(order)], x1) + weight * float(apart)

        assert cost(index.tolist()) == pytest.approx(min(map(cost, itertools.permutations(range(6)))), rel=1e-9)


def test_limits_of_the_weight(generator):
    x0, x1 = samples(80, 2, generator)
    context = torch.randn(80, 2, generator=generator)
    assert torch.equal(ConditionalOT(0.0).indices(x0, x1, context), OptimalTransport().indices(x0, x1))
    assert torch.equal(ConditionalOT(math.inf).indices(x0, x1, context), torch.arange(80))
    assert torch.equal(ConditionalOT(1e12).indices(x0, x1, context), torch.arange(80))
    plain = OptimalTransport().indices(x0, x1)
    assert torch.equal(ConditionalOT().indices(x0, x1, torch.zeros(80, dtype=torch.long)), plain)
    assert torch.equal(ConditionalOT().indices(x0, x1, torch.ones(80, 4)), plain)


def test_the_weight_leaves_the_share_of_candidates_open(generator):
    cost = torch.rand(60, 60, generator=generator, dtype=torch.float64)
    far = torch.rand(60, 60, generator=generator, dtype=torch.float64)
    far.fill_diagonal_(0)
    everything = [torch.arange(60)]
    for share in (0.01, 0.1, 0.3):
        weight = open_weight(cost, far, everything, share)
        open_pairs = (cost + weight * (1 - 1e-9) * far <= cost.diagonal()) & ~torch.eye(60, dtype=torch.bool)
        assert int(open_pairs.sum()) == int(share * 60 * 59)
    assert open_weight(cost, far, everything, 0.9) == 0
    assert open_weight(cost, far, [torch.tensor([3])], 0.1) == 0
    far[:, :30] = 0
    assert open_weight(cost, far, everything, 0.01) == math.inf


def skew(x0, condition):
    """The share of the variance of x0 that a linear function of the condition explains."""
    design = torch.cat([torch.ones(len(x0), 1), condition.reshape(len(x0), -1)], 1).double()
    rest = x0 - design @ torch.linalg.lstsq(design, x0).solution
    return float(1 - rest.var() / x0.var())


def test_classes_keep_the_base_that_plain_transport_takes_from_them(generator):
    # Two classes left and right: plain transport gives the right class the right half of the base.
    means, plain, rounds, count = [], [], 40, 64
    for _ in range(rounds):
        x0, x1 = samples(count, 2, generator)
        label = torch.randint(2, (count,), generator=generator)
        x1[:, 0] += 4 * label
        for coupling, collected in ((ConditionalOT(), means), (OptimalTransport(), plain)):
            y0, y1, got = coupling(x0, x1, label)
            assert torch.equal(got, label)
            assert torch.equal(y1, x1)
            collected.append(y0[label == 1, 0])
        assert total(ConditionalOT()(x0, x1, label)[0], x1) < 0.9 * total(x0, x1)
    score = lambda values: float(torch.cat(values).mean() * math.sqrt(sum(map(len, values))))
    assert abs(score(means)) < 4  # a standard normal, whatever the classes: once in 16,000 seeds
    assert score(plain) > 15


def test_numbers_keep_the_base_and_paths_grow_shorter(generator):
    count, rounds = 256, 6
    scores = {"none": 0.0, "plain": 0.0, "ours": 0.0}
    costs = dict(scores)
    for _ in range(rounds):
        x0 = torch.randn(count, 2, generator=generator, dtype=torch.float64)
        condition = 10 + 3 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
        x1 = torch.cat([2 * (condition - 10) / 3, torch.zeros(count, 1)], 1)
        x1 = x1 + 0.5 * torch.randn(count, 2, generator=generator, dtype=torch.float64)
        pairs = {"none": x0, "plain": OptimalTransport()(x0, x1)[0], "ours": ConditionalOT()(x0, x1, condition)[0]}
        for name, y0 in pairs.items():
            scores[name] += skew(y0, condition) / rounds
            costs[name] += total(y0, x1) / rounds
    assert scores["plain"] > 0.3
    assert scores["ours"] < 0.02  # chance alone makes 1/256 on average
    assert costs["plain"] < costs["ours"] < 0.85 * costs["none"]


def test_every_part_of_a_context_counts(generator):
    x0, x1 = samples(60, 2, generator)
    first, second = (torch.randint(2, (60,), generator=generator) for _ in range(2))
    both = {"first": first, "deep": {"second": second.bool()}}
    assert torch.equal(
        ConditionalOT().indices(x0, x1, both), ConditionalOT().indices(x0, x1, torch.stack([first, second], 1))
    )
    number = torch.randn(60, generator=generator)
    index = ConditionalOT().indices(x0, x1, {"class": first, "number": number})
    assert torch.equal(first[index], first)
    assert not torch.equal(index, ConditionalOT().indices(x0, x1, first))
    assert not torch.equal(index, torch.arange(60))


def test_labels_as_one_hot_vectors_stay_apart(generator):
    x0, x1 = samples(90, 2, generator)
    label = torch.randint(3, (90,), generator=generator)
    hot = torch.nn.functional.one_hot(label, 3).float()
    assert torch.equal(ConditionalOT().indices(x0, x1, hot), ConditionalOT().indices(x0, x1, label))


def test_distances_of_conditions_are_free_of_units_and_left_alone(generator):
    context = torch.randn(30, 4, generator=generator, dtype=torch.float64) + 5
    before = context.clone()
    far = condition_distances([context])
    other = condition_distances([context * torch.tensor([1e3, 1.0, 1e-3, 7.0]) + 2])
    torch.testing.assert_close(far, other, rtol=1e-4, atol=1e-6)
    assert far.mean() == pytest.approx(2, rel=1e-6)
    assert condition_distances([context, torch.ones(30, 2)]).mean() == pytest.approx(1, rel=1e-6)
    ConditionalOT()(*samples(30, 2, generator), context)
    assert torch.equal(context, before)


def test_a_class_of_one_keeps_its_pair(generator):
    x0, x1 = samples(20, 2, generator)
    assert torch.equal(ConditionalOT().indices(x0, x1, torch.arange(20)), torch.arange(20))


def test_what_cannot_be_compared_is_refused(generator):
    x0, x1 = samples(4, 2, generator)
    for nothing in (None, {}):
        with pytest.raises(ValueError, match=r"needs a context; pass it, or use OptimalTransport"):
            ConditionalOT()(x0, x1, nothing)
    for bad in (torch.tensor([0.0, 1.0, math.nan, 2.0]), torch.zeros(4, dtype=torch.cfloat)):
        with pytest.raises(ValueError, match=r"context part 0 of shape \[4\].*finite real numbers"):
            ConditionalOT()(x0, x1, bad)
    for settings, message in (
        ({"weight": -1.0}, r"weight=-1.0\): the weight is not negative; .* inf \(exact"),
        ({"weight": math.nan}, "weight=nan"),
        ({"candidates": 0.0}, r"candidates=0.0\): .*in \(0, 1\]"),
        ({"candidates": 1.5}, r"candidates=1.5\): .*in \(0, 1\]"),
        ({"method": "sinkhorn"}, "no such solver"),
    ):
        with pytest.raises(ValueError, match=message):
            ConditionalOT(**settings)
