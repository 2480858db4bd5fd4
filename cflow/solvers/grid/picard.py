"""Parallel in time: many steps of a grid at once, repeated until they agree with the sequential result."""

from __future__ import annotations

import itertools
import math
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
from torch import Tensor

from cflow.arguments import is_integer
from cflow.registry import register
from cflow.solvers.grid.fixed import FixedGrid, Outputs
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution
from cflow.solvers.state import like_rows, on_tensors, per_row

__all__ = ["Picard"]


@register("solvers.Picard")
@dataclass(frozen=True, repr=False)
class Picard(FixedGrid):
    r"""Integrates on Euler's grid in parallel: evaluates a window of steps at once and iterates to a fixed point.

    .. math:: x_{n+j}^{(k+1)} = x_n + \sum_{i < j} h_{n+i} \, f(t_{n+i}, x_{n+i}^{(k)}), \qquad 1 \le j \le w

    After each round the window moves to the first state that changed by more than ``tolerance`` (root mean square per
    entry) in some sample of the batch. The slopes before that state are known, so each round advances by at least one
    step. With ``tolerance=0`` the result is that of ``Euler`` on the same grid, up to rounding (batched matrix products
    may round differently); the difference decreases with the tolerance.

    It is for small batches on a device that is not busy: a round costs one evaluation of ``f`` with ``window`` times
    the rows, and one host read. ``stats.nfe`` counts the rounds, which are sequential, and ``stats.evaluations`` the
    rows, more than Euler's. If the batch already fills the device, Euler is faster. A sample that is not finite does
    not delay the others. Gradients pass through the graph of the rounds; use Euler to train.

    Args:
        steps, nfe, grid: as in :class:`FixedGrid`; ``nfe`` counts the steps, which is the largest number of rounds.
        window: w, the number of steps evaluated at once, 2 or more. Default: 16, or all steps of a shorter grid.
        tolerance: change of a state below which it is final, in the unit of the state.

    Raises:
        ValueError: if the window is less than 2 or longer than the grid's ``steps``, the tolerance is negative,
            quadratures are asked for, or ``gradient`` is another mode than ``Backprop()``.

    Source: Shih et al., Parallel Sampling of Diffusion Models, 2023, arXiv:2305.16317, algorithm 1 (with one tolerance
    for all times).

    Example:
        >>> solution = Picard(100, window=25, tolerance=1e-4).solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        >>> solution.y.item(), solution.stats.nfe < 40
        (0.366..., True)
    """

    _: KW_ONLY
    window: int | None = None
    tolerance: float = 1e-3

    why_no_graph = "it reads its progress on the host after each round"
    refused_gradients = dict.fromkeys(
        ("steps", "equation"),
        "its rounds cannot be computed again as steps; pass gradient=Backprop(), or use Euler.",
    )

    def __post_init__(self):
        super().__post_init__()
        steps = self.steps or self.nfe or math.inf
        window = 16 if self.window is None else self.window
        if self.window is not None and (not is_integer(window, 2) or window > steps):
            advice = f"pass window={min(16, steps)}, or " if steps > 1 else ""
            raise ValueError(
                f"Picard(window={window!r}): a window has between 2 and {steps} steps; {advice}use Euler to take one "
                f"at a time."
            )
        if not 0 <= self.tolerance < math.inf:
            raise ValueError(f"Picard(tolerance={self.tolerance}): a tolerance is finite and not negative; pass 1e-3.")

    def _check(self, problem: Problem) -> None:
        if problem.tolerances:
            raise ValueError(
                f"Picard.solve(quadratures={sorted(problem.tolerances)}): it does not evaluate the final slopes; use "
                f"Euler, or Dopri5 for a log-density."
            )

    def _solve(self, problem: Problem) -> Solution:
        """Moves a window over the grid; one host read per round."""
        if problem.batch == 0:
            return problem.nothing()
        nodes = self.layout(problem)
        count, batch = len(nodes) - 1, problem.batch
        times = torch.tensor(nodes, dtype=problem.dtype, device=problem.device)
        lengths = torch.tensor(
            [b - a for a, b in itertools.pairwise(nodes)], dtype=problem.dtype, device=problem.device
        )
        outputs, position = Outputs(problem.at), 0
        outputs.keep(nodes[0], problem.y0)
        window = 16 if self.window is None else self.window
        width = min(window, count)
        start = problem.y0
        guess = [part.unsqueeze(0).expand(width, *part.shape) for part in start]  # of the states after each step
        repeated: dict[int, tuple[Any, ...]] = {}
        while True:
            if width not in repeated:
                repeat = lambda each, width=width: each.expand(width, *each.shape).reshape(-1, *each.shape[1:])
                repeated[width] = on_tensors(repeat, problem.args)
            where = times[position : position + width].repeat_interleave(batch)
            points = [torch.cat((part.unsqueeze(0), each[:-1])) for part, each in zip(start, guess)]
            slopes, _ = problem(where, [each.flatten(0, 1) for each in points], repeated[width])
            h = lengths[position : position + width]
            change = torch.zeros(width, batch, dtype=problem.dtype, device=problem.device)
            states = []
            for part, slope, before in zip(start, slopes, guess):
                moves = like_rows(h, before).to(part.dtype) * slope.reshape(before.shape)
                after = part + moves.cumsum(0)
                squares = per_row((after - before).detach().flatten(0, 1)).square().mean(1)
                change = torch.maximum(change, squares.reshape(width, batch).sqrt().to(problem.dtype))
                states.append(after)
            # A state is final if all states before it are: their slopes were evaluated there.
            settled = (change > self.tolerance).any(1).logical_not().cumprod(0).sum()
            done = min(int(settled) + 1, width)
            for index in range(done):
                if nodes[position + index + 1] in outputs.times:
                    outputs.keep(nodes[position + index + 1], [each[index] for each in states])
            position += done
            start = [each[done - 1] for each in states]
            if position == count:
                break
            width = min(window, count - position)
            # States that enter the window start at its last state.
            guess = [_slide(each[done:], each[-1], width) for each in states]
        return problem.finished(start, steps=count, outputs=outputs.kept)


def _slide(kept: Tensor, last: Tensor, width: int) -> Tensor:
    """Fills the end of a window with its last state."""
    return torch.cat((kept, last.unsqueeze(0).expand(width - len(kept), *last.shape)))
