"""A picture of tokens on their way: a row of cells for each step of a sampler."""

from __future__ import annotations

import os
from collections.abc import Sequence

import torch
from torch import Tensor

from cflow.plot.figure import finish, new_figure, numbers

__all__ = ["tokens"]

HIDDEN, CHANGES, FINAL = (0.90, 0.91, 0.92), (0.96, 0.80, 0.66), (0.67, 0.80, 0.93)
LETTERS = 130  # so many cells in a row leave room for letters


def tokens(
    states: Tensor,
    path: str | os.PathLike | None = None,
    *,
    times: Sequence[float] | Tensor | None = None,
    mask: int | None = None,
    symbols: Sequence[str] | None = None,
):
    """Draws the states of one sequence of tokens: one row per step, one cell per token.

    Cells are blue where the token is that of the last row, orange where it still changes, and grey where it is hidden.

    Args:
        states: integers ``[T, L]``, such as ``flow.trajectory((1,))[1][:, 0]``.
        path: the file to write; None writes no file.
        times: the times ``[T]``, shown at the left.
        mask: the mask state, ``flow.source.mask``. Default: None, no token is hidden.
        symbols: a character for each token, written into the cells of rows with at most 130 tokens. Default: None, no
            characters.

    Returns the figure.

    Raises:
        ValueError: if ``states`` are not integers ``[T, L]``, or the number of ``times`` is wrong.

    Example:
        >>> tokens(torch.tensor([[2, 2, 2], [0, 2, 2], [0, 1, 1]]), mask=2, symbols="ab")
        <Figure size ...>
    """
    if states.ndim != 2 or 0 in states.shape or states.is_floating_point():
        raise ValueError(
            f"plot.tokens({states.dtype} of shape {list(states.shape)}): the states of one sequence are integers "
            f"[T, L]; pass flow.trajectory((1,))[1][:, 0]."
        )
    count, length = states.shape
    if times is not None and len(times) != count:
        raise ValueError(f"plot.tokens({len(times)} times for {count} rows): pass one time per row.")
    states = states.detach().cpu()
    hidden = states == mask if mask is not None else torch.zeros_like(states, dtype=torch.bool)
    kind = torch.where(hidden, 0, torch.where(states == states[-1], 2, 1))
    colours = torch.tensor([HIDDEN, CHANGES, FINAL])[kind]
    cell = max(0.035, min(0.22, 12 / length))
    figure = new_figure(cell * length + 0.6, max(0.12, cell) * count + 0.2)
    axis = figure.subplots()
    axis.imshow(numbers(colours), aspect="auto", interpolation="nearest")
    if length <= LETTERS:
        axis.set_xticks([k - 0.5 for k in range(1, length)], minor=True)
        axis.set_yticks([k - 0.5 for k in range(1, count)], minor=True)
        axis.grid(which="minor", color="white", lw=0.6)
    axis.tick_params(which="both", length=0, labelsize=7)
    axis.set_xticks([])
    axis.set_yticks(range(count) if times is not None else [])
    if times is not None:
        axis.set_yticklabels([f"t = {float(each):.2f}" for each in times])
    axis.spines[:].set_visible(False)
    if symbols is not None and length <= LETTERS:
        for row, column in (~hidden).nonzero().tolist():
            letter = symbols[int(states[row, column])]
            axis.text(column, row, letter, ha="center", va="center", fontsize=min(9, 52 * cell), family="monospace")
    return finish(figure, path)
