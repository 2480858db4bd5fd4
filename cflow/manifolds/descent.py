"""Curves along which the distance to their end decreases linearly."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["descend", "limited"]


def descend(state: tuple[Tensor, ...], fall: Callable, move: Callable, t: Tensor, steps: int) -> tuple[tuple, Tensor]:
    """Simulates curves by Euler steps, and returns the states ``[m n, ...]`` and velocities at times ``t [m, n]``.

    Args:
        state: tensors ``[n, ...]`` that describe the starts.
        fall: the velocity, ``fall(state, rows, left)``, of the curves ``rows`` when the times ``left`` are left.
        move: the state after a step, ``move(state, velocity, duration)``.
        t: the times, in [0, 1).
        steps: the number of steps of equal length in [0, 1].
    """
    count = t.shape[1]
    rows, states = torch.arange(count, device=t.device), [state]
    for number in range(steps - 1):
        left = t.new_full((count,), 1 - number / steps)
        state = move(state, fall(state, rows, left), t.new_full((count,), 1 / steps))
        states.append(state)
    # From the last grid time before t a shorter step.
    before = (t * steps).long().clamp(0, steps - 1)
    state = tuple(torch.stack(each)[before, rows].flatten(0, 1) for each in zip(*states))
    rows, before, t = rows.repeat(len(t)), before.flatten() / steps, t.flatten()
    state = move(state, fall(state, rows, 1 - before), t - before)
    return state, fall(state, rows, 1 - t)


def limited(velocity: Tensor, speed: Tensor, limit: float) -> Tensor:
    """Shortens velocities ``[n, ...]`` whose ``speed [n]`` is above the limit."""
    factor = (limit / speed.clamp(min=limit)).reshape(-1, *[1] * (velocity.dim() - 1))
    return factor * velocity
