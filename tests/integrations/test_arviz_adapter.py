"""Draws in ArviZ, read back: the same tests for ArviZ 0.x and 1.x, whichever is installed."""

import sys

import numpy
import pytest
import torch

import cflow
from cflow import bases, discrete, fields, paths
from cflow.integrations.arviz import posterior, to_arviz

arviz = pytest.importorskip("arviz", reason="ArviZ is an extra: pip install arviz")


def test_draws_come_back_by_chain_with_their_log_density_and_the_observation():
    x, log_density, seen = torch.randn(12, 2), torch.randn(12), torch.arange(3.0)
    data = to_arviz(x, log_density, names=["mass", "spin"], chains=3, observed=seen, attrs={"prior": "flat"})
    assert groups(data) == {"posterior", "sample_stats", "observed_data"}
    for index, name in enumerate(("mass", "spin")):
        assert data.posterior[name].dims == ("chain", "draw")
        assert numpy.array_equal(data.posterior[name].values, x[:, index].reshape(3, 4).numpy())
    assert numpy.array_equal(data.sample_stats["lp"].values, log_density.reshape(3, 4).numpy())
    assert numpy.array_equal(data.observed_data["observed"].values, seen.numpy())
    assert data.posterior.attrs["prior"] == "flat"


def groups(data):
    """Names the groups of an InferenceData or a DataTree."""
    names = data.groups() if callable(data.groups) else data.groups
    return {each.strip("/") for each in names} - {""}


def test_dicts_and_events_of_any_shape():
    samples = {"image": torch.randn(6, 1, 2, 2), "scale": torch.rand(6)}
    data = to_arviz(samples, observed={"y": torch.zeros(2), "n": torch.tensor(3)})
    assert data.posterior["image"].shape == (1, 6, 1, 2, 2)
    assert data.posterior["scale"].shape == (1, 6)
    assert data.observed_data["n"].item() == 3
    assert to_arviz(torch.randn(6, 4)).posterior["x"].shape == (1, 6, 4)


def test_weights_resample_towards_the_target(generator):
    """From N(0, 1) to N(1, 0.8^2); 20,000 draws, of which about half count, so that four deviations are 0.04."""
    x = torch.randn(20_000, generator=generator, dtype=torch.float64)
    target = torch.distributions.Normal(1.0, 0.8).log_prob(x)
    log_weights = target - torch.distributions.Normal(0.0, 1.0).log_prob(x) + 700.0  # up to a constant
    data = to_arviz({"x": x}, target, chains=4, log_weights=log_weights, generator=generator)
    drawn = data.posterior["x"].values
    assert abs(drawn.mean() - 1.0) < 0.05
    assert abs(drawn.std() - 0.8) < 0.05
    law = torch.distributions.Normal(1.0, 0.8)
    assert numpy.allclose(data.sample_stats["lp"].values, law.log_prob(torch.from_numpy(drawn)).numpy())
    weights = torch.exp(log_weights - log_weights.max())
    assert data.posterior.attrs["importance_ess"] == pytest.approx(float(weights.sum() ** 2 / weights.square().sum()))


def test_a_flow_gives_the_posterior_of_one_observation(generator):
    flow, seen = discrete.nsf(2, layers=1, hidden=(8,), context=3), torch.ones(3)
    data = posterior(flow, seen, 20, names=["a", "b"], generator=generator)
    x = torch.stack([torch.from_numpy(data.posterior[name].values) for name in ("a", "b")], -1)
    assert x.shape == (4, 5, 2)
    with torch.no_grad():
        assert torch.allclose(torch.from_numpy(data.sample_stats["lp"].values), flow.log_prob(x, seen), atol=1e-5)
    assert numpy.array_equal(data.observed_data["observed"].values, seen.numpy())
    assert data.posterior.attrs["inference_library"] == "cflow"
    summary = arviz.summary(data)
    assert list(summary.index) == ["a", "b"]


def test_a_target_corrects_a_flow(generator):
    """The flow is a standard normal and the target N(0.5, 0.5): 4000 draws, a quarter of which count."""
    flow = discrete.NormalizingFlow(discrete.LULinear(1), bases.Normal(1)).double()
    law = torch.distributions.Normal(0.5, 0.5)
    data = posterior(flow, draws=4000, target=lambda x: law.log_prob(x).sum(-1) - 3.0, generator=generator)
    drawn = data.posterior["x"].values
    assert abs(drawn.mean() - 0.5) < 0.08
    assert abs(drawn.std() - 0.5) < 0.06
    assert numpy.allclose(data.sample_stats["lp"].values, law.log_prob(torch.from_numpy(drawn)).sum(-1).numpy() - 3.0)
    assert 500 < data.posterior.attrs["importance_ess"] < 4000


def test_a_flow_without_density_gives_draws_alone(generator):
    flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Empirical(torch.randn(5, 2)), path=paths.Linear())
    data = posterior(flow, draws=20, generator=generator)
    assert data.posterior["x"].shape == (4, 5, 2)
    assert groups(data) == {"posterior"}
    with pytest.raises(ValueError, match="the flow's likelihood is 'none'"):
        posterior(flow, draws=8, target=lambda x: x.sum(-1))


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.zeros(0, 2),), {}, "the numbers of draws differ, or are zero"),
        ((torch.tensor(1.0),), {}, "the numbers of draws differ, or are zero"),
        (({},), {}, "the numbers of draws differ, or are zero"),
        (
            ({"a": torch.zeros(3), "b": torch.zeros(4)},),
            {},
            r"draws differ, or are zero: \{'a': 3, 'b': 4\}",
        ),
        ((torch.zeros(3, 2), torch.zeros(4)), {}, r"'log_density': 4"),
        ((torch.zeros(3, 2), torch.zeros(3, 1)), {}, r"log_density of shape \[3, 1\]"),
        ((torch.zeros(3, 2),), {"names": ["a"]}, "do not have 1 columns"),
        (({"a": torch.zeros(3)},), {"names": ["a"]}, "are a dict and have names"),
        ((torch.zeros(3, 2),), {"chains": 2}, "pass a divisor of 3"),
        ((torch.zeros(3, 2),), {"chains": 0}, "pass a divisor of 3"),
        ((torch.zeros(2),), {"log_weights": torch.tensor([0.0, torch.nan])}, "must be finite"),
        ((torch.zeros(2),), {"log_weights": torch.full((2,), -torch.inf)}, "must be finite"),
        ((torch.zeros(2),), {"log_weights": torch.tensor([0.0, torch.inf])}, "must be finite"),
    ],
)
def test_mistakes_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(*arguments, **options)


def test_mistakes_about_a_flow_are_named():
    flow = discrete.nsf(2, layers=1, hidden=(8,), context=3)
    with pytest.raises(ValueError, match="per call"):
        posterior(flow, torch.zeros(5, 3))
    with pytest.raises(ValueError, match=r"return one log-density per draw, \[8\]"):
        posterior(flow, torch.zeros(3), 8, target=lambda x: x)


def test_a_missing_arviz_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "arviz", None)
    monkeypatch.setitem(sys.modules, "arviz_base", None)
    with pytest.raises(ImportError, match="pip install arviz"):
        to_arviz(torch.zeros(3))
