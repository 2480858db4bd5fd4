"""Numerical inverses of monotone functions: all entries at once, with exact derivatives of the inverse."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor
from torch._higher_order_ops.while_loop import while_loop

__all__ = ["invert"]

# In units of rounding of x or of 1 + |z|: a gap that no longer decreases within NOISE of a root is noise, and a point
# farther than SLACK from a root is not a solution.
NOISE, SLACK = 4.0, 1024.0
# The rounding of x is counted as that of TINY for smaller |x|.
TINY = 1e-3


def invert(
    function: Callable[[Tensor], tuple[Tensor, Tensor]],
    z: Tensor,
    start: Tensor,
    *,
    low: Tensor | None = None,
    high: Tensor | None = None,
    iterations: int | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Solves :math:`g(x) = z` for every entry by Newton's method inside a bracket: ``(x, log dx/dz)``.

    The function must increase, with a positive slope. A missing side of the bracket is found by steps from the start,
    each eight times as long as the last; no value is clamped. Inside the bracket, a bisection replaces a Newton step
    that would leave it, or that is not at most half the step before the last.

    The error of a solution is rounding: that of x, or that of g divided by the slope. **An entry without a solution
    becomes NaN**: if ``z`` is not finite, ``g`` is NaN or does not reach ``z``, a bracket that was passed does not
    contain the root, or the iterations do not suffice.

    Derivatives are those of the implicit function, to third order, for ``z`` and for all that ``function`` depends on,
    including parameters. They come from two Newton steps with a graph at the solution :math:`x_*`, which do not change
    it:

    .. math:: x \leftarrow x - \frac{r - \operatorname{stop}(r)}{g'(x)}, \qquad r = g(x) - z

    One such step, as a function of what ``g`` and ``z`` depend on, is right to first order only (it lacks the term
    with :math:`g''`); a second step doubles the order, as Newton's method does.

    Args:
        function: returns ``(g(x), log g'(x))`` like ``x``; the result of an entry depends only on that entry. For
            compilation it must not use two views of one tensor.
        z: values of g.
        start: first points, like ``z``, inside the bracket.
        low, high: points below and above the root, or equal to it; infinite or None if unknown.
        iterations: largest number of evaluations. Default: 48 in float32, 80 in float64.

    Cost: one evaluation per iteration without a graph, then three with a graph. Newton's method takes 5 to 10; the
    hardest of a million entries with raw numbers of deviation 10 took 34. On the CPU the loop ends when all entries
    have converged; on other devices, and under ``torch.func``, it runs all iterations and reads no values.
    ``torch.compile`` compiles one iteration, as a loop.

    Source: safeguards after Press et al., Numerical Recipes, 2007, section 9.4 (rtsafe).

    Example:
        >>> cubic = lambda x: (x + x**3, torch.log1p(3 * x**2))
        >>> invert(cubic, torch.tensor([10.0, 1010.0]), torch.zeros(2))[0]
        tensor([ 2., 10.])
    """
    if iterations is None:
        iterations = 80 if z.dtype == torch.float64 else 48
    with torch.no_grad():
        low, high = (None if each is None else each.detach() for each in (low, high))
        x, found = _search(function, z.detach(), start.detach(), low, high, iterations)
    x = x.detach()
    for _ in range(2):
        value, slope = function(x)
        x = x - ((value - value.detach()) - (z - z.detach())) * (-slope).exp()
    ladj = -function(x)[1]
    return torch.where(found, x, math.nan), torch.where(found, ladj, math.nan)


class _State(NamedTuple):
    """The state between two iterations, for every entry."""

    x: Tensor
    low: Tensor
    high: Tensor
    best: Tensor  # the point with the smallest gap |g(x) - z| so far
    best_gap: Tensor
    best_step: Tensor
    before: Tensor  # the size of the step before the last
    last: Tensor
    left: Tensor  # whether a point left of the root was evaluated
    right: Tensor
    done: Tensor
    reach: Tensor  # a number: the smallest step without a bracket


