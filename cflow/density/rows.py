"""Whether rows can have a density at all."""

from __future__ import annotations

from typing import Any

import numpy as np

from cflow.density.inputs import warn
from cflow.density.lattice import lattice_steps

__all__ = ["check_rows"]


def check_rows(estimator: Any, x: np.ndarray, context: np.ndarray | None, method: str) -> None:
    """Checks what a density is fitted to, ``x [N, D]`` and what it is given, ``context [N, C]``.

    Raises for too few rows and constant columns; warns of columns of ``x`` on a lattice or with a spike, and of
    repeated rows.
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
            f"{where}: n_samples = {rows} rows of {dimensions} dimensions lie on a flat of lower dimension, where a "
            f"density has no bound; pass more rows than dimensions (many more, for a flow to be of use), or fewer "
            f"columns, such as sklearn.decomposition.PCA gives."
        )
    constant = np.flatnonzero(np.ptp(values, 0) <= 1e-12 * np.abs(values).max(0))
    if len(constant):
        raise ValueError(
            f"{where}: {_columns(constant, labels)} constant, and one value has no density and says nothing; drop it, "
            f"for instance by sklearn.feature_selection.VarianceThreshold()."
        )
    unique = np.unique(values, axis=0)
    repeated = rows - len(unique)
    lattice = np.flatnonzero(lattice_steps(unique[:, -x.shape[1] :])) + dimensions - x.shape[1]
    if len(lattice):
        warn(
            f"{where}: {_columns(lattice, labels)} on a lattice (whole numbers, or few different values). A density "
            f"can grow there without bound, spike upon spike, so the log-likelihood says how narrow the spikes are and "
            f"not how well the model fits; spread the values over their steps with cflow.density.dequantise."
        )
    elif len(spikes := _spikes(unique[:, -x.shape[1] :])):
        warn(
            f"{where}: {_columns(spikes + dimensions - x.shape[1], labels)} of one value in more than a twentieth of "
            f"the rows. A density can grow there without bound, and the log-likelihood says how narrow the spike is; "
            f"model the rows with that value apart, or add noise of the size that matters."
        )
    elif repeated > rows / 20:
        warn(
            f"{where}: {repeated} of {rows} rows repeat others. A density can grow without bound at repeated rows, and "
            f"copies of training rows among the held-out ones hide it; drop them (numpy.unique(X, axis=0)), or give "
            f"them a sample_weight."
        )


def _spikes(values: np.ndarray) -> np.ndarray:
    """Finds columns of which more than a twentieth of the rows, and more than four, hold one value."""
    most = np.array([np.unique(column, return_counts=True)[1].max() for column in values.T])
    return np.flatnonzero(most > max(len(values) / 20, 4))


def _columns(columns: np.ndarray, labels: list[str]) -> str:
    """Begins a sentence about columns."""
    shown = ", ".join(labels[i] for i in columns[:5]) + (", ..." if len(columns) > 5 else "")
    return f"column {shown} is" if len(columns) == 1 else f"columns {shown} are"
