"""Values on a lattice: whole numbers, rounded readings, categories. Found, and spread over their steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from cflow.density.inputs import refuse_bad_rows, seed_of

__all__ = ["dequantise", "lattice_steps"]


# Two differences are the same, and a value is a multiple of another, up to this share of them.
ALIKE = 1e-6
# The share of the differences that are multiples of the step, where the others are taken for outliers.
MOST = 0.9
# A step of at most so many units in the last place is that of the numbers' format, not of the data.
FINE = 20


def lattice_steps(values: np.ndarray) -> np.ndarray:
    """Finds the step of every column ``[N, D]`` that is on a lattice: ``[D]``, 0 where a column is not.

    A lattice shows in the differences of neighbouring values, which repeat: the step is the most frequent of them where
    nine tenths of them are its multiples. Whole numbers have one in any case, their greatest common divisor; so have
    columns with at most half as many different values as rows, of which most occur more than once (readings of uneven
    steps, categories): the smallest difference. Neither a few values that are far from the others nor heavy tails make
    a lattice, nor does one value that many rows share, nor the last place of numbers with a large offset. A constant
    column has no step. Decimals that were rounded to float32 on their way are taken for the decimals.

    Example:
        >>> lattice_steps(np.array([[0.0, 0.31, 7.25], [2.0, 0.3, 7.5], [6.0, 0.87, 7.25], [4.0, 0.11, 7.5]]))
        array([2.  , 0.  , 0.25])
        >>> lattice_steps(np.array([[0.1], [0.3], [0.2], [0.1], [0.2], [0.3], [0.4], [1e8], [0.4], [0.4]])).round(9)
        array([0.1])
    """
    return np.array([_step_of(*np.unique(column, return_counts=True)) for column in values.T])


def _step_of(found: np.ndarray, counts: np.ndarray) -> float:
    """Finds the step of sorted different values, of which each occurs so often, in float64 or through float32."""
    with np.errstate(over="ignore"):
        single = found.astype(np.float32)
    if not np.array_equal(single, found):
        even, least = _step(found, counts, np.spacing(np.abs(found)))
        return even or least
    last_place = np.spacing(np.abs(single)).astype(np.float64)
    # Of float32 numbers the shortest decimals that name them: 0.1, not 0.10000000149.
    even, least = _step(found, counts, last_place)
    return even or _step(single.astype(str).astype(np.float64), counts, last_place)[0] or least


def _step(found: np.ndarray, counts: np.ndarray, last_place: np.ndarray) -> tuple[float, float]:
    """Finds the step of sorted different values, their numbers of occurrences and units in the last place given.

    Returns ``(step of which differences are multiples, least difference of few values)``, each 0 where there is none.
    """
    rounding = 2 * np.spacing(np.abs(found))
    # Neighbours that differ by rounding alone are one value.
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
    """Finds the difference that occurs most often, the smallest of several."""
    gaps = np.sort(gaps)
    groups = np.split(gaps, np.flatnonzero(np.diff(gaps) > ALIKE * gaps[:-1]) + 1)
    return float(np.median(max(groups, key=len)))


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
