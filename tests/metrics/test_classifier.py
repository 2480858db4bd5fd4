import math

import pytest
import scipy.stats
import torch

from cflow.metrics import classifier_two_sample


def test_knows_equal_from_different(generator):
    x, y = torch.randn(2, 400, 2, generator=generator)
    same = classifier_two_sample(x, y, seed=1)
    assert abs(same.value - 0.5) < 4 * same.standard_error
    apart = classifier_two_sample(x, y + 20.0, seed=1)
    assert apart.value == 1.0
    assert classifier_two_sample(x, y, seed=1) == same


def test_reaches_the_best_possible_accuracy(generator):
    from sklearn.linear_model import LogisticRegression

    # Two unit normals 2 apart: the best rule errs with probability Phi(-1), and unequal sizes do not move it.
    x, y = torch.randn(600, 1, generator=generator), torch.randn(600, 1, generator=generator) + 2
    found = classifier_two_sample(x, y, classifier=LogisticRegression())
    best = scipy.stats.norm.cdf(1.0)
    assert abs(found.value - best) < 4 * found.standard_error
    assert found.standard_error == pytest.approx(math.sqrt(best * (1 - best) / 1200), rel=0.1)
    balanced = classifier_two_sample(x, y[:200], classifier=LogisticRegression(class_weight="balanced"))
    assert abs(balanced.value - best) < 4 * balanced.standard_error


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="at least 5 samples"):
        classifier_two_sample(torch.zeros(3, 2), torch.zeros(9, 2))
    with pytest.raises(ValueError, match="folds=1"):
        classifier_two_sample(torch.zeros(9, 2), torch.zeros(9, 2), folds=1)
