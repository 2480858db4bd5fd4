"""Rows that count more than others."""

import pytest
import torch
from training_standins import Regression, SmallMatching, Squares, data, small_flow

from cflow import training
from cflow.training.batches import batches_of


def test_rows_are_drawn_as_often_as_their_weights_say():
    weights = torch.tensor([0.0, 1.0, 3.0, 0.0, 6.0, 0.0])
    x = torch.arange(6.0)[:, None]
    source = batches_of(x, 500, 0, weights=weights)  # more than there are rows: they are drawn with replacement
    counts = torch.stack([source.rows(step).bincount(minlength=6) for step in range(20)]).sum(0)
    expected = 10_000 * weights / weights.sum()
    assert (counts[weights == 0] == 0).all()
    chi = ((counts - expected)[weights > 0].square() / expected[weights > 0]).sum()
    assert float(chi) < 18.4  # 2 degrees of freedom: once in 10,000 seeds
    assert torch.equal(source.rows(3), batches_of(x, 500, 0, weights=weights * 7).rows(3))
    assert not torch.equal(source.rows(3), source.rows(4))


def test_processes_draw_different_rows_of_one_global_batch():
    x, weights = torch.arange(50.0)[:, None], torch.rand(50, generator=torch.Generator().manual_seed(0))
    whole = batches_of(x, 20, 1, weights=weights).rows(2)
    parts = [batches_of(x, 10, 1, rank, 2, weights=weights).rows(2) for rank in (0, 1)]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("kind", ["tensors", "dataset"])
def test_a_weighted_fit_finds_the_weighted_solution(generator, kind):
    """Least squares: rows with weight 3 beside the same rows three times."""
    context = torch.randn(60, 3, dtype=torch.float64, generator=generator)
    x = torch.randn(60, 2, dtype=torch.float64, generator=generator)
    weights = torch.where(torch.arange(60) < 20, 3.0, 0.5)
    root = weights.double().sqrt()[:, None]
    exact = torch.linalg.lstsq(root * torch.cat((context, torch.ones(60, 1)), 1), root * x).solution
    pairs = (x, context) if kind == "tensors" else torch.utils.data.TensorDataset(x, context)
    flow = Regression()
    options = {"steps": 600, "batch_size": 60, "lr": 0.03, "ema": training.EMA(0.99), "schedule": training.Cosine()}
    training.fit(flow, Squares(), pairs, weights=weights, **options)
    found = torch.cat((flow.map.weight.T, flow.map.bias[None]))
    assert (found - exact).abs().max() < 0.1
    unweighted = torch.linalg.lstsq(torch.cat((context, torch.ones(60, 1)), 1), x).solution
    assert (unweighted - exact).abs().max() > 0.2


def test_a_batch_of_weighted_rows_may_be_larger_than_the_data():
    options = {"steps": 3, "batch_size": 256, "log_every": 1}
    run = training.fit(small_flow(), SmallMatching(), data(), weights=torch.ones(200), **options)
    assert [row["step"] for row in run.history] == [1, 2, 3]
    source = batches_of(data(), 256, 0, weights=torch.ones(200))
    assert [(batch.epoch, batch.used, len(batch.x)) for batch in (source.fetch(), source.fetch())] == [
        (0, 1, 256),
        (1, 1, 256),
    ]
    with pytest.raises(ValueError, match="drawn without replacement and data has 200 rows; choose batch_size <= 200"):
        training.fit(small_flow(), SmallMatching(), data(), **options)


def test_a_weighted_run_resumes_and_other_weights_are_refused(tmp_path):
    def go(steps, weights, **options):
        flow = small_flow()
        fixed = {"steps": steps, "batch_size": 32, "schedule": training.Constant(), "weights": weights}
        training.fit(flow, SmallMatching(), data(), **fixed, **options)
        return flow.state_dict().values()

    weights = torch.linspace(0, 1, 200)
    go(5, weights, out=tmp_path)
    pairs = zip(go(9, weights, out=tmp_path, resume=True), go(9, weights))
    assert all(torch.equal(*each) for each in pairs)
    with pytest.raises(ValueError, match="weights is .* now and was"):
        go(12, weights + 1, out=tmp_path, resume=True)


@pytest.mark.parametrize(
    "weights",
    [torch.ones(199), torch.zeros(200), -torch.ones(200), torch.full((200,), float("nan")), torch.ones(200, 1)],
)
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"fit\(weights of shape .*pass one weight for each of the 200 rows"):
        training.fit(small_flow(), SmallMatching(), data(), steps=2, batch_size=32, weights=weights)


def test_a_loader_draws_by_weight_itself():
    loader = torch.utils.data.DataLoader(data(), batch_size=32)
    with pytest.raises(ValueError, match="let the loader draw by weight"):
        training.fit(small_flow(), SmallMatching(), loader, steps=2, weights=torch.ones(200))


def test_accumulation_tells_of_layers_that_look_at_the_batch(recwarn):
    options = {"steps": 2, "batch_size": 32}
    training.fit(Regression(), Squares(), (torch.zeros(40, 2), torch.zeros(40, 3)), accumulate=2, **options)
    training.fit(small_flow(), SmallMatching(), data(), **options)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"fit\(accumulate=2\): net.1 uses batch statistics"):
        training.fit(small_flow(), SmallMatching(), data(), accumulate=2, **options)
