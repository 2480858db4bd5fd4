"""A density of targets given features, with the means, quantiles and intervals of a regression."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from scipy.stats import norm
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from cflow.arguments import check_integer, is_integer
from cflow.density.estimator import FlowEstimator, weighted_mean
from cflow.density.inputs import features_of, seed_of, targets_of, weights_of
from cflow.density.learning import CHUNK

__all__ = ["ConditionalFlowDensity"]

DRAWS = 512  # a power of two, as Sobol points need


class ConditionalFlowDensity(FlowEstimator):
    r"""Estimates the density of targets given features, :math:`p(y \mid x)`, with a flow that has a context.

    It is fitted like a regression, ``fit(X, y)``, and learns the whole distribution of the targets: any shape, a spread
    that depends on ``x``, and several targets jointly. ``score`` is the mean log-density, not :math:`R^2`, which is
    ``r2_score(y, model.predict(X))``; so this class is a density estimator that needs ``y``, not a ``RegressorMixin``.

    Features and targets are standardised inside; densities refer to the original targets. The fitted flow ``flow_``
    has the original features as its context: ``flow_.log_prob(y [N, K], X [N, D])``.

    Args:
        flow: as in :class:`FlowDensity`. For one target, the affine flows ``maf`` and ``realnvp`` are normal
            distributions whose mean and width depend on ``x``; ``nsf`` can have any shape.

    The other arguments and the attributes are those of :class:`FlowDensity`; ``n_features_in_`` counts ``X``.

    Means and quantiles are computed from the same latents for every row. For one target these are an even grid of
    ``draws`` probabilities (no Monte Carlo error; quantiles are exact). For several targets they are scrambled Sobol
    points, or draws of the base if it is not a normal distribution. Cost: ``draws`` decoded rows per row.

    Raises:
        TypeError, ValueError: as :class:`FlowDensity`, and for missing targets or targets that do not fit the features.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> X = rng.normal(size=(400, 1))
        >>> y = X[:, 0] + 0.1 * rng.normal(size=400)
        >>> model = ConditionalFlowDensity("maf", max_steps=20, random_state=0).fit(X, y)
        >>> model.score_samples(X[:3], y[:3]).shape, model.predict(X[:3]).shape
        ((3,), (3,))
        >>> model.predict_interval(X[:3], coverage=0.9).shape, model.sample(X[:3], 7, random_state=0).shape
        ((3, 2), (3, 7))
    """

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> ConditionalFlowDensity:
        """Fits the flow to targets ``y [N]`` or ``[N, K]`` given features ``X [N, D]``.

        ``sample_weight [N]`` has the same meaning as in :meth:`FlowDensity.fit`.
        """
        X = features_of(self, X, "fit", reset=True)
        y = targets_of(self, y, len(X), "fit")
        self._one_target = y.ndim == 1
        self._learn(y.reshape(len(y), -1), X, weights_of(self, sample_weight, len(X), "fit"))
        return self

    def score_samples(self, X: Any, y: Any) -> np.ndarray:
        """Computes the log-density of targets ``y [N]`` or ``[N, K]`` given ``X [N, D]``: ``[N]``, in nats."""
        check_is_fitted(self, "flow_")
        X = features_of(self, X, "score_samples")
        y = targets_of(self, y, len(X), "score_samples").reshape(len(X), -1)
        targets = self.flow_.event_shape[0]
        if y.shape[1] != targets:
            raise ValueError(
                f"{type(self).__name__}.score_samples(X, y): y has {y.shape[1]} targets per row, but fit was given "
                f"{targets}; pass the same targets."
            )
        return self._scores(y, X)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """Computes the mean log-density of ``y`` given ``X``, in nats, with ``sample_weight [N]``."""
        scores = self.score_samples(X, y)
        return weighted_mean(scores, weights_of(self, sample_weight, len(scores), "score"))

    def sample(self, X: Any, n_samples: int = 1, random_state: Any = None) -> np.ndarray:
        """Draws targets for every row of ``X [N, D]``.

        Returns ``[N, n_samples]``, or ``[N, n_samples, K]`` if ``y`` was ``[N, K]``. Default of ``random_state``: new
        targets each time.
        """
        check_is_fitted(self, "flow_")
        X = features_of(self, X, "sample")
        if not is_integer(n_samples, 1, numpy=True):
            raise ValueError(f"{type(self).__name__}.sample(X, {n_samples!r}): pass a whole number of 1 or more.")
        generator = torch.Generator(self.flow_.device).manual_seed(seed_of(random_state))
        parts = [
            self.flow_.sample((int(n_samples),), torch.tensor(part), generator=generator).transpose(0, 1).cpu().numpy()
            for part in _chunks(X, int(n_samples))
        ]
        return self._shaped(np.concatenate(parts))

    def predict(self, X: Any, *, draws: int = DRAWS) -> np.ndarray:
        """Computes the conditional mean, ``[N]`` or ``[N, K]``; the median is ``predict_quantiles(X, 0.5)``.

        The mean is over ``draws`` latents. For heavy tails these are too few; use the median instead.
        """
        check_is_fitted(self, "flow_")
        X = features_of(self, X, "predict")
        return self._shaped(np.concatenate([each.mean(1) for each in self._decoded(X, draws)]))

    def predict_quantiles(self, X: Any, q: Any, *, draws: int = DRAWS) -> np.ndarray:
        """Computes quantiles of every target given the features ``X [N, D]``.

        ``q`` is a probability in (0, 1), or a sequence of Q of them. Returns ``[N]`` or ``[N, Q]``, with a last
        dimension K if ``y`` was ``[N, K]``: the quantiles of each target separately.

        Raises:
            ValueError: for ``q`` outside (0, 1), or closer to 0 or 1 than ``draws`` points can resolve.
        """
        check_is_fitted(self, "flow_")
        X = features_of(self, X, "predict_quantiles")
        asked = np.atleast_1d(np.asarray(q, np.float64))
        where = f"{type(self).__name__}.predict_quantiles(q={q!r})"
        if asked.ndim != 1 or not len(asked) or not ((asked > 0) & (asked < 1)).all():
            raise ValueError(f"{where}: q is not between 0 and 1; pass probabilities such as [0.05, 0.95].")
        if self.flow_.event_shape[0] == 1 and self._is_normal:
            values = np.concatenate([self._exact(part, asked) for part in _chunks(X, 2 * len(asked) + 2)])
        else:
            if min(asked.min(), 1 - asked.max()) < 1 / draws:
                raise ValueError(
                    f"{where}: {draws} draws cannot resolve probabilities below 1/{draws}; pass draws="
                    f"{2 ** math.ceil(math.log2(10 / min(asked.min(), 1 - asked.max())))}."
                )
            values = np.concatenate(
                [np.quantile(each, asked, axis=1).swapaxes(0, 1) for each in self._decoded(X, draws)]
            )
        values = self._shaped(values)
        return values[:, 0] if np.ndim(q) == 0 else values

    def predict_interval(self, X: Any, coverage: float = 0.9, *, draws: int = DRAWS) -> np.ndarray:
        """Computes central intervals of probability ``coverage`` given ``X [N, D]``: ``[N, 2]``, or ``[N, 2, K]``.

        ``draws`` has the same meaning as in :meth:`predict_quantiles`.
        """
        if not 0 < coverage < 1:
            raise ValueError(
                f"{type(self).__name__}.predict_interval(coverage={coverage!r}): pass a probability such as 0.9."
            )
        return self.predict_quantiles(X, [(1 - coverage) / 2, (1 + coverage) / 2], draws=draws)

    @property
    def _is_normal(self) -> bool:
        return self.flow_.base.is_standard

    def _decode(self, z: Tensor, X: np.ndarray) -> np.ndarray:
        """Decodes latents ``[Q, L]`` to the targets of every row: ``[N, Q, K]``."""
        context = torch.tensor(X)[:, None].expand(-1, len(z), -1)
        with torch.no_grad():
            return self.flow_.decode(z.to(self.flow_.device).expand(len(X), *z.shape), context)[0].cpu().numpy()

    def _decoded(self, X: np.ndarray, draws: int):
        """Yields the targets at the common latents, ``[n, draws, K]``, for chunks of rows."""
        why = "a mean needs 2 latents or more; pass 512."
        check_integer(type(self).__name__, "draws", draws, 2, why, numpy=True)
        size = self.flow_.latent_shape[0]
        if not self._is_normal:
            z = self.flow_.base.sample((draws,), generator=torch.Generator(self.flow_.device).manual_seed(self.seed_))
        elif size == 1:
            z = torch.tensor(norm.ppf((np.arange(draws) + 0.5) / draws))[:, None]
        else:
            engine = torch.quasirandom.SobolEngine(size, scramble=True, seed=self.seed_)
            # Points with a spacing of 2^-30 may be 0; the middles between them are not.
            z = torch.special.ndtri(engine.draw(draws, dtype=torch.float64) + 2.0**-31)
        for part in _chunks(X, draws):
            yield self._decode(z, part)

    def _exact(self, X: np.ndarray, q: np.ndarray) -> np.ndarray:
        """Computes quantiles of one target, ``[N, Q, 1]``: a bijection of the line is increasing or decreasing."""
        below = norm.ppf(q)
        z = torch.tensor(np.concatenate([below, -below, [-1.0, 1.0]]))[:, None]
        values = self._decode(z, X)
        rises = values[:, -1:] > values[:, -2:-1]
        return np.where(rises, values[:, : len(q)], values[:, len(q) : -2])

    def _shaped(self, values: np.ndarray) -> np.ndarray:
        """Drops the dimension of targets where ``y`` had none."""
        return values[..., 0] if self._one_target else values


def _chunks(X: np.ndarray, each: int) -> list[np.ndarray]:
    """Cuts rows, each of which becomes ``each`` rows, into chunks of about 16,000 resulting rows."""
    size = max(1, 4 * CHUNK // each)
    return [X[start : start + size] for start in range(0, len(X), size)]
