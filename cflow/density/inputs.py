"""Checks of the estimators' inputs: they are tables of finite numbers."""

from __future__ import annotations

import numbers
import warnings
from typing import Any

import numpy as np
from scipy.sparse import issparse
from sklearn.utils.validation import check_array, validate_data

from cflow.arguments import calling_line, is_integer

__all__ = ["features_of", "is_number", "refuse_bad_rows", "seed_of", "targets_of", "warn", "weights_of"]


def features_of(estimator: Any, X: Any, method: str, *, reset: bool = False) -> np.ndarray:
    """Reads ``X`` as float64 ``[N, D]``.

    With ``reset`` the number and the names of the features are stored. Otherwise they must be the stored ones.

    Raises:
        TypeError: for a sparse matrix, or entries that are neither numbers nor text.
        ValueError: for text, complex numbers, a wrong rank or number of features, NaN or infinity.
    """
    where = f"{type(estimator).__name__}.{method}(X)"
    if issparse(X):
        raise TypeError(f"{where}: X is a sparse matrix, and a density needs dense rows; pass X.toarray().")
    try:
        X = validate_data(estimator, X=X, reset=reset, dtype=np.float64, ensure_all_finite=False)
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {_sentence(error)} {_advice(estimator, reset)}") from None
    refuse_bad_rows(X, where)
    return X


def targets_of(estimator: Any, y: Any, rows: int, method: str) -> np.ndarray:
    """Reads ``y`` as float64 ``[N]`` or ``[N, K]``.

    Raises:
        TypeError, ValueError: as :func:`features_of`, and if the number of rows differs from that of ``X``.
    """
    name = type(estimator).__name__
    where = f"{name}.{method}(X, y)"
    if y is None:
        raise ValueError(
            f"{where}: {name} requires y to be passed, but the target y is None; pass y, or use FlowDensity."
        )
    try:
        y = check_array(y, dtype=np.float64, ensure_2d=False, ensure_all_finite=False, input_name="y")
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"{where}: {_sentence(error)} Pass numbers, [N] or [N, targets].") from None
    if y.ndim > 2 or len(y) != rows:
        raise ValueError(
            f"{where}: y has shape {y.shape}, but X has {rows} rows; pass y of shape ({rows},) or ({rows}, targets)."
        )
    refuse_bad_rows(y.reshape(rows, -1), where)
    return y


def weights_of(estimator: Any, weights: Any, rows: int, method: str) -> np.ndarray | None:
    """Reads weights ``[N]``, which are not negative and not all zero; ``None`` stays ``None``."""
    if weights is None:
        return None
    where = f"{type(estimator).__name__}.{method}(sample_weight)"
    weights = np.asarray(weights, np.float64)
    if weights.shape != (rows,):
        raise ValueError(
            f"{where}: the weights have shape {weights.shape}, but there are {rows} rows; pass one weight per row."
        )
    if not np.isfinite(weights).all() or (weights < 0).any() or not weights.any():
        raise ValueError(
            f"{where}: weights range from {weights.min():.4g} to {weights.max():.4g}; pass finite weights that are not "
            f"negative and not all zero."
        )
    return weights


def refuse_bad_rows(values: np.ndarray, where: str) -> None:
    """Raises if rows have NaN or infinity, and lists these rows."""
    bad = np.flatnonzero(~np.isfinite(values).all(1))
    if len(bad):
        shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
        raise ValueError(
            f"{where}: {len(bad)} of {len(values)} rows have NaN or inf (rows {shown}), which have no density; drop "
            f"them, or fill the gaps with sklearn.impute."
        )


def is_number(value: Any) -> bool:
    """Returns whether a hyper-parameter is a real number; ``True`` and ``False`` are not."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def seed_of(random_state: Any) -> int:
    """Returns a seed: the int itself, a draw from a ``RandomState``, or a new seed each time for ``None``.

    NumPy's global state is neither read nor changed, unlike with ``sklearn.utils.check_random_state(None)``.
    """
    if random_state is None:
        return int(np.random.SeedSequence().generate_state(1)[0])
    if isinstance(random_state, np.random.RandomState):
        return int(random_state.randint(2**31 - 1))
    if not is_integer(random_state, 0, numpy=True):
        raise ValueError(
            f"random_state={random_state!r}: pass a whole number of 0 or more, or a numpy.random.RandomState."
        )
    return int(random_state)


def warn(message: str) -> None:
    """Warns, and points to the line outside this package that made the call."""
    warnings.warn_explicit(message, UserWarning, **calling_line())


def _sentence(error: Exception) -> str:
    """Returns scikit-learn's message as one line that ends with a full stop."""
    text = " ".join(str(error).split())
    return text if text.endswith(".") else f"{text}."


def _advice(estimator: Any, reset: bool) -> str:
    if reset or not hasattr(estimator, "n_features_in_"):
        return "Pass a table of numbers, [rows, features]; encode categories as numbers, or drop them."
    names = getattr(estimator, "feature_names_in_", None)
    shown = "" if names is None else f": {', '.join(map(str, names[:8]))}{', ...' if len(names) > 8 else ''}"
    return f"Pass the {estimator.n_features_in_} features that fit was given{shown}."
