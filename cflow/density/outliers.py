"""Outliers: rows that a density holds for less likely than a calibrated share of rows like the training ones."""

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

    The rows are split. A density is fitted to one part, and the scores :math:`s_1, \dots, s_n` of the other part, which
    it never saw, say what scores rows of the same law have. A new row of score ``s`` has the p-value

    .. math:: p = \frac{1 + \#\{i : s_i \le s\}}{n + 1}

    and is flagged where :math:`p \le` ``contamination``. For a row of the same law :math:`P(p \le \alpha) \le \alpha`,
    whatever the density is and however well it fits (over the draw of the calibration rows, too); a better density
    finds more of what is not of that law. A threshold at a quantile of the training rows' scores has no such bound:
    these rows are where the density was made high.

    Args:
        density: an estimator with ``fit`` and ``score_samples``; :class:`FlowDensity` unless given. Others of
            scikit-learn's (``KernelDensity``, ``GaussianMixture``) are calibrated just as well.
        contamination: the share of rows like the training ones that are flagged: the rate of false alarms where these
            are clean.
        calibration_fraction: the part of the rows that calibrates.
        random_state: the seed of the split, and of ``density`` where it has a ``random_state`` of None.

    Attributes:
        density_: the fitted density.
        calibration_scores_: the scores of the calibration rows, sorted.
        offset_: the threshold; rows that score below it are flagged.
        n_features_in_, feature_names_in_: of the data; the latter where these were a data frame.

    Raises:
        TypeError, ValueError: as :class:`FlowDensity`; for a share outside (0, 1/2]. A ``UserWarning`` says where there
            are too few calibration rows for ``contamination``.

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
        """Fits the density to one part of the rows ``X [N, D]`` and calibrates on the other; ``y`` is ignored."""
        for name, value, most in (
            ("contamination", self.contamination, 0.5),
            ("calibration_fraction", self.calibration_fraction, 0.9),
        ):
            if not (is_number(value) and 0 < value <= most):
                raise ValueError(
                    f"FlowOutlierDetector({name}={value!r}): this is a share of the rows; pass a number in (0, {most}]."
                )
        table = features_of(self, X, "fit", reset=True)
        seed = seed_of(self.random_state)
        order = np.random.default_rng(seed).permutation(len(table))
        count, needed = round(self.calibration_fraction * len(table)), math.ceil(1 / self.contamination) - 1
        if not 0 < count < len(table):
            raise ValueError(
                f"FlowOutlierDetector.fit(X of shape {table.shape}): n_samples = {len(table)} cannot be split into "
                f"rows to fit and rows to calibrate; pass more, {needed} or so for calibration alone."
            )
        density = FlowDensity() if self.density is None else clone(self.density)
        if "random_state" in density.get_params() and density.get_params()["random_state"] is None:
            density.set_params(random_state=seed)
        self.density_ = density.fit(table[order[count:]])
        scores = self.density_.score_samples(table[order[:count]])
        if np.isnan(scores).any():
            raise ValueError(
                f"FlowOutlierDetector.fit: the density gave NaN to {int(np.isnan(scores).sum())} of {count} "
                f"calibration rows, and no threshold follows from what is no number; look at how it was fitted."
            )
        self.calibration_scores_ = np.sort(scores)
        # p <= contamination for scores below the k-th smallest.
        k = int(np.floor(self.contamination * (count + 1) * (1 + 1e-12)))
        if k == 0:
            warn(
                f"FlowOutlierDetector.fit(contamination={self.contamination}): {count} calibration rows tell no "
                f"p-value below {1 / (count + 1):.3g}, so this share of false alarms cannot be kept; rows below all of "
                f"them are flagged, about {1 / (count + 1):.3g}. Pass {needed} rows or more for "
                f"calibration, or a larger contamination."
            )
        self.offset_ = float(self.calibration_scores_[max(k, 1) - 1])
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Computes the log-density of every row, ``[N]``; the lower, the less like the training rows."""
        check_is_fitted(self, "offset_")
        return self.density_.score_samples(features_of(self, X, "score_samples"))

    def decision_function(self, X: Any) -> np.ndarray:
        """Computes how far a row scores above the threshold, ``[N]``: positive for inliers, negative for outliers.

        A score that is no number (of a foreign density that overflows) is taken as the lowest: minus infinity.
        """
        scores = self._ranked(X)
        with np.errstate(invalid="ignore"):  # of two infinities
            return np.where(scores == self.offset_, 0.0, scores - self.offset_)

    def predict(self, X: Any) -> np.ndarray:
        """Says 1 for inliers and -1 for outliers, ``[N]``."""
        return np.where(self.decision_function(X) < 0, -1, 1)

    def p_values(self, X: Any) -> np.ndarray:
        """Computes conformal p-values, ``[N]``: how often a row of the training rows' law scores as low."""
        below = np.searchsorted(self.calibration_scores_, self._ranked(X), side="right")
        return (1 + below) / (len(self.calibration_scores_) + 1)

    def _ranked(self, X: Any) -> np.ndarray:
        """Computes scores, the lowest of all in place of those that are no number."""
        scores = self.score_samples(X)
        return np.where(np.isnan(scores), -np.inf, scores)
