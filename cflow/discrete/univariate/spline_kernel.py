"""A fused kernel for the rational-quadratic spline: one pass over memory forward, one backward.

It has not run on a GPU yet: it has been checked on a CPU, through Triton's interpreter, against the eager arithmetic of
:class:`~cflow.discrete.RationalQuadratic`. Until it has been measured on a GPU, it is used only with
``RationalQuadratic(kernel="triton")``.

One program maps a block of entries. It reads the ``3 bins - 1`` raw numbers of each entry once, keeps softmax, knots
and slopes in registers, and writes two numbers. The backward pass reads the raw numbers again and needs no saved
results.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # an extra: the eager path needs none
    triton = None

__all__ = ["available", "fused"]

BLOCK = 128


def available() -> bool:
    """Returns whether Triton can be imported."""
    return triton is not None


def fused(family, value: Tensor, raw: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
    """Computes ``family.encode``, or with ``inverse`` ``family.decode``, in one kernel.

    It has gradients of first order only. For second derivatives, ``torch.func`` transforms, float64, other tails or a
    CPU, use ``kernel="eager"``.

    Shapes: ``value [...]``, ``raw [..., 3 bins - 1]``, both float32 on a device that Triton supports.

    Raises:
        ImportError: if Triton is not installed.
        ValueError: for another dtype, a CPU (unless ``TRITON_INTERPRET=1`` was set before Triton was imported), tails
            other than ``"linear"``, or shapes that do not fit.

    Source: Durkan et al., Neural Spline Flows, 2019, arXiv:1906.04032.
    """
    if triton is None:
        raise ImportError(
            "RationalQuadratic(kernel='triton'): Triton is not installed; pip install triton, or set kernel='eager'."
        )
    if value.dtype != torch.float32 or raw.dtype != torch.float32 or family.tails != "linear":
        raise ValueError(
            f"RationalQuadratic(kernel='triton') of {value.dtype} and {raw.dtype}, tails={family.tails!r}: not float32 "
            f"and linear tails; set kernel='eager'."
        )
    if value.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        raise ValueError(
            "RationalQuadratic(kernel='triton') on a CPU: Triton compiles for GPUs; move the flow to a GPU, or set "
            "kernel='eager'."
        )
    if raw.shape != (*value.shape, family.size):
        raise ValueError(
            f"RationalQuadratic(kernel='triton') of value {list(value.shape)} and raw {list(raw.shape)}: shapes do not "
            f"fit; pass raw of shape {[*value.shape, family.size]}."
        )
    numbers = (family.bins, family.bound, family.minimum_bin, family.minimum_slope, inverse)
    return torch.ops.cflow.spline(value.contiguous(), raw.contiguous(), *numbers)


@torch.library.custom_op("cflow::spline", mutates_args=())
def _spline(
    value: Tensor, raw: Tensor, bins: int, bound: float, minimum_bin: float, minimum_slope: float, inverse: bool
) -> tuple[Tensor, Tensor]:
    result, ladj = torch.empty_like(value), torch.empty_like(value)
    if value.numel():
        _forward_kernel[(triton.cdiv(value.numel(), BLOCK),)](
            value, raw, result, ladj, value.numel(), bound, minimum_bin, minimum_slope, **_sizes(bins, inverse)
        )
    return result, ladj


@torch.library.custom_op("cflow::spline_backward", mutates_args=())
def _spline_backward(
    value: Tensor,
    raw: Tensor,
    gresult: Tensor,
    gladj: Tensor,
    bins: int,
    bound: float,
    minimum_bin: float,
    minimum_slope: float,
    inverse: bool,
) -> tuple[Tensor, Tensor]:
    gvalue, graw = torch.empty_like(value), torch.empty_like(raw)
    if value.numel():
        _backward_kernel[(triton.cdiv(value.numel(), BLOCK),)](
            value, raw, gresult, gladj, gvalue, graw, value.numel(), bound, minimum_bin, minimum_slope,
            **_sizes(bins, inverse),
        )  # fmt: skip
    return gvalue, graw


@_spline.register_fake
def _(value, raw, *numbers):
    return torch.empty_like(value), torch.empty_like(value)


@_spline_backward.register_fake
def _(value, raw, *rest):
    return torch.empty_like(value), torch.empty_like(raw)


def _setup(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])
    ctx.numbers = inputs[2:]


def _backward(ctx, gresult, gladj):
    gradients = torch.ops.cflow.spline_backward(
        *ctx.saved_tensors, gresult.contiguous(), gladj.contiguous(), *ctx.numbers
    )
    return *gradients, *(None for _ in ctx.numbers)


_spline.register_autograd(_backward, setup_context=_setup)


def _sizes(bins: int, inverse: bool) -> dict:
    return {"bins": bins, "padded": triton.next_power_of_2(bins), "inverse": inverse, "block": BLOCK}


if triton is not None:

    @triton.jit
    def _shares(raw, row, rows, k, live, bins: tl.constexpr, first: tl.constexpr, minimum):
        """Reads a row of raw numbers; returns its softmax, and lengths as shares of the box, at least ``minimum``."""
        numbers = tl.load(
            raw + row[:, None] * (3 * bins - 1) + first + k[None, :],
            mask=live[:, None] & (k[None, :] < bins),
            other=-float("inf"),
        )
        numbers = tl.where(live[:, None], numbers, 0.0)
        numbers = tl.exp(numbers - tl.max(numbers, 1)[:, None])
        soft = numbers / tl.sum(numbers, 1)[:, None]
        share = tl.where(k[None, :] < bins, minimum + (1 - minimum * bins) * soft, 0.0)
        return soft, share

    @triton.jit
    def _slope(raw, row, place, live, bins: tl.constexpr, minimum):
        """Returns the slope at knot ``place`` and its derivative by the raw number; both ends are fixed."""
        inner = live & (place > 0) & (place < bins)
        number = tl.load(raw + row * (3 * bins - 1) + 2 * bins + place - 1, mask=inner, other=0.0)
        # log2(1 + 2 ** r) without overflow
        soft = tl.maximum(number, 0.0) + tl.log2(1.0 + tl.exp2(-tl.abs(number)))
        ratio = 1.0 / (1.0 + tl.exp2(-number))
        slope = minimum + (1 - minimum) * soft
        return slope, tl.where(inner, (1 - minimum) * ratio, 0.0), inner

    @triton.jit
    def _bin(value, wide, high, k, bound, bins: tl.constexpr, inverse: tl.constexpr):
        """Finds the bin: knots below, its index, and its start and length for data and latents."""
        inside = tl.minimum(tl.maximum(value, -bound), bound)
        ends = tl.cumsum(high if inverse else wide, 1)
        passed = (ends * (2 * bound) <= (inside + bound)[:, None]) & (k[None, :] < bins - 1)
        index = tl.sum(passed.to(tl.int32), 1)
        mine = k[None, :] == index[:, None]
        left = tl.sum(tl.where(passed, wide, 0.0), 1) * (2 * bound) - bound
        bottom = tl.sum(tl.where(passed, high, 0.0), 1) * (2 * bound) - bound
        width = tl.sum(tl.where(mine, wide, 0.0), 1) * (2 * bound)
        height = tl.sum(tl.where(mine, high, 0.0), 1) * (2 * bound)
        return inside, passed, mine, index, left, bottom, width, height

    @triton.jit
    def _theta(inside, left, bottom, width, height, s0, s1, inverse: tl.constexpr):
        """Returns the relative position in the bin, from data or from latents."""
        if inverse:
            delta = height / width
            eta = tl.minimum(tl.maximum((inside - bottom) / height, 0.0), 1.0)
            rest = 1 - eta
            up, down = 2 * delta * eta, 2 * delta * rest
            p = s0 * rest - s1 * eta
            other = tl.abs(p) + tl.sqrt(p * p + up * down)
            done = tl.where(p >= 0, up, other)
            theta = done / (done + tl.where(p >= 0, other, down))
        else:
            theta = tl.minimum(tl.maximum((inside - left) / width, 0.0), 1.0)
        return theta

    @triton.jit
    def _forward_kernel(
        values, raw, results, ladjs, count, bound, minimum_bin, minimum_slope,
        bins: tl.constexpr, padded: tl.constexpr, inverse: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        live, k = row < count, tl.arange(0, padded)
        value = tl.load(values + row, mask=live, other=0.0)
        _, wide = _shares(raw, row, count, k, live, bins, 0, minimum_bin)
        _, high = _shares(raw, row, count, k, live, bins, bins, minimum_bin)
        inside, _, _, index, left, bottom, width, height = _bin(value, wide, high, k, bound, bins, inverse)
        s0, _, _ = _slope(raw, row, index, live, bins, minimum_slope)
        s1, _, _ = _slope(raw, row, index + 1, live, bins, minimum_slope)
        theta = _theta(inside, left, bottom, width, height, s0, s1, inverse)
        delta, rest = height / width, 1 - theta
        share = delta / (delta + (s0 + s1 - 2 * delta) * theta * rest)
        slope = s0 * rest * rest + 2 * delta * theta * rest + s1 * theta * theta
        ladj = tl.log(slope) + 2 * tl.log(share)
        if inverse:
            result, ladj = left + width * theta, -ladj
        else:
            result = bottom + width * theta * share * (s0 * rest + delta * theta)
        outside = tl.abs(value) >= bound
        tl.store(results + row, tl.where(outside, value, result), mask=live)
        tl.store(ladjs + row, tl.where(outside, 0.0, ladj), mask=live)

    @triton.jit
    def _backward_kernel(
        values, raw, gresults, gladjs, gvalues, graws, count, bound, minimum_bin, minimum_slope,
        bins: tl.constexpr, padded: tl.constexpr, inverse: tl.constexpr, block: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
        live, k = row < count, tl.arange(0, padded)
        value = tl.load(values + row, mask=live, other=0.0)
        softw, wide = _shares(raw, row, count, k, live, bins, 0, minimum_bin)
        softh, high = _shares(raw, row, count, k, live, bins, bins, minimum_bin)
        inside, passed, mine, index, left, bottom, width, height = _bin(value, wide, high, k, bound, bins, inverse)
        s0, d0, _inner0 = _slope(raw, row, index, live, bins, minimum_slope)
        s1, d1, _inner1 = _slope(raw, row, index + 1, live, bins, minimum_slope)
        theta = _theta(inside, left, bottom, width, height, s0, s1, inverse)
        outside = tl.abs(value) >= bound
        gresult = tl.load(gresults + row, mask=live, other=0.0)
        gladj = tl.load(gladjs + row, mask=live, other=0.0)

        # In a bin, z = bottom + height * r with r = n / d, and the log-slope is l = log m + 2 log(delta / d).
        delta, rest = height / width, 1 - theta
        both = theta * rest
        d = delta + (s0 + s1 - 2 * delta) * both
        n = theta * (delta * theta + s0 * rest)
        m = s0 * rest * rest + 2 * delta * both + s1 * theta * theta
        r, share = n / d, delta / d
        # By theta, delta, s0, s1.
        d_t, d_delta = (s0 + s1 - 2 * delta) * (1 - 2 * theta), 1 - 2 * both
        m_t = 2 * (delta * (1 - 2 * theta) - s0 * rest + s1 * theta)
        l_t = m_t / m - 2 * d_t / d
        l_delta = 2 * both / m + 2 / delta - 2 * d_delta / d
        l_s0 = rest * rest / m - 2 * both / d
        l_s1 = theta * theta / m - 2 * both / d
        r_t = share * m / d
        r_delta = (theta * theta - r * d_delta) / d
        r_s0 = both * (1 - r) / d
        r_s1 = -both * r / d
        if inverse:
            # x = left + width * theta, where r(theta; ...) = (z - bottom) / height; l changes sign.
            g_t = (gresult * width - gladj * l_t) / r_t
            g_eta = g_t / height
            g_value, g_bottom = g_eta, -g_eta
            g_left, g_width = gresult, gresult * theta
            g_height = -g_eta * r
            g_delta = -g_t * r_delta - gladj * l_delta
            g_s0 = -g_t * r_s0 - gladj * l_s0
            g_s1 = -g_t * r_s1 - gladj * l_s1
        else:
            g_t = gresult * height * r_t + gladj * l_t
            g_value, g_left = g_t / width, -g_t / width
            g_width = -g_t * theta / width
            g_bottom, g_height = gresult, gresult * r
            g_delta = gresult * height * r_delta + gladj * l_delta
            g_s0 = gresult * height * r_s0 + gladj * l_s0
            g_s1 = gresult * height * r_s1 + gladj * l_s1
        g_height += g_delta / width
        g_width -= g_delta * delta / width
        scale = tl.where(outside, 0.0, 2 * bound * (1 - minimum_bin * bins))
        g_wide = tl.where(passed, g_left[:, None], 0.0) + tl.where(mine, g_width[:, None], 0.0)
        g_high = tl.where(passed, g_bottom[:, None], 0.0) + tl.where(mine, g_height[:, None], 0.0)
        g_wide = softw * (g_wide - tl.sum(softw * g_wide, 1)[:, None]) * scale[:, None]
        g_high = softh * (g_high - tl.sum(softh * g_high, 1)[:, None]) * scale[:, None]
        here = graws + row[:, None] * (3 * bins - 1) + k[None, :]
        lane = live[:, None] & (k[None, :] < bins)
        tl.store(here, g_wide, mask=lane)
        tl.store(here + bins, g_high, mask=lane)
        # Lane k has the gradient of inner knot k + 1.
        g_s0, g_s1 = tl.where(outside, 0.0, g_s0 * d0), tl.where(outside, 0.0, g_s1 * d1)
        knot = k[None, :] + 1
        g_knot = tl.where(knot == index[:, None], g_s0[:, None], 0.0)
        g_knot += tl.where(knot == index[:, None] + 1, g_s1[:, None], 0.0)
        tl.store(here + 2 * bins, g_knot, mask=live[:, None] & (k[None, :] < bins - 1))
        tl.store(gvalues + row, tl.where(outside, gresult, g_value), mask=live)
