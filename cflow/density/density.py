"""A density of a table, as scikit-learn estimates one."""

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
    r"""Estimates the density of the rows of a table by a flow.

    .. math:: \log p(x) = \log p_0(z) + \log|\det \partial z / \partial u| - \sum_i \log s_i, \qquad
        u = (x - m) / s, \quad z = \mathrm{encode}(u)

    An estimator of scikit-learn: it can be cloned, pickled, searched over and put at the end of a ``Pipeline`` (whose
    steps before it change the units of its density). The fitted flow, ``flow_``, is a :class:`cflow.Flow` of the data
    as given, in float64: ``cflow.save(density.flow_, folder)`` keeps it, and ``cflow score`` reads it.

    Args:
        flow: a name (every preset of :data:`cflow.discrete.PRESETS`; ``"nsf-ar"``, its autoregressive kind: mostly the
            best density, slower to sample; ``"ffjord"``, ``"flow-matching"``), or a constructor ``(features, context)
            -> flow``. Velocity fields are trained by flow matching on a path, by FFJORD without one, all others by
            maximum likelihood; a density of a velocity field takes the solution of an equation.
        flow_options: further arguments of the flow's constructor, such as ``{"layers": 3, "hidden": (64, 64)}``.
        max_steps: most training steps.
        batch_size: rows of a step; all rows where there are fewer.
        lr: the peak of the learning rate, which rises for a while and falls along a cosine towards ``max_steps``.
        weight_decay: decoupled decay of the networks' weights.
        standardise: whether the flow sees columns of mean zero and variance one, ``True`` or ``False``; ``"robust"``
            takes median and quantiles, which a few wild rows do not move, and draws these rows in by
            :class:`cflow.bijections.Arcsinh`. Densities are those of the data as given in
            any case. Splines and networks want it.
        validation_fraction: the part of the rows held out to stop by; 0 for none.
        check_every: steps between looks at the held-out rows.
        patience: looks without improvement after which training ends; the best weights are kept.
        random_state: a seed, a ``numpy.random.RandomState``, or None for another result each time. Neither NumPy's nor
            torch's global state is read or moved.
        device: where to train and to score, such as ``"cuda"``.
        verbose: whether to show a bar with the losses.

    Attributes:
        flow_: the fitted flow.
        history_: rows of training: ``step``, ``loss``, ``validation`` and so on, in nats per row of the data as given
            (flow matching: its own loss). ``plot.training`` draws it.
        n_iter_: steps taken.
        best_step_: the step whose weights were kept.
        n_features_in_, feature_names_in_: of the data; the latter where these were a data frame.

    Cost: ``max_steps`` training steps (on one core about 10 ms each for the splines, 100 for ``"ffjord"``, whose every
    step solves an equation); ``score_samples`` takes constant memory.

    Raises:
        TypeError, ValueError: in ``fit``, for hyper-parameters out of range, an unknown flow, tables with text, NaN,
            constant columns, no more rows than columns; later, for another number of columns. A ``UserWarning`` says
            where values are on a lattice or rows repeat, so that likelihoods mean nothing, and where a few rows decide
            the scale of a column.

    Example:
        >>> from sklearn.datasets import make_moons
        >>> X, _ = make_moons(500, noise=0.1, random_state=0)
        >>> density = FlowDensity("maf", max_steps=20, random_state=0).fit(X)
        >>> density.score_samples(X[:3]).shape, density.sample(5, random_state=0).shape
        ((3,), (5, 2))
    """

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> FlowDensity:
        """Fits the flow to rows ``X [N, D]``; ``y`` is ignored.

        ``sample_weight [N]`` says how often each row counts: in the units, in the loss (rows are drawn with
        probabilities that the weights give, so a weight of two is a row that is there twice, in expectation) and on the
        held-out rows. Rows of weight zero are not looked at.
        """
        X = features_of(self, X, "fit", reset=True)
        self._learn(X, None, weights_of(self, sample_weight, len(X), "fit"))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Computes the log-density of every row, ``[N]``, in nats."""
        check_is_fitted(self, "flow_")
        return self._scores(features_of(self, X, "score_samples"))

    def score(self, X: Any, y: Any = None, sample_weight: Any = None) -> float:
        """Computes the mean log-density of the rows, in nats; ``y`` is ignored."""
        scores = self.score_samples(X)
        return weighted_mean(scores, weights_of(self, sample_weight, len(scores), "score"))

    def sample(self, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws rows ``[n_samples, D]``; other ones each time unless a ``random_state`` is given."""
        check_is_fitted(self, "flow_")
        if not is_integer(n_samples, 1, numpy=True):
            raise ValueError(
                f"{type(self).__name__}.sample({n_samples!r}): rows come in whole numbers; pass 1 or more."
            )
        generator = torch.Generator(self.flow_.device).manual_seed(seed_of(random_state))
        counts = [min(CHUNK, int(n_samples) - start) for start in range(0, int(n_samples), CHUNK)]
        return np.concatenate([self.flow_.sample((n,), generator=generator).cpu().numpy() for n in counts])
