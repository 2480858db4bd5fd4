"""Checks whether the rows of a table can have a density."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.spatial import cKDTree

from cflow.density.inputs import warn
from cflow.density.lattice import lattice_steps

__all__ = ["check_rows", "copied_rows"]


def check_rows(estimator: Any, x: np.ndarray, context: np.ndarray | None, method: str) -> None:
    """Checks the rows ``x [N, D]`` to which a density is fitted, and their context ``[N, C]``.

    Raises for too few rows and for constant columns. Warns of columns of ``x`` with rounded, few distinct or one very
    frequent value, and of rows that are copies of others: a density can grow without bound there.
    """
    where = f"{type(estimator).__name__}.{method}"
    names = getattr(estimator, "feature_names_in_", None)
    values = x if context is None else np.concatenate([context, x], 1)
    features = values.shape[1] if context is None else context.shape[1]
    labels = [str(i) if names is None else f"{i} ({names[i]})" for i in range(features)]
    labels += [f"y[{i}]" for i in range(values.shape[1] - features)]
    rows, dimensions = values.shape
    if rows < 2 or rows <= dimensions:
        raise ValueError(
            f"{where}: n_samples = {rows} rows are too few for {dimensions} columns; pass many more rows, or "
            f"fewer columns."
        )
    constant = np.flatnonzero(np.ptp(values, 0) <= 1e-12 * np.abs(values).max(0))
    if len(constant):
        raise ValueError(
            f"{where}: {_columns(constant, labels, 'is', 'are')} constant, which has no density; drop such columns, "
            f"as scikit-learn's VarianceThreshold does."
        )
    unique = np.unique(values, axis=0)
    repeated = rows - len(unique)
    first = dimensions - x.shape[1]
    steps = lattice_steps(unique[:, first:])
    stepped = np.flatnonzero(steps)
    if len(stepped):
        found = ", ".join(f"{step:.3g}" for step in steps[stepped[:5]])
        warn(
            f"{where}: {_columns(stepped + first, labels, 'has', 'have')} whole, rounded or few distinct values "
            f"(smallest step {found}), so the log-likelihood may not be meaningful; add noise with "
            f"cflow.density.dequantise, or drop the column."
        )
    frequent = _frequent(unique[:, first:])
    if len(frequent) and not len(stepped):
        warn(
            f"{where}: {_columns(frequent + first, labels, 'has', 'have')} one value in more than 5% of the rows, so "
            f"the log-likelihood may not be meaningful; model these rows separately, or add noise to them."
        )
    if copied_rows(values) or (repeated > rows / 20 and not len(stepped) and not len(frequent)):
        warn(
            f"{where}: {repeated} of {rows} rows repeat others, so the log-likelihood may not be meaningful; drop "
            f"copies with numpy.unique(X, axis=0), or use sample_weight."
        )


def copied_rows(values: np.ndarray) -> int:
    """Counts the rows that are copies of others; 0 if such repeats can be chance.

    Rows of few digits repeat by chance, but then more rows are next to another one: in every column the values are
    equal or neighbours. Copies are the other case. Fewer than five, or than one in a thousand rows, do not count.
    Neither a single column nor a table of which three quarters repeat (categories) can show copies.

    Args:
        values: a table ``[N, D]`` of finite numbers.

    Cost: one sort of every column, and a search in the four columns with the most distinct values.

    Example:
        >>> table = np.random.default_rng(0).normal(size=(100, 3))
        >>> copied_rows(table), copied_rows(np.concatenate([table, table[:7]]))
        (0, 7)
    """
    unique, counts = np.unique(values, axis=0, return_counts=True)
    repeated = len(values) - len(unique)
    if not max(5, len(values) / 1000) <= repeated <= 0.75 * len(values):
        return 0
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in unique.T], 1)
    finest = np.argsort(-ranks.max(0), kind="stable")[:4]
    nearest = cKDTree(ranks[:, finest]).query(ranks[:, finest], k=2, p=np.inf)[0][:, 1]
    return repeated if counts[counts > 1].sum() > 1.5 * counts[nearest <= 1].sum() else 0


def _frequent(values: np.ndarray) -> np.ndarray:
    """Finds the columns that have the same value in more than a twentieth of the rows, and in more than four."""
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in values.T])
    return np.flatnonzero(most > max(len(values) / 20, 4))


def _columns(columns: np.ndarray, labels: list[str], one: str, several: str) -> str:
    """Returns the start of a sentence about columns: its subject, and its verb for one or for several columns."""
    shown = ", ".join(labels[i] for i in columns[:5]) + (", ..." if len(columns) > 5 else "")
    return f"column {shown} {one}" if len(columns) == 1 else f"columns {shown} {several}"
