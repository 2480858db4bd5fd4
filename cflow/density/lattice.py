"""Columns whose values have steps (whole numbers, rounded readings, categories): finds the steps and adds noise."""

from __future__ import annotations

from typing import Any

import numpy as np

from cflow.density.inputs import refuse_bad_rows, seed_of

__all__ = ["dequantise", "lattice_steps"]


# The relative error up to which two differences are the same, or one is a multiple of another.
ALIKE = 1e-6
# At least this share of the differences are multiples of the step; the others come from outliers.
MOST = 0.9
# A step of at most this many units in the last place comes from the number format, not from the data.
FINE = 20


def lattice_steps(values: np.ndarray) -> np.ndarray:
    """Returns the step of every column: 0 for continuous columns, positive for whole, rounded or few distinct values.

    Differences between neighbouring values of a column are compared:

    - If nine tenths of them are multiples of the most frequent one, that one is the step. Rounded readings are such.
    - Otherwise the step of whole numbers is the greatest common divisor of the differences.
    - Otherwise, if a column has at most half as many distinct values as rows, and most of them occur more than once
      (categories, uneven readings), the step is the smallest difference.

    The step is 0 for constant columns, and for continuous ones with outliers, heavy tails, one value that many rows
    share, or a large offset. Decimals that were stored in float32 count as these decimals.

    Args:
        values: a table ``[N, D]`` of finite numbers.

    Returns a float64 array ``[D]``. Cost: one sort of every column.

    Example:
        >>> lattice_steps(np.array([[0.0, 0.31, 7.25], [2.0, 0.3, 7.5], [6.0, 0.87, 7.25], [4.0, 0.11, 7.5]]))
        array([2.  , 0.  , 0.25])
        >>> lattice_steps(np.array([[0.1], [0.3], [0.2], [0.1], [0.2], [0.3], [0.4], [1e8], [0.4], [0.4]])).round(9)
        array([0.1])
    """
    return np.array([_step_of(*np.unique(column, return_counts=True)) for column in values.T])


def _step_of(found: np.ndarray, counts: np.ndarray) -> float:
    """Returns the step of sorted distinct values with their counts, for decimals in float64 or stored in float32."""
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if not np.array_equal(single, found):
        even, least = _step(found, counts, np.spacing(np.abs(found)))
        return even or least
    last_place = np.spacing(np.abs(single)).astype(np.float64)
    # The shortest decimals of float32 numbers: 0.1, not 0.10000000149.
    even, least = _step(found, counts, last_place)
    return even or _step(single.astype(str).astype(np.float64), counts, last_place)[0] or least


def _step(found: np.ndarray, counts: np.ndarray, last_place: np.ndarray) -> tuple[float, float]:
    """Finds the step of sorted distinct values, from their counts and their units in the last place.

    Returns ``(step of which most differences are multiples, smallest difference of few values)``; 0 means none.
    """
    rounding = 2 * np.spacing(np.abs(found))
    # Neighbours that differ only by rounding are one value.
    apart = np.diff(found, prepend=-np.inf) > rounding
    found, rounding, counts = found[apart], rounding[apart], np.add.reduceat(counts, np.flatnonzero(apart))
    gaps, rounding = np.diff(found), rounding[1:]
    if not len(gaps):
        return 0.0, 0.0
    few = len(found) <= counts.sum() / 2 and np.median(counts) > 1
    whole = bool((found == np.round(found)).all()) and np.abs(found).max() < 2**53
    step = _most_frequent(gaps)
    multiples = np.abs(gaps - step * np.round(gaps / step)) <= ALIKE * step + 2 * rounding
    alike = (multiples & (gaps < 1.5 * step)).sum()
    resolved = few or whole or step > FINE * np.median(last_place)
    if multiples.mean() >= MOST and alike > (1 if few or whole else 4) and resolved:
        return float(step), 0.0
    if whole:
        return float(np.gcd.reduce(gaps.astype(np.int64))), 0.0
    return 0.0, float(gaps.min()) if few else 0.0


def _most_frequent(gaps: np.ndarray) -> float:
    """Returns the most frequent difference; the smallest one if several are equally frequent."""
    gaps = np.sort(gaps)
    groups = np.split(gaps, np.flatnonzero(np.diff(gaps) > ALIKE * gaps[:-1]) + 1)
    return float(np.median(max(groups, key=len)))


def dequantise(X: Any, *, steps: Any = None, random_state: Any = None) -> np.ndarray:
    r"""Adds uniform noise, one step wide, to columns of whole, rounded or few distinct values; others stay unchanged.

    .. math:: x_i + s_i (\epsilon_i - \tfrac12), \qquad \epsilon_i \sim \mathcal U[0, 1)

    A density of the result bounds the probability of the original values:

    .. math:: \log P(x) \ge \mathbb E_\epsilon \log p(x + s(\epsilon - \tfrac12)) + \sum_i \log s_i

    Use the steps of the training data for the held-out data too.

    Args:
        X: a table ``[N, D]`` of numbers, or one column ``[N]``, such as a target.
        steps: ``[D]``, the width of the noise in each column, 0 for no noise; a number for one column. Default:
            :func:`lattice_steps` of ``X``.
        random_state: a seed, a ``numpy.random.RandomState``, or None for new noise each time.

    Returns a float64 array of the shape of ``X``. Cost: one sort of every column if ``steps`` is omitted.

    Raises:
        ValueError: for an array that is neither ``[N, D]`` nor ``[N]`` or has NaN, and for steps of a wrong
            number or sign.

    Source: Theis et al., A note on the evaluation of generative models, 2015, arXiv:1511.01844, section 3.1.

    Example:
        >>> ages = np.array([[30.0, 0.123], [41.0, 0.456], [30.0, 0.789]])
        >>> spread = dequantise(ages, random_state=0)
        >>> bool((np.abs(spread - ages)[:, 0] <= 5.5).all()), bool((spread[:, 1] == ages[:, 1]).all())
        (True, True)
    """
    X = np.array(X, np.float64)
    shape = X.shape
    if X.ndim == 1:
        X = X[:, None]
    if X.ndim != 2:
        raise ValueError(f"dequantise(X of shape {shape}): X must be a table [rows, columns] or a column [rows].")
    refuse_bad_rows(X, "dequantise(X)")
    steps = lattice_steps(X) if steps is None else np.atleast_1d(np.asarray(steps, np.float64))
    if steps.shape != X.shape[1:] or not (steps >= 0).all():
        raise ValueError(
            f"dequantise(X of shape {shape}, steps={steps}): pass one step >= 0 for each of {X.shape[1]} "
            f"columns, or omit steps."
        )
    noise = np.random.default_rng(seed_of(random_state)).random(X.shape) - 0.5
    return (X + steps * noise).reshape(shape)
