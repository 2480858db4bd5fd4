"""Values on a lattice: whole numbers, rounded readings, categories. Found, and spread over their steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from cflow.density.inputs import refuse_bad_rows, seed_of

__all__ = ["dequantise", "lattice_steps"]


def lattice_steps(values: np.ndarray) -> np.ndarray:
    """Finds the step of every column ``[N, D]`` that is on a lattice: ``[D]``, 0 where a column is not.

    A column is taken to be on a lattice where all its values are whole numbers, or at most half as many values as rows
    are different; the step is the smallest gap between two values. A constant column has none.

    Example:
        >>> lattice_steps(np.array([[0.0, 0.31, 7.25], [2.0, 0.3, 7.5], [6.0, 0.87, 7.25], [4.0, 0.11, 7.5]]))
        array([2.  , 0.  , 0.25])
    """
    steps = np.zeros(values.shape[1])
    for i, column in enumerate(values.T):
        found = np.unique(column)
        gaps = np.diff(found)
        # Neighbours that differ by rounding alone are one value.
        gaps = gaps[gaps > 1e-9 * np.abs(found).max()] if len(found) else gaps
        if len(gaps) and (len(gaps) < len(column) / 2 or (found == np.round(found)).all()):
            steps[i] = gaps.min()
    return steps


def dequantise(X: Any, *, steps: Any = None, random_state: Any = None) -> np.ndarray:
    r"""Spreads columns on a lattice by uniform noise as wide as their steps; other columns stay as they are.

    .. math:: x_i + s_i (\epsilon_i - \tfrac12), \qquad \epsilon_i \sim \mathcal U[0, 1)

    A density of the result bounds the probability of the values: :math:`\log P(x) \ge \mathbb E_\epsilon \log p(x +
    s(\epsilon - 1/2)) + \sum_i \log s_i`. Spread training and held-out data alike, with steps of the former.

    Args:
        X: a table ``[N, D]`` of numbers.
        steps: one per column, 0 for none; found in ``X`` (whole numbers, or few different values) unless given.
        random_state: a seed, a ``numpy.random.RandomState``, or None for new noise each time.

    Returns a float64 array ``[N, D]``. Cost: one sort of every column where no steps are given.

    Raises:
        ValueError: for a table that is not ``[N, D]`` or holds NaN, for steps that do not fit or are negative.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> ages = np.array([[30.0, 0.123], [41.0, 0.456], [30.0, 0.789]])
        >>> spread = dequantise(ages, random_state=0)
        >>> bool((np.abs(spread - ages)[:, 0] <= 5.5).all()), bool((spread[:, 1] == ages[:, 1]).all())
        (True, True)
    """
    X = np.array(X, np.float64)
    if X.ndim != 2:
        raise ValueError(f"dequantise(X of shape {X.shape}): a table is wanted; pass [rows, columns].")
    refuse_bad_rows(X, "dequantise(X)")
    steps = lattice_steps(X) if steps is None else np.asarray(steps, np.float64)
    if steps.shape != X.shape[1:] or not (steps >= 0).all():
        raise ValueError(
            f"dequantise(X of shape {X.shape}, steps={steps}): there is one step for each of {X.shape[1]} columns, 0 "
            f"where a column is not on a lattice; omit steps to have them measured."
        )
    noise = np.random.default_rng(seed_of(random_state)).random(X.shape) - 0.5
    return X + steps * noise
