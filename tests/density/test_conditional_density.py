import math
import pickle

import numpy as np
import pytest
import torch
from scipy.stats import norm
from sklearn.model_selection import GridSearchCV, cross_val_score

import cflow
from cflow import bases, discrete
from cflow.density import ConditionalFlowDensity

SMALL = {"flow_options": {"layers": 2, "hidden": (16,)}, "max_steps": 12, "check_every": 4, "random_state": 0}


@pytest.fixture(scope="module")
def line():
    """Targets whose mean and spread are linear in the feature, in odd units."""
    rng = np.random.default_rng(0)
    X = 300 + 20 * rng.uniform(-1, 1, size=(2000, 1))
    return X, 5e4 + 100 * (X[:, 0] - 300) + (500 + 20 * (X[:, 0] - 300)) * rng.normal(size=2000)


@pytest.fixture(scope="module")
def fitted(line):
    options = {"flow_options": {"layers": 1, "hidden": (32,)}, "max_steps": 400, "lr": 1e-2, "random_state": 0}
    return ConditionalFlowDensity("maf", **options).fit(*line)


def test_means_quantiles_and_intervals_are_those_of_the_law(fitted):
    X = np.array([[290.0], [300.0], [310.0]])
    mean, scale = 5e4 + 100 * (X[:, 0] - 300), 500 + 20 * (X[:, 0] - 300)
    assert np.abs((fitted.predict(X) - mean) / scale).max() < 0.25
    q = np.array([0.05, 0.5, 0.95])
    found = fitted.predict_quantiles(X, q)
    assert found.shape == (3, 3)
    assert np.abs((found - norm.ppf(q) * scale[:, None] - mean[:, None]) / scale[:, None]).max() < 0.35
    assert np.array_equal(fitted.predict_quantiles(X, 0.5), found[:, 1])
    assert np.array_equal(fitted.predict_interval(X, coverage=0.9), found[:, [0, 2]])


def test_intervals_hold_what_they_say(line, fitted):
    """Fresh targets: binomial limits of 4 deviations, and 0.03 for what 400 steps leave."""
    rng = np.random.default_rng(1)
    X = 300 + 20 * rng.uniform(-1, 1, size=(3000, 1))
    y = 5e4 + 100 * (X[:, 0] - 300) + (500 + 20 * (X[:, 0] - 300)) * rng.normal(size=3000)
    for coverage in (0.5, 0.9):
        low, high = fitted.predict_interval(X, coverage).T
        error = 4 * math.sqrt(coverage * (1 - coverage) / 3000)
        assert ((low <= y) & (y <= high)).mean() == pytest.approx(coverage, abs=error + 0.03)
    entropy = np.log(500 + 20 * (X[:, 0] - 300)) + 0.5 * math.log(2 * math.pi * math.e)
    assert fitted.score(X, y) == pytest.approx(-entropy.mean(), abs=0.1)


def test_the_density_integrates_to_one_and_to_its_quantiles(fitted):
    for x in (290.0, 305.0):
        grid = np.linspace(3.5e4, 6.5e4, 30_001)
        height = np.exp(fitted.score_samples(np.full((len(grid), 1), x), grid))
        assert np.trapezoid(height, grid) == pytest.approx(1, abs=1e-3)
        below = grid <= fitted.predict_quantiles([[x]], 0.8)
        assert np.trapezoid(height[below], grid[below]) == pytest.approx(0.8, abs=2e-3)


def test_a_flow_that_falls_has_its_quantiles_in_order(fitted, monkeypatch):
    rising = fitted.predict_quantiles([[305.0]], [0.1, 0.6])
    decode = ConditionalFlowDensity._decode
    monkeypatch.setattr(ConditionalFlowDensity, "_decode", lambda self, z, X: decode(self, -z, X))
    assert np.allclose(fitted.predict_quantiles([[305.0]], [0.1, 0.6]), rising)


