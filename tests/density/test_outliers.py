import pickle

import numpy as np
import pytest
from scipy.stats import binom, kstest
from sklearn.base import BaseEstimator, clone
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity

from cflow.density import FlowDensity, FlowOutlierDetector


class Identity(BaseEstimator):
    """Scores a row by its first value: fitting changes nothing."""

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return np.asarray(X)[:, 0]


@pytest.fixture(scope="module")
def flow():
    rng = np.random.default_rng(0)
    density = FlowDensity("maf", flow_options={"layers": 1, "hidden": (8,)}, max_steps=30, check_every=10)
    return FlowOutlierDetector(density, contamination=0.05, calibration_fraction=0.5, random_state=0).fit(
        rng.normal(size=(4000, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    )


def test_fresh_inliers_are_flagged_at_the_stated_rate(flow):
    """Within the 99.99 % interval of a binomial whose rate is itself one of 2000 calibration rows."""
    fresh = np.random.default_rng(1).normal(size=(4000, 2)) @ [[1.0, 0.8], [0.0, 0.6]]
    flagged = (flow.predict(fresh) == -1).sum()
    # The two errors add: 4 binomial deviations of each of the samples.
    deviation = 4 * np.sqrt(0.05 * 0.95 * (1 / 4000 + 1 / 2000))
    assert flagged / 4000 == pytest.approx(0.05, abs=deviation)
    assert (flow.predict([[3.0, -3.0], [8.0, 8.0]]) == -1).all()
    assert kstest(flow.p_values(fresh), "uniform").pvalue > 1e-4


def test_decisions_p_values_and_the_threshold_agree(flow):
    X = np.random.default_rng(2).normal(size=(500, 2)) * 2
    assert np.array_equal(flow.predict(X) == -1, flow.p_values(X) <= 0.05)
    assert np.array_equal(flow.predict(X) == -1, flow.decision_function(X) < 0)
    assert np.allclose(flow.decision_function(X) + flow.offset_, flow.score_samples(X))
    scores = flow.calibration_scores_
    assert len(scores) == 2000
    assert flow.offset_ == scores[int(0.05 * 2001) - 1]
    again = pickle.loads(pickle.dumps(flow))
    assert np.array_equal(again.p_values(X), flow.p_values(X))


@pytest.mark.parametrize(("rows", "contamination"), [(40, 0.1), (76, 0.25), (36, 0.3)])
def test_the_rate_is_exact_over_draws_of_the_calibration_rows(rows, contamination):
    """For n calibration rows P(p <= a) = floor(a (n + 1)) / (n + 1); a binomial test that fails once in 10,000."""
    rng = np.random.default_rng(0)
    detector = FlowOutlierDetector(Identity(), contamination=contamination, random_state=0)
    flags = [detector.fit(rng.normal(size=(rows, 1))).predict(rng.normal(size=(1, 1)))[0] == -1 for _ in range(1500)]
    n = round(0.25 * rows)
    rate = np.floor(contamination * (n + 1)) / (n + 1)
    low, high = binom.interval(0.9999, 1500, rate)
    assert low <= sum(flags) <= high


def test_equal_scores_are_counted_against_an_outlier():
    """A p-value counts the calibration rows that score as low: with ties it is large, and never too small."""
    detector = FlowOutlierDetector(Identity(), contamination=0.2, random_state=0)
    detector.fit(np.repeat([[1.0], [2.0]], 200, 0))
    low = int((detector.calibration_scores_ == 1.0).sum())
    assert detector.p_values([[0.5], [1.0], [1.5], [2.0]]).tolist() == [1 / 101, (1 + low) / 101, (1 + low) / 101, 1.0]
    assert detector.predict([[0.5], [1.0]]).tolist() == [-1, 1]


def test_thresholds_of_training_rows_would_not_hold():
    """What the held-out rows are for: a density that is made high at its own rows flags far too many fresh ones."""
    rng = np.random.default_rng(0)
    X, fresh = rng.normal(size=(400, 3)), rng.normal(size=(3000, 3))
    detector = FlowOutlierDetector(KernelDensity(bandwidth=0.1), contamination=0.1, random_state=0).fit(X)
    assert (detector.predict(fresh) == -1).mean() == pytest.approx(0.1, abs=0.13)
    density = KernelDensity(bandwidth=0.1).fit(X)
    naive = np.quantile(density.score_samples(X), 0.1)
    assert (density.score_samples(fresh) < naive).mean() > 0.5


def test_any_density_is_calibrated_and_none_is_changed():
    X = np.random.default_rng(0).normal(size=(400, 2))
    mixture = GaussianMixture(2)
    detector = FlowOutlierDetector(mixture, contamination=0.1, random_state=3).fit(X)
    assert not hasattr(mixture, "means_")
    assert detector.density_.random_state == 3
    assert clone(detector).get_params()["density__n_components"] == 2
    assert detector.fit_predict(X).shape == (400,)
    seeded = FlowOutlierDetector(GaussianMixture(2, random_state=5), contamination=0.1, random_state=3).fit(X)
    assert seeded.density_.random_state == 5


def test_bad_input_is_refused_and_few_rows_are_warned_of():
    X = np.random.default_rng(0).normal(size=(100, 2))
    detector = FlowOutlierDetector(GaussianMixture(1), random_state=0)
    with pytest.warns(UserWarning, match=r"25 calibration rows cannot resolve p-values below 0.0385.*use 99 or more"):
        detector.fit(X)
    assert detector.offset_ == detector.calibration_scores_[0]
    for options, message in (
        ({"contamination": 0.0}, r"contamination=0.0.*\(0, 0.5\]"),
        ({"contamination": 0.6}, "contamination=0.6"),
        ({"calibration_fraction": 1.0}, "calibration_fraction=1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            clone(detector).set_params(**options).fit(X)
    with pytest.raises(ValueError, match="n_samples = 1 cannot be split.*about 99"):
        clone(detector).fit(X[:1])
    with pytest.raises(ValueError, match="X has 3 features.*the 2 features that fit was given"):
        detector.predict(np.zeros((2, 3)))
    X[5, 0] = np.nan
    with pytest.raises(ValueError, match=r"rows 5\)"):
        detector.p_values(X)


class Overflowing(Identity):
    """Scores a row by its first value, and gives NaN above 100."""

    def score_samples(self, X):
        return np.where(np.asarray(X)[:, 0] > 100, np.nan, np.asarray(X)[:, 0])


def test_a_score_that_is_no_number_is_an_outlier_or_an_error():
    rng = np.random.default_rng(0)
    detector = FlowOutlierDetector(Overflowing(), contamination=0.1, random_state=0).fit(rng.normal(size=(400, 1)))
    X = [[1.0], [1000.0], [-1000.0]]
    assert detector.predict(X).tolist() == [1, -1, -1]
    assert detector.p_values(X)[1:] == pytest.approx(1 / 101)
    assert detector.decision_function(X)[1] == -np.inf
    with pytest.raises(ValueError, match="NaN for 100 of 100 calibration rows"):
        detector.fit(rng.normal(size=(400, 1)) + 1000)


def test_calibration_rows_without_a_density_are_the_lowest():
    """Where more of them than the rate of false alarms have none, no score is below the threshold."""
    rows = np.where(np.arange(400) % 2, -np.inf, 1.0)[:, None]
    detector = FlowOutlierDetector(Identity(), contamination=0.1, random_state=0)
    detector.density_, detector.calibration_scores_, detector.offset_ = Identity(), np.sort(rows[:, 0]), -np.inf
    detector.score_samples = lambda X: np.asarray(X)[:, 0]
    assert detector.decision_function(rows[:2]).tolist() == [np.inf, 0.0]
    assert detector.predict(rows[:2]).tolist() == [1, 1]


@pytest.mark.parametrize("options", [{"contamination": "auto"}, {"calibration_fraction": None}])
def test_shares_that_are_no_numbers_are_refused_by_name(options):
    with pytest.raises(ValueError, match=rf"FlowOutlierDetector\({next(iter(options))}=.*pass a share"):
        FlowOutlierDetector(Identity(), **options).fit(np.zeros((50, 2)))