def _search(function, z: Tensor, start: Tensor, low, high, iterations: int) -> tuple[Tensor, Tensor]:
    """Finds roots without a graph: ``(x, whether x is a root)``."""
    # Separate contiguous tensors, which a compiled loop needs.
    z, start = z.contiguous(), start.contiguous()
    far = lambda sign=1.0: torch.full_like(z, sign * math.inf)
    no = lambda: torch.zeros_like(z, dtype=torch.bool)
    low, high = (far(s) if each is None else each.contiguous().clone() for each, s in ((low, -1.0), (high, 1.0)))
    state = _State(
        start.clone(), low, high, start.clone(), far(), far(), far(), far(), no(), no(), no(), z.new_ones(())
    )
    on_cpu = z.device.type == "cpu"
    if torch.compiler.is_compiling():
        # On a device the condition is only the count, which is on the host.
        going = lambda i, *state: (i < iterations) & ~state[-2].all() if on_cpu else i < iterations
        body = lambda i, *state: (i + 1, *(each.contiguous() for each in _step(function, z, _State(*state))))
        count = torch.zeros((), dtype=torch.int64, device="cpu")
        state = _State(*while_loop(going, body, (count, *state))[1:])
    else:
        for _ in range(iterations):
            state = _step(function, z, state)
            # The values of wrapped tensors (under vmap, for example) cannot be read.
            if on_cpu and not is_functorch_wrapped_tensor(state.done) and bool(state.done.all()):
                break
    # A jump of g over z counts as a root only if both its sides were evaluated: a bracket that was passed may be wrong.
    width = SLACK * torch.finfo(z.dtype).eps * (1 + state.best.abs())
    closed = state.left & state.right & (state.high - state.low <= width)
    return state.best, (_near(state, z, SLACK) | closed) & state.best_gap.isfinite()


def _step(function, z: Tensor, state: _State) -> _State:
    x, low, high, best, best_gap, best_step, before, last, left, right, done, reach = state
    value, slope = function(x)
    gap = value - z
    # Where both overflow, or the function is flat, the Newton step is infinite.
    newton = torch.where(gap == 0, 0.0, (-gap * (-slope).exp()).nan_to_num(math.inf, math.inf, -math.inf))
    better = gap.abs() < best_gap
    best, best_gap = torch.where(better, x, best), torch.where(better, gap.abs(), best_gap)
    best_step = torch.where(better, newton.abs(), best_step)
    low, high = torch.where(gap < 0, x, low), torch.where(gap > 0, x, high)
    left, right = left | (gap < 0), right | (gap > 0)
    state = state._replace(best=best, best_gap=best_gap, best_step=best_step)
    settled = newton.abs() <= torch.finfo(z.dtype).eps * (TINY + x.abs())
    noise = ~better & last.isfinite() & _near(state, z, NOISE)
    done = done | settled | (high <= low) | noise
    # Inside a bracket: Newton while it stays inside and converges, otherwise bisection.
    inside = (x + newton > low) & (x + newton < high) & (2 * newton.abs() <= before)
    inner = torch.where(inside, newton, 0.5 * low + 0.5 * high - x)
    # Without a bracket: twice the Newton step, to cross the root, limited by two lengths that grow.
    outer = -gap.sign() * (2 * newton.abs()).clamp(reach, 64 * reach)
    bracketed = low.isfinite() & high.isfinite()
    step = torch.where(bracketed, inner, outer)
    before, last = torch.where(bracketed, last, math.inf), torch.where(bracketed, step.abs(), math.inf)
    x = torch.where(done, x, (x + step).clamp(low, high))
    return _State(x, low, high, best, best_gap, best_step, before, last, left, right, done, 8 * reach)


def _near(state: _State, z: Tensor, roundings: float) -> Tensor:
    """Returns which of the best points are within ``roundings`` units of rounding of a root, in z or in x."""
    tolerance = roundings * torch.finfo(z.dtype).eps
    return (state.best_gap <= tolerance * (1 + z.abs())) | (state.best_step <= tolerance * (TINY + state.best.abs()))
