"""Compares density models on rows to which none of them was fitted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.model_selection import check_cv
from sklearn.utils import _safe_indexing

from cflow.density.inputs import seed_of

__all__ = ["Comparison", "compare"]


@dataclass(frozen=True)
class Comparison:
    """The result of :func:`compare`. It shows itself as a table.

    Attributes:
        names: the names of the models.
        scores: held-out log-densities ``[models, N]``; the mean for rows that were held out several times.
        rows: the indices ``[N]`` of these rows.
        reference: the name of the model that is subtracted in ``differences``.
    """

    names: tuple[str, ...]
    scores: np.ndarray = field(repr=False)
    rows: np.ndarray = field(repr=False)
    reference: str

    @property
    def means(self) -> dict[str, float]:
        """Returns the mean held-out log-density per row of every model, in nats."""
        return dict(zip(self.names, self.scores.mean(1).tolist()))

    @property
    def errors(self) -> dict[str, float]:
        """Returns the standard errors of the means."""
        return dict(zip(self.names, _error(self.scores).tolist()))

    @property
    def differences(self) -> dict[str, tuple[float, float]]:
        """Returns, for every model, the mean difference to the reference in nats per row, and its standard error.

        Rows that are hard for one model are hard for all, so the error of this paired difference is mostly much smaller
        than the errors of the means. Use it to distinguish models.
        """
        change = self.scores - self.scores[self.names.index(self.reference)]
        return dict(zip(self.names, zip(change.mean(1).tolist(), _error(change).tolist())))

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        width = max(5, *(len(name) for name in self.names))
        lines = [f"{'model':{width}s}  {'nats per row':>20s}  {'over ' + self.reference:>20s}"]
        for name in sorted(self.names, key=self.means.get, reverse=True):
            change, error = self.differences[name]
            mean = f"{self.means[name]:.4f} ± {self.errors[name]:.4f}"
            over = "" if name == self.reference else f"{change:+.4f} ± {error:.4f}"
            lines.append(f"{name:{width}s}  {mean:>20s}  {over:>20s}".rstrip())
        return "\n".join(lines)


def compare(
    estimators: Mapping[str, Any],
    X: Any,
    y: Any = None,
    *,
    cv: Any = 5,
    reference: str | None = None,
    random_state: Any = 0,
) -> Comparison:
    """Compares density models by cross-validation: models score only rows to which they were not fitted.

    Standard errors are those of means over rows. They do not include that models of different folds share training
    rows.

    Args:
        estimators: a dict of estimators by name. Each has ``fit`` and ``score_samples`` in nats, such as
            ``FlowDensity``, or scikit-learn's ``GaussianMixture`` (one component: a normal distribution) and
            ``KernelDensity``. Clones of them are fitted.
        X: rows ``[N, D]``.
        y: targets ``[N]`` or ``[N, K]``, if all estimators are conditional, with ``score_samples(X, y)``.
        cv: the number of folds, which are drawn with ``random_state``, or a splitter of scikit-learn.
        reference: the name of the model to which the others are compared. Default: the first.
        random_state: the seed of the folds, a ``numpy.random.RandomState``, or None for new folds each time.

    Cost: one fit of every estimator for every fold.

    Raises:
        ValueError: for no estimators, an unknown reference, or a model whose scores are not one number per row (minus
            infinity is allowed, and makes the mean minus infinity).
        TypeError: for an estimator without ``score_samples``.

    Example:
        >>> from sklearn.mixture import GaussianMixture
        >>> rng = np.random.default_rng(0)
        >>> X = np.concatenate([rng.normal(-3, 1, (100, 1)), rng.normal(3, 1, (100, 1))])
        >>> print(compare({"normal": GaussianMixture(1), "mixture": GaussianMixture(2, random_state=0)}, X))
        model            nats per row           over normal
        mixture      -2.1159 ± 0.0490      +0.4333 ± 0.0531
        normal       -2.5492 ± 0.0207
    """
    if not estimators:
        raise ValueError("compare(estimators={}): there are no models; pass them by name.")
    for name, each in estimators.items():
        if not callable(getattr(each, "score_samples", None)) or isinstance(each, type):
            raise TypeError(
                f"compare({name}={each!r}): this has no score_samples; pass an estimator such as FlowDensity()."
            )
    reference = next(iter(estimators)) if reference is None else reference
    if reference not in estimators:
        raise ValueError(f"compare(reference={reference!r}): pass one of {', '.join(estimators)}.")
    splitter = check_cv(cv)
    if isinstance(cv, int):
        splitter.shuffle, splitter.random_state = True, seed_of(random_state) % 2**32
    folds = list(splitter.split(X, y))
    rows = np.unique(np.concatenate([held for _, held in folds]))
    total, count = np.zeros((len(estimators), rows[-1] + 1)), np.zeros(rows[-1] + 1)
    for train, held in folds:
        np.add.at(count, held, 1)
        given, asked = ([_safe_indexing(each, part) for each in (X, y) if each is not None] for part in (train, held))
        for number, (name, estimator) in enumerate(estimators.items()):
            scores = np.asarray(clone(estimator).fit(*given).score_samples(*asked))
            if scores.shape != (len(held),) or np.isnan(scores).any():
                raise ValueError(
                    f"compare({name}): score_samples returned shape {scores.shape} with {int(np.isnan(scores).sum())} "
                    f"NaN for {len(held)} rows, not one log-density per row; check this model."
                )
            np.add.at(total[number], held, scores)
    return Comparison(tuple(estimators), total[:, rows] / count[rows], rows, reference)


def _error(values: np.ndarray) -> np.ndarray:
    """Computes the standard error of the mean over the last dimension."""
    if values.shape[1] < 2:
        return np.full(len(values), np.nan)
    return values.std(1, ddof=1) / np.sqrt(values.shape[1])
