import numpy as np
import pytest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import ShuffleSplit, cross_val_score
from sklearn.neighbors import KernelDensity

from cflow.density import Comparison, ConditionalFlowDensity, FlowDensity, compare


@pytest.fixture(scope="module")
def two():
    rng = np.random.default_rng(0)
    return np.concatenate([rng.normal(-3, 1, (150, 2)), rng.normal(3, 1, (150, 2))])


def test_models_of_all_kinds_are_compared_row_by_row(two):
    flow = FlowDensity("gf", flow_options={"layers": 2, "components": 4}, max_steps=80, lr=2e-2, random_state=0)
    models = {"normal": GaussianMixture(1), "kernels": KernelDensity(bandwidth=0.5), "flow": flow}
    found = compare(models, two, cv=3)
    assert found.names == ("normal", "kernels", "flow")
    assert found.scores.shape == (3, 300)
    assert np.array_equal(found.rows, np.arange(300))
    assert found.means["kernels"] > found.means["normal"] + 0.5
    assert found.means["flow"] > found.means["normal"]
    assert found.differences["normal"] == (0.0, 0.0)
    change, error = found.differences["kernels"]
    assert change == pytest.approx(found.means["kernels"] - found.means["normal"])
    assert error == pytest.approx((found.scores[1] - found.scores[0]).std(ddof=1) / np.sqrt(300))
    assert found.errors["normal"] == pytest.approx(found.scores[0].std(ddof=1) / np.sqrt(300))
    lines = str(found).splitlines()
    assert lines[0].split() == ["model", "nats", "per", "row", "over", "normal"]
    assert lines[-1].startswith("normal")


def test_held_out_scores_are_those_of_cross_validation(two):
    splitter = ShuffleSplit(4, test_size=0.2, random_state=0)
    found = compare({"normal": GaussianMixture(1)}, two, cv=splitter)
    by_fold = cross_val_score(GaussianMixture(1), two, cv=splitter)
    counts = np.zeros(300)
    for _, held in splitter.split(two):
        counts[held] += 1
    assert np.array_equal(found.rows, np.flatnonzero(counts))
    assert (found.scores[0] * counts[found.rows]).sum() / 60 == pytest.approx(by_fold.sum())
    assert np.array_equal(
        compare({"a": GaussianMixture(1)}, two).scores, compare({"a": GaussianMixture(1)}, two).scores
    )


def test_errors_of_paired_differences_are_smaller_than_those_of_means():
    rng = np.random.default_rng(0)
    hard = rng.normal(size=500)
    scores = np.stack([hard, hard + 0.1 + 0.01 * rng.normal(size=500)])
    found = Comparison(("a", "b"), scores, np.arange(500), "a")
    change, error = found.differences["b"]
    assert abs(change - 0.1) < 5 * error < 0.01 < found.errors["b"]


def test_conditional_models_are_compared_given_the_features():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(200, 1))
    y = X[:, 0] + 0.2 * rng.normal(size=200)
    options = {"flow_options": {"layers": 1, "hidden": (8,)}, "lr": 2e-2, "random_state": 0}
    models = {"untrained": ConditionalFlowDensity("maf", max_steps=1, **options)}
    models["trained"] = ConditionalFlowDensity("maf", max_steps=60, **options)
    found = compare(models, X, y, cv=2)
    assert found.differences["trained"][0] > 3 * found.differences["trained"][1] > 0


def test_what_cannot_be_compared_is_refused(two):
    with pytest.raises(ValueError, match="there are no models"):
        compare({}, two)
    with pytest.raises(TypeError, match="this has no score_samples"):
        compare({"class": GaussianMixture}, two)
    with pytest.raises(TypeError, match="this has no score_samples"):
        compare({"string": "nsf"}, two)
    with pytest.raises(ValueError, match="pass one of a"):
        compare({"a": GaussianMixture(1)}, two, reference="b")

    class Broken(GaussianMixture):
        def score_samples(self, X):
            return np.full((len(X), 2), np.nan)

    with pytest.raises(ValueError, match=r"broken\): score_samples returned shape \(60, 2\) with 120 NaN"):
        compare({"broken": Broken(1)}, two)
