"""Points far from the data, at infinity, and NaN: log-densities are numbers or -inf, and other rows do not change."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from cflow.shapes import rows
from cflow.testing.checks import close, demand

__all__ = ["check_far"]

FAR = (5.0, 20.0, 100.0, 1e6, 1e20)
LOST = (math.inf, -math.inf, math.nan)


def check_far(module: nn.Module, near: Tensor, log_prob: Callable[[nn.Module, Tensor], Tensor]) -> None:
    """Checks the log-densities of points at 5 to 1e20 standard deviations, at infinity and with NaN.

    They must be finite or -inf, and NaN only for NaN, in float64 and float32. Values and gradients of the other rows
    must be the same as without these points. For finite points far from the data a module may raise a ``ValueError``
    (outside its domain) or a ``FloatingPointError`` (the solver failed).

    Args:
        module: a flow or a base; copies are tested.
        near: points ``[B, *event]`` where the density is finite.
        log_prob: a function of the module and points.
    """
    for dtype in (torch.float64, torch.float32):
        each = copy.deepcopy(module).to(dtype)
        good = near.to(dtype)
        try:
            _check(each, good, (*FAR, *LOST), log_prob)
        except (ValueError, FloatingPointError):
            try:
                _check(each, good, LOST, log_prob)
            except ValueError:  # maps that read values raise for these as well
                continue


def _check(module, good: Tensor, sizes, log_prob) -> None:
    count, event = len(good), good.shape[1:]
    all_of_it = [good.new_tensor(sign * size).expand(event) for size in sizes for sign in (1, -1)]
    last = (torch.arange(event.numel()) == event.numel() - 1).reshape(event)
    bad = torch.stack(all_of_it + [torch.where(last, each, good[0]) for each in all_of_it])
    alone, x = good.clone().requires_grad_(), torch.cat((good, bad)).requires_grad_()
    wanted, found = log_prob(module, alone), log_prob(module, x)
    far, unknown = found.detach()[count:], rows(bad).isnan().any(1)
    demand((far[~unknown] < math.inf).all(), "a log-density far from the data is a number or -inf, never NaN")
    demand((far[rows(bad).isinf().any(1)] == -math.inf).all(), "a log-density at infinity is -inf")
    demand(far[unknown].isnan().all(), "a log-density of NaN is NaN")
    rounding = 1e3 * torch.finfo(good.dtype).eps * (1 + float(wanted.detach().abs().max()))
    close(found[:count], wanted, rounding, "points far from the data do not change the density of other rows")
    if not wanted.requires_grad:
        return
    weights = [each for each in module.parameters() if each.requires_grad]
    gradients = lambda value, point: torch.autograd.grad(
        value.sum(), [point, *weights], retain_graph=True, allow_unused=True
    )
    for i, (left, right) in enumerate(zip(gradients(wanted, alone), gradients(found[:count], x))):
        if left is not None and right is not None and left.numel():
            tolerance = 1e2 * rounding * (1 + float(left.abs().max()))
            close(right if i else right[:count], left, tolerance, "gradients of a row do not depend on the others")
    for each in gradients(found[found.detach() == -math.inf], x):
        demand(each is None or not each.any(), "the gradient of a row without a density is zero")
