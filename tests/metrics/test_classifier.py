"""The classifier test against the best possible accuracy, which two normals of unit variance have in closed form."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LinearRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures
from sklearn.svm import OneClassSVM

from cflow.metrics import classifier_two_sample

LINEAR = LinearDiscriminantAnalysis()


def normals(shift, sizes, generator, features=2):
    """Two samples of unit normals that are ``shift`` apart: the best rule is right with probability Phi(shift / 2)."""
    direction = torch.full((features,), shift / math.sqrt(features))
    x, y = (torch.randn(size, features, generator=generator) for size in sizes)
    return x + direction, y


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("sizes", [(400, 400), (2000, 200), (100, 1500)])
@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, 4.0])
def test_a_linear_rule_reaches_the_best_accuracy_at_every_shift_and_share(shift, sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    x, y = normals(shift, sizes, generator)
    found = classifier_two_sample(x, y, classifier=LINEAR, seed=seed)
    # Learning from 80 rows at least costs some 0.005; the error bar is an upper one. Fails once in 10,000 seeds.
    assert abs(found.value - scipy.stats.norm.cdf(shift / 2)) < 4 * found.standard_error + 0.005
    assert 0 < found.standard_error < 0.05


@pytest.mark.parametrize(
    ("shift", "sizes"), [(0.0, (300, 300)), (1.0, (600, 600)), (2.0, (2000, 200)), (3.0, (60, 300))]
)
def test_the_default_network_reaches_it_too(shift, sizes, generator):
    x, y = normals(shift, sizes, generator, features=1)
    best = scipy.stats.norm.cdf(shift / 2)
    for pair in ((x, y), (y, x)):
        found = classifier_two_sample(*pair)
        assert abs(found.value - best) < 4 * found.standard_error
        assert found.standard_error < 0.05


@pytest.mark.parametrize("seed", range(4))
def test_samples_without_spread_are_told_apart(seed):
    one, zero = torch.ones(50, 2), torch.zeros(50, 2)
    for classifier in (None, RandomForestClassifier(10), LINEAR):
        found = classifier_two_sample(one, zero, classifier=classifier, seed=seed)
        assert found.value == 1.0
        assert 0.01 < found.standard_error < 0.03  # of 100 rows, all hit


def test_one_sample_without_spread_is_told_from_a_normal(generator):
    """The best tree puts the constant in a leaf of its own; the normal's rows never fall there."""
    constant, normal = torch.full((80, 1), 0.3), torch.randn(80, 1, generator=generator)
    for pair in ((constant, normal), (normal, constant)):
        assert classifier_two_sample(*pair, classifier=RandomForestClassifier(20)).value > 0.95


def test_equal_constants_cannot_be_told_apart():
    same = torch.full((40, 3), 7.0)
    for classifier in (None, RandomForestClassifier(5)):
        found = classifier_two_sample(same, same, classifier=classifier)
        assert found.value == 0.5
        assert found.standard_error > 0


def test_a_constant_answer_is_worth_a_half_and_has_an_error(generator):
    x, y = normals(3.0, (500, 50), generator)
    found = classifier_two_sample(x, y, classifier=DummyClassifier(strategy="constant", constant=1))
    assert found.value == 0.5
    # Shares of 1 and 0, drawn towards a half.
    shares = [(1 / 502, 500), (51 / 52, 50)]
    wanted = math.sqrt((2 - 1 / 5) * sum(share * (1 - share) / size for share, size in shares)) / 2
    assert found.standard_error == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(("shift", "sizes"), [(0.0, (60, 60)), (0.5, (120, 40))])
def test_the_error_bar_covers(shift, sizes):
    """A classifier that follows single rows varies with what it learned from: counting hits falls a quarter short."""
    values, errors = [], []
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        found = classifier_two_sample(*normals(shift, sizes, generator), classifier=KNeighborsClassifier(5), seed=seed)
        values.append(found.value)
        errors.append(found.standard_error)
    ratio = np.sqrt(np.mean(np.square(errors))) / np.std(values, ddof=1)
    # 100 repetitions know the spread within 7 %.
    assert 0.83 < ratio < 1.4


def test_a_forest_is_judged_as_scikit_learn_does_it_by_hand(generator):
    """The shares recognised in stratified folds, columns in units of the reference."""
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = normals(1.0, (150, 150), generator)
    forest = make_pipeline(PolynomialFeatures(2), KNeighborsClassifier(7))  # squares are not free of units
    rows = ((torch.cat([x, y]) - y.mean(0)) / y.std(0)).double().numpy()
    labels = np.repeat([0, 1], 150)
    split = StratifiedKFold(4, shuffle=True, random_state=3)
    wanted = balanced_accuracy_score(labels, cross_val_predict(forest, rows, labels, cv=split))
    assert classifier_two_sample(x, y, classifier=forest, folds=4, seed=3).value == pytest.approx(wanted, abs=1e-12)


