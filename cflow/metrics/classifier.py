"""The classifier two-sample test."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import check_integer, is_integer, plain
from cflow.metrics.estimate import Estimate, two_samples

__all__ = ["classifier_two_sample"]

MEMORY = 1 << 30  # bytes that the default network may take: that of 550 features


def classifier_two_sample(
    x: Tensor, reference: Tensor, *, classifier: Any = None, folds: int = 5, seed: int = 0
) -> Estimate:
    r"""Measures how well a classifier distinguishes two samples (C2ST): 1/2 means not at all, 1 means always.

    .. math:: \tfrac12 (a_x + a_r), \qquad \text{standard error } \tfrac12 \sqrt{2 - \tfrac1{\text{folds}}}
        \sqrt{\frac{\tilde a_x (1 - \tilde a_x)}{N} + \frac{\tilde a_r (1 - \tilde a_r)}{M}}, \qquad
        \tilde a = \frac{n a + 1}{n + 2}

    where :math:`a_x` and :math:`a_r` are the shares of correctly classified held-out rows of each sample. Both samples
    have equal weight for any sizes: each training draws as many rows of the larger sample as the smaller one has (other
    rows for each fold), and every row is held out once. A classifier that always returns the same label has 1/2. The
    standard error is that of counting correct rows, times a factor for the correlation of folds, which train on each
    other's rows; it depends on the share of held-out rows (Nadeau and Bengio). It is right for flexible classifiers
    (neighbours, forests), up to a third too large for rigid ones, and never zero, since its shares are shrunk a little
    towards 1/2.

    The default is the protocol of the simulation-based inference benchmark (sbibm): columns standardised by the
    reference sample; a network of two hidden layers of 10 D ReLU units; Adam until the loss stops decreasing (at most
    10,000 epochs) without early stopping; shuffled folds, which are also stratified here. For samples of equal size the
    values compare with those published for that benchmark. Other papers use a random forest,
    ``classifier=RandomForestClassifier()``. Always report the classifier together with the value.
    ``classifier=LinearDiscriminantAnalysis()`` takes milliseconds and detects only differences of means.

    The value is a lower bound: the best possible rule has :math:`\tfrac12 + \tfrac12 \mathrm{TV}(p, q)`. Rows that
    occur in both samples lower the value, even below 1/2, since the classifier has learned each with the other label.

    Args:
        x: ``[N, D]``, the sample to judge.
        reference: ``[M, D]``, the sample to compare with; it sets the units of all columns. A column that is constant
            in it has the standard deviation of both samples together as its unit.
        classifier: any classifier with scikit-learn's methods (``fit``, ``predict``, ``get_params``). It is not
            changed: each fold trains a copy on the standardised columns. A ``random_state`` of ``None`` becomes
            ``seed``. Default: the network of sbibm.
        folds: number of parts of the data, each held out once.
        seed: seed of the folds, of the rows that balance them, and of the network's initial weights.

    Cost: ``folds`` trainings on the CPU; for two samples of 2,000 rows in 2 or 5 dimensions 2 or 17 seconds (a random
    forest: 2 or 4).

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, have fewer rows than ``folds``, or have values
            that are not finite; if ``folds`` is below 2, ``seed`` is negative or beyond 32 bits, ``classifier`` cannot
            learn from so few rows or returns other values than labels, or the default network would take more than a
            gigabyte (beyond 550 columns).
        TypeError: if scikit-learn cannot copy ``classifier``.

    Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, 2016, arXiv:1610.06545;
    Lueckmann et al., Benchmarking Simulation-Based Inference, 2021, arXiv:2101.04653 (the protocol); Nadeau and Bengio,
    Inference for the Generalization Error, 2003 (the correlation of folds).

    Example:
        >>> from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
        >>> x = torch.randn(1000, 2, generator=torch.Generator().manual_seed(0))
        >>> print(classifier_two_sample(x - 3.0, x + 3.0, classifier=LinearDiscriminantAnalysis()))
        1 ± 0.00095
    """
    import numpy as np
    from sklearn.base import clone
    from sklearn.model_selection import StratifiedKFold

    name = "classifier_two_sample"
    check_integer(name, "folds", folds, 2, "cross-validation needs at least two folds; pass 5.", numpy=True)
    if not is_integer(seed, 0, numpy=True) or seed >= 1 << 32:
        raise ValueError(f"{name}(seed={seed!r:.60}): seeds are whole numbers from 0 to 2^32 - 1; pass seed=0.")
    folds, seed = plain(folds), plain(seed)
    x, reference = _standardised(*two_samples("classifier_two_sample", x, reference, at_least=folds))
    if classifier is None:
        _check_memory(x.shape[1])
    classifier = _seeded(classifier, x.shape[1], seed)
    sizes = (len(x), len(reference))
    rows, labels = torch.cat([x, reference]).cpu().numpy(), np.repeat([0, 1], sizes)
    balance, hits = np.random.default_rng(seed), np.zeros(len(labels), dtype=bool)
    for train, test in StratifiedKFold(folds, shuffle=True, random_state=seed).split(rows, labels):
        parts = [train[labels[train] == label] for label in (0, 1)]
        fewest = min(map(len, parts))
        train = np.sort(np.concatenate([balance.permutation(part)[:fewest] for part in parts]))
        try:
            answers = clone(classifier).fit(rows[train], labels[train]).predict(rows[test])
        except ValueError as error:
            raise ValueError(
                f"classifier_two_sample(classifier={classifier!r:.60}): it cannot learn from {len(train)} rows "
                f"({error!s:.80}); draw more samples, or pass another classifier."
            ) from error
        if not np.isin(answers, (0, 1)).all():
            raise ValueError(
                f"classifier_two_sample(classifier={classifier!r:.60}): it returned {answers.flat[0]!r}, but labels "
                f"are 0 and 1; pass a classifier, not a regressor."
            )
        hits[test] = answers == labels[test]
    counts = [int(part.sum()) for part in np.split(hits, [len(x)])]
    value = sum(count / size for count, size in zip(counts, sizes)) / 2
    smoothed = [((count + 1) / (size + 2), size) for count, size in zip(counts, sizes)]
    counting = sum(share * (1 - share) / size for share, size in smoothed)
    return Estimate(value, math.sqrt((2 - 1 / folds) * counting) / 2)


def _standardised(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Returns both samples in units of the reference's columns, or of both together if a column is constant there."""
    both = torch.cat([x, reference])
    scale = torch.where(reference.std(0) > 0, reference.std(0), both.std(0))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x - reference.mean(0)) / scale, (reference - reference.mean(0)) / scale