def test_several_targets_keep_their_dimension():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2))
    y = X @ [[2.0, 0.0], [0.0, -3.0]] + rng.normal(size=(600, 2)) @ [[0.5, 0.3], [0.0, 0.4]]
    model = ConditionalFlowDensity("maf", **{**SMALL, "max_steps": 200}, lr=1e-2).fit(X, y)
    at = np.array([[1.0, -1.0], [0.0, 0.0]])
    assert model.predict(at).shape == (2, 2)
    assert np.abs(model.predict(at) - at @ [[2.0, 0.0], [0.0, -3.0]]).max() < 0.35
    assert model.predict_quantiles(at, 0.5).shape == (2, 2)
    quantiles = model.predict_quantiles(at, [0.1, 0.5, 0.9])
    assert quantiles.shape == (2, 3, 2)
    assert (np.diff(quantiles, axis=1) > 0).all()
    wide = np.abs(quantiles[:, 2] - quantiles[:, 0]) / (2 * norm.ppf(0.9))
    assert np.abs(wide - [0.5, 0.5]).max() < 0.2
    drawn = model.sample(at, 3000, random_state=0)
    assert drawn.shape == (2, 3000, 2)
    assert np.abs(drawn.mean(1) - model.predict(at)).max() < 0.06
    assert np.cov(drawn[0].T)[0, 1] == pytest.approx(0.15, abs=0.1)
    one = ConditionalFlowDensity(**SMALL).fit(X, y[:, :1])
    assert one.predict(at).shape == (2, 1)
    assert one.predict_interval(at).shape == (2, 2, 1)
    with pytest.raises(ValueError, match="below 1/512; pass draws=16384"):
        model.predict_quantiles(at, 0.001)
    assert model.predict_quantiles(at, 0.001, draws=2048).shape == (2, 2)


def test_other_bases_are_drawn_from():
    make = lambda features, context: discrete.NormalizingFlow(
        discrete.Compose(discrete.Autoregressive(discrete.Affine(), features, context=context)),
        bases.StudentT(features, 5.0),
    )
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    model = ConditionalFlowDensity(make, max_steps=5, random_state=0).fit(X, X[:, 0] + rng.normal(size=200))
    assert np.array_equal(model.predict(X[:3]), model.predict(X[:3]))
    assert (np.diff(model.predict_quantiles(X[:3], [0.2, 0.8])) > 0).all()


def test_tools_of_scikit_learn_take_it(line, tmp_path):
    X, y = line[0][:200], line[1][:200]
    model = ConditionalFlowDensity(**SMALL)
    assert cross_val_score(model, X, y, cv=2).shape == (2,)
    assert GridSearchCV(model, {"max_steps": [1, 30]}, cv=2).fit(X, y).best_params_ == {"max_steps": 30}
    fitted = model.fit(X, y, sample_weight=np.ones(200))
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.score_samples(X, y), fitted.score_samples(X, y))
    flow = cflow.load(cflow.save(fitted.flow_, tmp_path / "model"))
    with torch.no_grad():  # features as given are its context
        scores = flow.log_prob(torch.tensor(y)[:, None], torch.tensor(X))
    assert np.array_equal(scores.numpy(), fitted.score_samples(X, y))


def test_bad_input_is_refused_with_what_to_do(line):
    X, y = line[0][:100], line[1][:100]
    model = ConditionalFlowDensity(**SMALL)
    with pytest.raises(ValueError, match="requires y to be passed.*or use FlowDensity"):
        model.fit(X, None)
    with pytest.raises(ValueError, match=r"y has shape \(99,\), but X has 100 rows"):
        model.fit(X, y[:99])
    with pytest.raises(ValueError, match=r"\(X, y\): 1 of 100 rows have NaN or inf \(rows 7\)"):
        model.fit(X, np.where(np.arange(100) == 7, np.nan, y))
    with pytest.raises(ValueError, match=r"column y\[0\] is constant"):
        model.fit(X, np.ones(100))
    with pytest.raises(ValueError, match="could not convert.*Pass numbers"):
        model.fit(X, ["a"] * 100)
    with pytest.warns(UserWarning, match=r"column y\[0\] has whole, rounded or few .* \(smallest step 1\)"):
        model.fit(np.round(X), np.round(y / 1e3))  # rounded features do no harm
    model.fit(X, y)
    with pytest.raises(ValueError, match="X has 2 features.*the 1 features that fit was given"):
        model.predict(np.hstack([X, X]))
    with pytest.raises(ValueError, match="y has 2 targets per row, but fit was given 1"):
        model.score_samples(X, np.stack([y, y], 1))
    with pytest.raises(ValueError, match="q is not between 0 and 1"):
        model.predict_quantiles(X, 1.0)
    with pytest.raises(ValueError, match="q is not between 0 and 1"):
        model.predict_quantiles(X, [])
    with pytest.raises(ValueError, match="pass a probability"):
        model.predict_interval(X, coverage=90)
    with pytest.raises(ValueError, match="2 latents or more"):
        model.predict(X, draws=1)
    with pytest.raises(ValueError, match="whole number"):
        model.sample(X, 0)
