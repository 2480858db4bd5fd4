"""Conformance of denoisers: fields that read tokens and return logits."""

from __future__ import annotations

import copy

import torch
from torch import Size, Tensor, nn

from cflow.fields import as_field
from cflow.testing.checks import close, demand
from cflow.testing.fields import BATCH, check_attributes, check_calls, contexts, opened

__all__ = ["check_denoiser"]


def check_denoiser(
    denoiser: nn.Module,
    states: int,
    vocabulary: int,
    context=None,
    *,
    event_shape=None,
    saved: bool = True,
    null: bool = True,
    trained: bool = True,
) -> None:
    """Checks a denoiser, a field on tokens that returns logits ``[B, *event_shape, vocabulary]``.

    The suite checks shapes and dtypes, independence of rows, that no random numbers are drawn, the context that means
    "no condition", gradients of every parameter, copies and saved files, as :func:`check_field` does. It checks that
    all dtypes of integers return the same, that a time may be a number, and that the attributes ``reads_time`` and
    ``self_conditioned`` are true.

    Args:
        denoiser: the network; a copy is tested, in float64. Parameters that are zero are made random.
        states: the number of values of an input token, the mask included.
        vocabulary: the number of values of a token of the data, the number of logits.
        context: contexts for four samples. Default: random contexts of ``denoiser.context_shape``.
        event_shape: the shape of one sample, for a network without this attribute.
        saved: whether the denoiser can be saved (one that contains a function cannot).
        null: whether a conditional denoiser has a context for "no condition".
        trained: whether every parameter must receive a gradient.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.fields import TokenDiT
        >>> check_denoiser(TokenDiT(3, 5, 4, width=8, depth=1, heads=2), states=5, vocabulary=4)
    """
    generator = torch.Generator().manual_seed(0)
    denoiser = opened(denoiser, generator)
    known = as_field(denoiser)
    check_attributes(known)
    event = Size(known.event_shape if event_shape is None else event_shape)
    low, high = known.interval
    x = torch.randint(states, (BATCH, *event), generator=generator)
    x.flatten(1)[:, 0] = torch.tensor([0, states - 1]).repeat(BATCH // 2)  # the first and the last state
    t = low + (high - low) * (0.1 + 0.8 * torch.rand(BATCH, generator=generator, dtype=torch.float64))
    if context is None and known.context_shape is not ...:
        context = contexts(known.context_shape, known.classes, generator)

    check_calls(denoiser, t, x, context, (*event, vocabulary), saved, null, trained)
    _check_integers(denoiser, t, x, context)
    _check_times(denoiser, t, x, context)
    _check_previous(denoiser, t, x, context)


def _check_integers(denoiser, t: Tensor, x: Tensor, context) -> None:
    with torch.no_grad():
        value = denoiser(t, x, context)
        for dtype in (torch.uint8, torch.int16, torch.int32):
            if x.max() <= torch.iinfo(dtype).max:
                demand(torch.equal(denoiser(t, x.to(dtype), context), value), f"{dtype} and int64 return the same")
        rough = copy.deepcopy(denoiser).bfloat16()(t.float(), x, context)
        demand(rough.dtype == torch.float32, f"a network in bf16 returns logits in float32, not {rough.dtype}")
        gap = float((rough - value).norm() / value.norm().clamp(min=1e-3))
        demand(gap < 0.1, f"bf16 and float64 agree up to rounding: relative gap {gap:.3g}")


def _check_times(denoiser, t: Tensor, x: Tensor, context) -> None:
    with torch.no_grad():
        value = denoiser(t, x, context)
        scale = 1e-10 * (1 + float(value.abs().max()))
        close(denoiser(0.3, x, context), denoiser(torch.full_like(t, 0.3), x, context), scale, "t may be a number")
        moved = (denoiser(t.flip(0), x, context) - value).abs().max()
        if as_field(denoiser).reads_time:
            demand(moved > 1e-9, "with reads_time = True the result depends on the time")
        else:
            demand(moved == 0, "with reads_time = False the result does not depend on the time")


def _check_previous(denoiser, t: Tensor, x: Tensor, context) -> None:
    if not as_field(denoiser).self_conditioned:
        return
    with torch.no_grad():
        value = denoiser(t, x, context)
        close(denoiser(t, x, context, previous=None), value, 0.0, "previous may be None")
        second = denoiser(t, x, context, previous=value)
        demand(second.shape == value.shape, "the result has the same shape with previous")
        demand(second.dtype == value.dtype, "the result has the same dtype with previous")
        apart = (second - value).abs().flatten(1).amax(1)
        demand((apart > 1e-9).all(), "the result depends on the logits of an earlier call")