def _check_memory(features: int) -> None:
    """Raises if the network of the benchmark is too large: its size grows with the square of the features."""
    width = 10 * features
    weights = features * width + width * width + width + 2 * width + 1
    # In float64: the weights, their gradients, and Adam's two moments.
    size = 4 * 8 * weights
    if size > MEMORY:
        raise ValueError(
            f"classifier_two_sample(samples of {features} columns): the default network would take {size / 1e9:.3g} "
            f"GB; pass classifier=RandomForestClassifier(), or fewer columns."
        )


def _seeded(classifier: Any, features: int, seed: int) -> Any:
    """Returns a copy that uses ``seed`` where no ``random_state`` is set; by default the network of the benchmark."""
    from sklearn.base import clone
    from sklearn.neural_network import MLPClassifier

    if classifier is None:
        return MLPClassifier((10 * features, 10 * features), max_iter=10_000, random_state=seed)
    try:
        copy = clone(classifier)
    except TypeError as error:
        raise TypeError(
            f"classifier_two_sample(classifier={classifier!r:.60}): scikit-learn cannot copy it; pass an object (not a "
            f"class), such as RandomForestClassifier()."
        ) from error
    seeds = {name: value for name, value in copy.get_params().items() if name.split("__")[-1] == "random_state"}
    return copy.set_params(**{name: seed for name, value in seeds.items() if value is None})