def test_units_and_places_do_not_matter(generator):
    x, y = normals(1.0, (200, 200), generator)
    x, y = x.double(), y.double()
    found = classifier_two_sample(x, y, classifier=KNeighborsClassifier(5))
    scale, place = torch.tensor([1e-6, 1e4], dtype=torch.float64), torch.tensor([5.0, -1e5], dtype=torch.float64)
    assert classifier_two_sample(x * scale + place, y * scale + place, classifier=KNeighborsClassifier(5)) == found


def test_a_seed_fixes_everything_that_draws(generator):
    x, y = normals(0.5, (120, 60), generator, features=1)
    state = np.random.get_state()[1].copy()  # noqa: NPY002
    for classifier in (
        None,
        RandomForestClassifier(10),
        make_pipeline(PolynomialFeatures(2), RandomForestClassifier(10)),
    ):
        first, second, other = (classifier_two_sample(x, y, classifier=classifier, seed=seed) for seed in (1, 1, 2))
        assert first == second
        assert first != other
    chosen = RandomForestClassifier(10, random_state=5)
    classifier_two_sample(x, y, classifier=chosen)
    assert chosen.random_state == 5
    assert not hasattr(chosen, "estimators_")  # a copy was trained
    assert np.array_equal(np.random.get_state()[1], state)  # noqa: NPY002


def test_any_object_with_the_methods_is_a_classifier(generator):
    class Sign:
        """Says which side of the middle between the means a row is on; knows nothing of scikit-learn."""

        def get_params(self, deep=False):
            return {}

        def fit(self, rows, labels):
            means = [rows[labels == label].mean(0) for label in (0, 1)]
            self.normal, self.middle = means[1] - means[0], (means[0] + means[1]) / 2
            return self

        def predict(self, rows):
            return ((rows - self.middle) @ self.normal > 0).astype(int)

        def set_params(self, **params):
            return self

    found = classifier_two_sample(*normals(2.0, (300, 300), generator), classifier=Sign())
    assert abs(found.value - scipy.stats.norm.cdf(1.0)) < 4 * found.standard_error


def test_a_network_too_large_for_the_memory_is_refused(generator):
    """Its weights grow with the square of the columns; another classifier takes as many as it can."""
    x, y = torch.randn(2, 10, 2000, generator=generator)
    with pytest.raises(ValueError, match=r"2000 columns\): .*GB; pass classifier=RandomForestClassifier\(\)"):
        classifier_two_sample(x, y)
    assert 0 <= classifier_two_sample(x, y, classifier=RandomForestClassifier(2)).value <= 1


def test_bad_input_is_refused():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="at least 5 samples"):
        classifier_two_sample(x[:3], x)
    with pytest.raises(ValueError, match="folds=1"):
        classifier_two_sample(x, x, folds=1)
    for folds in (2.5, "5", True, None):
        with pytest.raises(ValueError, match=r"folds=.*: cross-validation needs at least two folds; pass 5"):
            classifier_two_sample(x, x, folds=folds)
    for seed in (-1, 1.5, 2**32, None, "a"):
        with pytest.raises(ValueError, match=r"seed=.*whole numbers from 0 to 2\^32 - 1; pass seed=0"):
            classifier_two_sample(x, x, seed=seed)
    for classifier in (LinearDiscriminantAnalysis(), KNeighborsClassifier(5)):
        with pytest.raises(ValueError, match="it cannot learn from 2 rows .*; draw more samples"):
            classifier_two_sample(x[:2], x[2:4], folds=2, classifier=classifier)
    same = classifier_two_sample(x, x + 1, classifier=KNeighborsClassifier(2))
    assert same == classifier_two_sample(
        x, x + 1, classifier=KNeighborsClassifier(2), folds=np.int64(5), seed=np.uint8(0)
    )
    with pytest.raises(TypeError, match=r"classifier=<class .*an object \(not a class\)"):
        classifier_two_sample(x, x, classifier=RandomForestClassifier)
    with pytest.raises(TypeError, match="classifier='forest'"):
        classifier_two_sample(x, x, classifier="forest")
    for wrong in (LinearRegression(), OneClassSVM()):
        with pytest.raises(ValueError, match="labels are 0 and 1; pass a classifier"):
            classifier_two_sample(x, x, classifier=wrong)
