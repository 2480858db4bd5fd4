import itertools
import threading
import warnings

import ot
import pytest
import torch

from cflow.couplings import OptimalTransport
from cflow.couplings.costs import squared_distances
from cflow.manifolds import Sphere

METHODS = ["simplex", "assignment", None]


def samples(count, event, generator, spread=2.0, dtype=torch.float64):
    x0 = torch.randn(count, *event, generator=generator, dtype=dtype)
    return x0, spread * torch.randn(count, *event, generator=generator, dtype=dtype) + 1


def total(x0, x1):
    return (x0 - x1).square().sum().item()


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("event", [(), (1,), (2,), (5,), (3, 4, 4)])
@pytest.mark.parametrize("count", [1, 2, 7, 64, 150])
def test_every_row_is_used_exactly_once_and_the_cost_falls(method, event, count, generator):
    x0, x1 = samples(count, event, generator)
    got0, got1, context = OptimalTransport(method)(x0, x1)
    assert context is None
    assert got1 is x1
    index = OptimalTransport(method).indices(x0, x1)
    assert torch.equal(index.sort().values, torch.arange(count))
    assert torch.equal(got0, x0[index])
    assert total(got0, x1) <= total(x0, x1) + 1e-9


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("event", [(1,), (2,), (3, 2)])
@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_no_permutation_is_cheaper(method, event, count, spread, generator):
    x0, x1 = samples(count, event, generator, spread)
    best = min(total(x0[list(order)], x1) for order in itertools.permutations(range(count)))
    assert total(OptimalTransport(method)(x0, x1)[0], x1) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("count", [50, 200, 300])
@pytest.mark.parametrize("event", [(2,), (20,), (600,)])
@pytest.mark.parametrize("spread", [0.3, 3.0])
def test_both_solvers_find_the_same_cost(count, event, spread, generator):
    x0, x1 = samples(count, event, generator, spread, torch.float32)
    costs = [total(OptimalTransport(method)(x0, x1)[0].double(), x1.double()) for method in METHODS]
    assert costs[0] == pytest.approx(costs[1], rel=1e-6)
    assert costs[2] in costs[:2]


def test_on_the_line_sorting_agrees_with_the_solvers(generator):
    x0, x1 = samples(200, (1,), generator)
    # A second, constant coordinate changes no distance and sends the pair to the solvers.
    flat = [torch.cat([x, torch.full_like(x, 4.0)], 1) for x in (x0, x1)]
    for method in METHODS:
        assert torch.equal(OptimalTransport(method).indices(*flat), OptimalTransport().indices(x0, x1))


def test_labels_stay_with_their_data(generator):
    x0, x1 = samples(80, (2,), generator)
    context = {"label": torch.arange(80), "name": x1.sum(1)}
    got0, got1, got = OptimalTransport()(x0, x1, context)
    assert torch.equal(got["label"], torch.arange(80))
    assert torch.equal(got["name"], got1.sum(1))
    assert not torch.equal(got0, x0)


@pytest.mark.parametrize("method", METHODS)
def test_a_known_shuffle_is_undone(method, generator):
    # A translation is optimal, so each row must find its own translate, whatever the common offset.
    for offset in (0.0, 1e4):
        x0 = torch.randn(160, 2, generator=generator) + offset
        order = torch.randperm(160, generator=generator)
        x1 = x0[order] + 3.0
        assert torch.equal(OptimalTransport(method).indices(x0, x1), order)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_kept_and_choices_repeat(method, dtype, generator):
    x0, x1 = samples(40, (6,), generator, dtype=torch.float32)
    x0, x1 = x0.to(dtype), x1.to(dtype)
    first = OptimalTransport(method)(x0, x1)
    again = OptimalTransport(method)(x0, x1, generator=torch.Generator().manual_seed(1))
    assert first[0].dtype == first[1].dtype == dtype
    assert torch.equal(first[0], again[0])


def test_gradients_pass_through_samples_and_not_the_choice(generator):
    x0, x1 = samples(20, (2,), generator)
    x0.requires_grad_()
    got0, _, _ = OptimalTransport()(x0, x1)
    got0.sum().backward()
    assert torch.equal(x0.grad, torch.ones_like(x0))


