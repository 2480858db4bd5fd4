"""A density estimator for tables, with scikit-learn's interface."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from cflow.arguments import is_integer
from cflow.density.estimator import FlowEstimator, weighted_mean
from cflow.density.inputs import features_of, seed_of, weights_of
from cflow.density.learning import CHUNK

__all__ = ["FlowDensity"]


class FlowDensity(FlowEstimator):
    r"""Estimates the density of the rows of a table with a flow.

    .. math:: \log p(x) = \log p_0(z) + \log|\det \partial z / \partial u| - \sum_i \log s_i,
        \qquad u = (x - m) / s, \quad z = \mathrm{encode}(u)

    It is an estimator of scikit-learn: it can be cloned, pickled, searched over and used as the last step of a
    ``Pipeline`` (earlier steps change the units of its density). The fitted flow ``flow_`` is a :class:`cflow.Flow` of
    the original data, in float64: ``cflow.save(density.flow_, folder)`` saves it, and ``cflow score`` reads it.

    Args:
        flow: a name or a constructor ``(features, context) -> flow``. Names are the presets of
            :data:`cflow.discrete.PRESETS`, ``"nsf-ar"`` (autoregressive: mostly the best density, slower to sample),
            ``"ffjord"`` and ``"flow-matching"``. Continuous flows are trained by flow matching if they have a path and
            by FFJORD otherwise, and their density needs the solution of an ODE. All others are trained by maximum
            likelihood.
        flow_options: more arguments of the flow's constructor, such as ``{"layers": 3, "hidden": (64, 64)}``.
        max_steps: the largest number of training steps.
        batch_size: rows per training step; all rows if there are fewer.
        lr: the peak of the learning rate. It rises first, then falls along a cosine until ``max_steps``.
        weight_decay: decoupled weight decay of the networks.
        standardise: with ``True`` the flow sees columns of mean zero and variance one, as splines and networks need.
            ``"robust"`` uses median and quantiles, which a few extreme rows do not change, and moves these rows towards
            the middle with :class:`cflow.bijections.Arcsinh`. Densities always refer to the original data.
        validation_fraction: the share of the rows that is held out to decide when to stop; 0 for none.
        check_every: training steps between checks of the held-out rows.
        patience: checks without improvement after which training ends; the best weights are kept.
        random_state: a seed, a ``numpy.random.RandomState``, or None for a new result each time. NumPy's and torch's
            global states are neither read nor changed.
        device: where to train and to score, such as ``"cuda"``.
        verbose: whether to show a progress bar with the losses.

    Attributes:
        flow_: the fitted flow.
        history_: one row per check: ``step``, ``loss``, ``validation`` and so on, in nats per row of the original data
            (for flow matching, its own loss). ``plot.training`` draws it.
        n_iter_: the number of training steps.
        best_step_: the step whose weights were kept.
        n_features_in_: the number of columns of the data.
        feature_names_in_: the names of the columns, if the data were a data frame.

    Cost: ``max_steps`` training steps (on one core about 10 ms each for the splines, and 100 ms for ``"ffjord"``, which
    solves an ODE in every step); ``score_samples`` needs constant memory.

    Raises:
        TypeError, ValueError: in ``fit``, for hyper-parameters out of range, an unknown flow, text, NaN, constant
            columns, or as many columns as rows or more; later, for a different number of columns.

    A ``UserWarning`` reports columns of whole, rounded or few distinct values and repeated rows, since their likelihood
    may not be meaningful, and columns whose scale a few rows decide.

    Example:
        >>> from sklearn.datasets import make_moons
        >>> X, _ = make_moons(500, noise=0.1, random_state=0)
        >>> density = FlowDensity("maf", max_steps=20, random_state=0).fit(X)
        >>> density.score_samples(X[:3]).shape, density.sample(5, random_state=0).shape
        ((3,), (5, 2))
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowDensity:
        """Fits the flow to rows ``X [N, D]``; ``y`` is ignored.

        ``sample_weight [N]`` states how often each row counts: in mean and scale, in the training loss (rows are drawn
        in proportion to their weights, so a weight of two equals two copies of a row, in expectation) and in the
        held-out loss. Rows of weight zero are omitted.
        """
        X = features_of(self, X, "fit", reset=True)
        self._learn(X, None, weights_of(self, sample_weight, len(X), "fit"))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Computes the log-density of every row of ``X [N, D]``, ``[N]``, in nats."""
        check_is_fitted(self, "flow_")
        return self._scores(features_of(self, X, "score_samples"))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Computes the mean log-density of the rows ``X [N, D]``, with ``sample_weight [N]``; ``y`` is ignored."""
        scores = self.score_samples(X)
        return weighted_mean(scores, weights_of(self, sample_weight, len(scores), "score"))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws rows ``[n_samples, D]``. Default of ``random_state``: new rows each time."""
        check_is_fitted(self, "flow_")
        if not is_integer(n_samples, 1, numpy=True):
            raise ValueError(f"{type(self).__name__}.sample({n_samples!r}): pass a whole number of 1 or more.")
        generator = torch.Generator(self.flow_.device).manual_seed(seed_of(random_state))
        counts = [min(CHUNK, int(n_samples) - start) for start in range(0, int(n_samples), CHUNK)]
        return np.concatenate([self.flow_.sample((n,), generator=generator).cpu().numpy() for n in counts])
