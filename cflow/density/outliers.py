"""An outlier detector: flags rows of low density, with a calibrated rate of false alarms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from cflow.density.density import FlowDensity
from cflow.density.inputs import features_of, is_number, seed_of, warn

__all__ = ["FlowOutlierDetector"]


class FlowOutlierDetector(OutlierMixin, BaseEstimator):
    r"""Flags rows of low density, with a rate of false alarms that holds for new rows.

    The rows are split into two parts. A density is fitted to the first part. The second part, the calibration rows, has
    scores :math:`s_1, \dots, s_n`, which are typical of unseen rows from the same distribution. The p-value of a new
    row of score ``s`` is

    .. math:: p = \frac{1 + \sum_i \mathbb 1[s_i \le s]}{n + 1}

    and the row is flagged if :math:`p \le` ``contamination``. For a row from the same distribution
    :math:`P(p \le \alpha) \le \alpha`, for any density, however well it fits (the probability includes the draw of the
    calibration rows). A better density finds more of the rows that come from another distribution. A threshold at a
    quantile of the training rows' scores has no such bound, since training raises the density at these rows.

    Args:
        density: an estimator with ``fit`` and ``score_samples``, also one of scikit-learn (``KernelDensity``,
            ``GaussianMixture``). Default: :class:`FlowDensity`.
        contamination: the share of rows from the training distribution that are flagged. This is the rate of false
            alarms if the training rows have no outliers.
        calibration_fraction: the share of the rows that is used for calibration.
        random_state: a seed of the split, a ``numpy.random.RandomState``, or None for a new split each time. A
            ``density`` whose ``random_state`` is None uses it too.

    Attributes:
        density_: the fitted density.
        calibration_scores_: the sorted scores of the calibration rows.
        offset_: the threshold; rows with scores below it are flagged.
        n_features_in_: the number of columns of the data.
        feature_names_in_: the names of the columns, if the data were a data frame.

    Raises:
        TypeError, ValueError: as :class:`FlowDensity`, and for a share that is out of range.

    A ``UserWarning`` reports too few calibration rows for ``contamination``.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World, 2005 (conformal p-values); Bates et al.,
    Testing for Outliers with Conformal p-values, 2021, arXiv:2104.08279.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> detector = FlowOutlierDetector(FlowDensity("maf", max_steps=20), contamination=0.05, random_state=0)
        >>> _ = detector.fit(rng.normal(size=(400, 2)))
        >>> detector.predict([[0.0, 0.0], [9.0, 9.0]])
        array([ 1, -1])
        >>> detector.p_values([[9.0, 9.0]]).round(4)
        array([0.0099])
    """

    def __init__(
        self,
        density: Any = None,
        *,
        contamination: float = 0.01,
        calibration_fraction: float = 0.25,
        random_state: Any = None,
    ):
        self.density = density
        self.contamination = contamination
        self.calibration_fraction = calibration_fraction
        self.random_state = random_state

    def fit(self, X: Any, y: Any = None) -> FlowOutlierDetector:
        """Fits the density to one part of the rows ``X [N, D]`` and calibrates on the rest; ``y`` is ignored."""
        for name, value, most in (
            ("contamination", self.contamination, 0.5),
            ("calibration_fraction", self.calibration_fraction, 0.9),
        ):
            if not (is_number(value) and 0 < value <= most):
                raise ValueError(f"FlowOutlierDetector({name}={value!r}): pass a share of the rows in (0, {most}].")
        table = features_of(self, X, "fit", reset=True)
        seed = seed_of(self.random_state)
        order = np.random.default_rng(seed).permutation(len(table))
        count, needed = round(self.calibration_fraction * len(table)), math.ceil(1 / self.contamination) - 1
        if not 0 < count < len(table):
            raise ValueError(
                f"FlowOutlierDetector.fit(X of shape {table.shape}): n_samples = {len(table)} cannot be split; "
                f"pass more rows, about {needed} for calibration alone."
            )
        density = FlowDensity() if self.density is None else clone(self.density)
        if "random_state" in density.get_params() and density.get_params()["random_state"] is None:
            density.set_params(random_state=seed)
        self.density_ = density.fit(table[order[count:]])
        scores = self.density_.score_samples(table[order[:count]])
        if np.isnan(scores).any():
            raise ValueError(
                f"FlowOutlierDetector.fit: the density is NaN for {int(np.isnan(scores).sum())} of {count} calibration "
                f"rows; check its fit."
            )
        self.calibration_scores_ = np.sort(scores)
        # p <= contamination for scores below the k-th smallest.
        k = int(np.floor(self.contamination * (count + 1) * (1 + 1e-12)))
        if k == 0:
            warn(
                f"FlowOutlierDetector.fit(contamination={self.contamination}): {count} calibration rows cannot resolve "
                f"p-values below {1 / (count + 1):.3g}, so about this share is flagged instead; use {needed} or more "
                f"calibration rows, or a larger contamination."
            )
        self.offset_ = float(self.calibration_scores_[max(k, 1) - 1])
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Computes the log-density ``[N]`` of every row of ``X [N, D]``; low values are unlike the training rows."""
        check_is_fitted(self, "offset_")
        return self.density_.score_samples(features_of(self, X, "score_samples"))

    def decision_function(self, X: Any) -> np.ndarray:
        """Computes the score minus the threshold for rows ``X [N, D]``: ``[N]``, negative for outliers.

        A NaN score (of another density that overflows) counts as minus infinity.
        """
        scores = self._ranked(X)
        with np.errstate(invalid="ignore"):  # of two infinities
            return np.where(scores == self.offset_, 0.0, scores - self.offset_)

    def predict(self, X: Any) -> np.ndarray:
        """Returns 1 for inliers and -1 for outliers, ``[N]``, for rows ``X [N, D]``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """Computes conformal p-values ``[N]`` of rows ``X [N, D]``.

        A p-value is the probability that a row from the training distribution has a score this low or lower.
        """
        below = np.searchsorted(self.calibration_scores_, self._ranked(X), side="right")
        return (1 + below) / (len(self.calibration_scores_) + 1)

    def _ranked(self, X: Any) -> np.ndarray:
        """Computes scores, with minus infinity in place of NaN."""
        scores = self.score_samples(X)
        return np.where(np.isnan(scores), -np.inf, scores)