def test_autocast_and_matmul_precision_do_not_blur_the_costs(generator):
    x0 = torch.randn(100, 30, generator=generator)
    order = torch.randperm(100, generator=generator)
    x1 = x0[order] + 1e-3 * torch.randn(100, 30, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        cost = squared_distances("test", x0, x1).cost
        assert torch.equal(OptimalTransport().indices(x0, x1), order)
    exact = torch.cdist(x0.double() - x0.double().mean(0), x1.double() - x1.double().mean(0)).square()
    torch.testing.assert_close(cost, exact, rtol=1e-5, atol=1e-4, check_dtype=False)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        cost = squared_distances("test", x0, x1).cost
        torch.testing.assert_close(cost, exact, rtol=1e-10, atol=1e-10)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize("value", ["nothing", "halves", "doubled"])
def test_a_plan_that_is_no_permutation_is_solved_again(value, generator, monkeypatch):
    x0, x1 = samples(30, (2,), generator)
    expected = OptimalTransport("assignment").indices(x0, x1)
    plans = {
        "nothing": torch.zeros(30, 30),
        "halves": 0.5 * torch.eye(30) + 0.5 * torch.eye(30).roll(1, 0),
        "doubled": torch.ones(30, 1) * torch.eye(30)[0],
    }
    monkeypatch.setattr(ot, "emd", lambda *args, **kwargs: plans[value].numpy())
    assert torch.equal(OptimalTransport("simplex").indices(x0, x1), expected)


@pytest.mark.parametrize("method", ["simplex", "assignment"])
def test_ties_still_give_a_permutation(method):
    x = torch.zeros(50, 2)
    assert torch.equal(OptimalTransport(method).indices(x, x).sort().values, torch.arange(50))


def test_threads_agree_with_one_thread(generator):
    batches = [samples(150, (2,), generator) for _ in range(6)]
    expected = [OptimalTransport().indices(*batch) for batch in batches]
    got = [None] * len(batches)

    def work(i):
        got[i] = OptimalTransport("simplex" if i % 2 else "assignment").indices(*batches[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(batches))]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(torch.equal(a, b) for a, b in zip(got, expected))


def test_on_the_line_bad_entries_are_named(generator):
    x0, x1 = samples(10, (1,), generator)
    x0[3] = torch.nan
    with pytest.raises(ValueError, match=r"x0 of shape \[10, 1\]\): 1 entries are NaN or infinite"):
        OptimalTransport()(x0, x1)


def test_bad_methods_are_refused():
    with pytest.raises(ValueError, match=r"method='sinkhorn'\): no such solver"):
        OptimalTransport("sinkhorn")


@pytest.mark.parametrize("method", METHODS)
def test_an_outlier_does_not_blur_the_rest(method, generator):
    x0 = torch.randn(160, 2, generator=generator)
    order = torch.randperm(160, generator=generator)
    x1 = x0[order] + 0.5
    x0[0], x1[order == 0] = 1e6, 1e6
    assert torch.equal(OptimalTransport(method).indices(x0, x1), order)
    scaled = OptimalTransport(method).indices(1e22 * x0, 1e22 * x1)  # whose squares overflow float32
    assert torch.equal(scaled, order)


@pytest.mark.parametrize("method", METHODS)
def test_duplicates_are_used_as_often_as_they_come(method, generator):
    x0 = torch.randn(20, 2, generator=generator).repeat(8, 1)
    x1 = torch.randn(40, 2, generator=generator).repeat(4, 1)
    index = OptimalTransport(method).indices(x0, x1)
    assert torch.equal(index.sort().values, torch.arange(160))
    best = OptimalTransport("assignment").indices(x0.double(), x1.double())
    assert total(x0[index], x1) == pytest.approx(total(x0[best], x1), rel=1e-5)


def test_a_cost_of_a_manifold_pairs_empty_batches_and_single_rows():
    sphere = Sphere(2)
    for count in (0, 1):
        x = sphere.uniform((count,))
        x0, x1, _ = OptimalTransport(cost=sphere.cost)(x, x)
        assert x0.shape == x1.shape == (count, 3)
