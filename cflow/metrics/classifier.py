"""The classifier two-sample test."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from cflow.metrics.estimate import Estimate, two_samples

__all__ = ["classifier_two_sample"]


def classifier_two_sample(x: Tensor, y: Tensor, *, classifier: Any = None, folds: int = 5, seed: int = 0) -> Estimate:
    r"""Measures how well a classifier tells two samples apart: 1/2 means not at all, 1 means every time.

    The value is the balanced accuracy (the mean over the two samples of the share recognised), cross-validated, so
    samples of unequal sizes compare too. The standard error is that of counting hits among the held-out rows:

    .. math:: \tfrac12 \sqrt{a_x (1 - a_x) / N + a_y (1 - a_y) / M}

    ``classifier`` is any scikit-learn classifier; ``None`` takes a network with two hidden layers of 10 D units (at
    least 32), as the simulation-based inference benchmark does, on standardised features.

    Shapes: ``x [N, D]``, ``y [M, D]``. Cost: ``folds`` trainings on the CPU: seconds for 2,000 rows.

    Raises:
        ValueError: if the samples are not ``[N, D]`` and ``[M, D]``, have fewer rows than ``folds``, or hold values
            that are not finite; if ``folds`` is below 2.

    Source: Lopez-Paz and Oquab, Revisiting Classifier Two-Sample Tests, 2016, arXiv:1610.06545;
    Lueckmann et al., Benchmarking Simulation-Based Inference, 2021, arXiv:2101.04653.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if folds < 2:
        raise ValueError(f"classifier_two_sample(folds={folds}): cross-validation takes at least two folds; pass 5.")
    x, y = two_samples("classifier_two_sample", x, y, at_least=folds)
    if classifier is None:
        width = max(32, 10 * x.shape[1])
        network = MLPClassifier((width, width), max_iter=1000, early_stopping=True, random_state=seed)
        classifier = make_pipeline(StandardScaler(), network)
    rows = torch.cat([x, y]).cpu().numpy()
    labels = torch.cat([torch.zeros(len(x)), torch.ones(len(y))]).long().numpy()
    split = StratifiedKFold(folds, shuffle=True, random_state=seed)
    hits = torch.from_numpy(cross_val_predict(classifier, rows, labels, cv=split) == labels).to(torch.float64)
    shares = [float(part.mean()) for part in hits.split([len(x), len(y)])]
    variance = sum(share * (1 - share) / count for share, count in zip(shares, (len(x), len(y))))
    return Estimate(sum(shares) / 2, math.sqrt(variance) / 2)
