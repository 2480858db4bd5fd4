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
    r"""Measures how well a classifier distinguishes two samples: 1/2 means not at all, 1 means every time (C2ST).

    .. math:: \tfrac12 (a_x + a_r), \qquad \text{standard error } \tfrac12 \sqrt{2 - \tfrac1{\text{folds}}}
        \sqrt{\frac{\tilde a_x (1 - \tilde a_x)}{N} + \frac{\tilde a_r (1 - \tilde a_r)}{M}}, \qquad
        \tilde a = \frac{n a + 1}{n + 2}

    where :math:`a_x` and :math:`a_r` are the shares of the rows of each sample that are recognised while held out. Both
    samples count alike whatever their sizes: each training takes as many rows of the larger one as there are of the
    smaller (drawn anew for each fold), and every row is held out once. A classifier that always gives the same answer
    has 1/2. The standard error is that of counting hits, times what learning adds: two folds learn from each other's
    rows and correlate, by the share of the rows that is held out (Nadeau and Bengio). It is right for classifiers that
    follow single rows (neighbours, forests), up to a third too large for stiff ones, and never zero, since its shares
    are drawn a little towards 1/2.

    By default the protocol of the simulation-based inference benchmark (sbibm): columns standardised by the reference
    sample, a network of two hidden layers of 10 D ReLU units, trained by Adam until its loss stops falling (10,000
    epochs at most) without early stopping, on shuffled folds; here these are stratified too. With samples of equal size
    the figures compare with those published for that benchmark. Others are of a random forest,
    ``classifier=RandomForestClassifier()``; a figure means little without the name of its classifier. A cheap one is
    ``classifier=LinearDiscriminantAnalysis()``, milliseconds, which sees differences of means alone.

    What a classifier finds is a lower bound of what there is: the best possible rule has
    :math:`\tfrac12 + \tfrac12 \mathrm{TV}(p, q)`. Rows that both samples share pull the value below 1/2, since each has
    been learned with the other's label.

    Args:
        x: ``[N, D]``, the sample to judge.
        reference: ``[M, D]``, what it should be like; sets the units of all columns. A column that is constant there is
            in units of its deviation in both samples together.
        classifier: any classifier with scikit-learn's methods (``fit``, ``predict``, ``get_params``), left as it is: a
            copy is trained for each fold. A ``random_state`` of ``None`` becomes ``seed``. It gets the standardised
            columns.
        folds: parts of the data, each held out once.
        seed: of the folds, the rows that balance them, and the network's initial weights.

    Cost: ``folds`` trainings on the CPU; for two samples of 2,000 rows in 2 or 5 dimensions 2 or 17 seconds (a random
    forest: 2 or 4).

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, have fewer rows than ``folds``, or hold values
            that are not finite; if ``folds`` is below 2, ``seed`` is negative or beyond 32 bits, ``classifier`` cannot
            learn from so few rows, ``classifier`` answers with something else than labels, or
            the default network would take more than a gigabyte (beyond 550 columns).
        TypeError: if ``classifier`` is no object that scikit-learn can copy.

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
    check_integer(name, "folds", folds, 2, "cross-validation takes at least two folds, counted; pass 5.", numpy=True)
    if not is_integer(seed, 0, numpy=True) or seed >= 1 << 32:
        raise ValueError(f"{name}(seed={seed!r:.60}): NumPy's draws are numbered from 0 to 2^32 - 1; pass seed=0.")
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
                f"classifier_two_sample(classifier={classifier!r:.60}): it cannot learn from the {len(train)} rows of "
                f"a fold ({error!s:.80}); draw more samples, or pass another classifier."
            ) from error
        if not np.isin(answers, (0, 1)).all():
            raise ValueError(
                f"classifier_two_sample(classifier={classifier!r:.60}): it answers {answers.flat[0]!r}, where the "
                f"labels are 0 and 1; pass a classifier, not a regressor or an outlier detector."
            )
        hits[test] = answers == labels[test]
    counts = [int(part.sum()) for part in np.split(hits, [len(x)])]
    value = sum(count / size for count, size in zip(counts, sizes)) / 2
    smoothed = [((count + 1) / (size + 2), size) for count, size in zip(counts, sizes)]
    counting = sum(share * (1 - share) / size for share, size in smoothed)
    return Estimate(value, math.sqrt((2 - 1 / folds) * counting) / 2)


def _standardised(x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """Gives both samples in units of the reference's columns, or of both together where that one is constant."""
    both = torch.cat([x, reference])
    scale = torch.where(reference.std(0) > 0, reference.std(0), both.std(0))
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return (x - reference.mean(0)) / scale, (reference - reference.mean(0)) / scale


def _check_memory(features: int) -> None:
    """Raises where the benchmark's network is too large: its weights grow with the square of the features."""
    width = 10 * features
    weights = features * width + width * width + width + 2 * width + 1
    # In float64: the weights, their gradients, and Adam's two moments.
    size = 4 * 8 * weights
    if size > MEMORY:
        raise ValueError(
            f"classifier_two_sample(samples of {features} columns): the default network of {width} x {width} units "
            f"would take {size / 1e9:.3g} GB; pass classifier=RandomForestClassifier(), or fewer columns."
        )


def _seeded(classifier: Any, features: int, seed: int) -> Any:
    """Gives a copy that draws by the seed wherever its owner has not chosen one; the benchmark's network by default."""
    from sklearn.base import clone
    from sklearn.neural_network import MLPClassifier

    if classifier is None:
        return MLPClassifier((10 * features, 10 * features), max_iter=10_000, random_state=seed)
    try:
        copy = clone(classifier)
    except TypeError as error:
        raise TypeError(
            f"classifier_two_sample(classifier={classifier!r:.60}): each fold trains a copy, and scikit-learn cannot "
            f"make one; pass an object (not a class) with its methods, such as RandomForestClassifier()."
        ) from error
    seeds = {name: value for name, value in copy.get_params().items() if name.split("__")[-1] == "random_state"}
    return copy.set_params(**{name: seed for name, value in seeds.items() if value is None})
