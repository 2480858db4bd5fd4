"""Conformance of fields: their results and derivatives."""

from __future__ import annotations

import copy

import torch
from torch import Size, Tensor, nn

from cflow.fields import as_field
from cflow.shapes import on_tensors, rows, sum_rows
from cflow.testing.checks import close, demand
from cflow.testing.copies import check_copies, draws_nothing

__all__ = ["BATCH", "check_attributes", "check_calls", "check_field", "contexts", "opened"]

BATCH = 4


def check_field(
    field: nn.Module, context=None, *, event_shape=None, saved: bool = True, null: bool = True, trained: bool = True
) -> None:
    """Checks a field.

    The suite checks shapes and dtypes, independence of rows, that no random numbers are drawn, the context that means
    "no condition", a second time, derivatives against finite differences, gradients of every parameter, copies and
    saved files. It compares a divergence in closed form with autograd.

    Args:
        field: the network; a copy is tested, in float64. Parameters that are zero are made random.
        context: contexts for four samples. Default: random contexts of ``field.context_shape``.
        event_shape: the shape of one sample, for a network without this attribute.
        saved: whether the field can be saved (a field that contains a function cannot).
        null: whether a conditional field has a context for "no condition".
        trained: whether every parameter must receive a gradient.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.fields import MLP
        >>> check_field(MLP(2, hidden=(8,), classes=3))
    """
    generator = torch.Generator().manual_seed(0)
    field = opened(field, generator)
    known = as_field(field)
    check_attributes(known)
    event = Size(known.event_shape if event_shape is None else event_shape)
    low, high = known.interval
    x = torch.randn(BATCH, *event, generator=generator, dtype=torch.float64)
    t = low + (high - low) * (0.1 + 0.8 * torch.rand(BATCH, generator=generator, dtype=torch.float64))
    if context is None and known.context_shape is not ...:
        context = contexts(known.context_shape, known.classes, generator)
    shape = event if known.outputs in (1, ...) else (known.outputs, *event)

    check_calls(field, t, x, context, shape, saved, null, trained)
    _check_derivatives(field, t, x, context)
    _check_divergence(field, t, x, context)


def opened(field: nn.Module, generator) -> nn.Module:
    """Returns a copy of a field in float64, without parameters that are zero."""
    field = copy.deepcopy(field).double()
    with torch.no_grad():
        for parameter in field.parameters():
            if parameter.numel() and not parameter.any():
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return field


def check_calls(field, t: Tensor, x: Tensor, context, shape, saved: bool, null: bool, trained: bool) -> None:
    """Checks what fields on numbers and on tokens have in common; ``shape`` is that of the result for one sample."""
    _check_results(field, t, x, context, shape)
    _check_rows(field, t, x, context)
    if context is not None:
        _check_context(field, t, x, context, null)
    _check_second_time(field, t, x, context)
    if trained:
        _check_gradients(field, t, x, context, null)
    check_copies(field, lambda each: each(t, x, context).detach(), "field", saved)
    _check_single_precision(field, t, x, context)


def check_attributes(field) -> None:
    """Checks the attributes of the contract."""
    demand(field.event_shape is ... or isinstance(field.event_shape, Size | dict), "event_shape is a torch.Size")
    shape, classes = field.context_shape, field.classes
    demand(shape in (None, ...) or isinstance(shape, Size | dict), "context_shape is None or a torch.Size")
    demand(isinstance(classes, int) and classes >= 0, "classes is the number of labels, 0 for none")
    demand(not classes or shape in (Size(()), ...), "a class label has the context_shape ()")
    demand(
        field.outputs is ... or (isinstance(field.outputs, int) and field.outputs >= 1),
        "outputs is the number of outputs",
    )
    for name in ("two_times", "reads_time", "self_conditioned"):
        demand(isinstance(getattr(field, name), bool), f"{name} is a bool")
    low, high = field.interval
    demand(0 <= low < high <= 1, "interval is a part of [0, 1]")


def contexts(shape, classes: int, generator):
    """Draws contexts of a shape, or labels, for the batch of the suite."""
    if shape is None:
        return None
    if isinstance(shape, dict):
        return {name: contexts(part, 0, generator) for name, part in shape.items()}
    if classes:
        return torch.arange(BATCH) % classes
    return torch.randn(BATCH, *shape, generator=generator, dtype=torch.float64)


def _head(context, taken):
    return on_tensors(lambda part: part[taken], context)


def _cast(context, dtype: torch.dtype):
    return on_tensors(lambda part: part.to(dtype) if part.is_floating_point() else part, context)


def _check_results(field, t: Tensor, x: Tensor, context, shape) -> None:
    given = copy.deepcopy((t, x, context))
    with torch.no_grad():
        value = draws_nothing(lambda: field(t, x, context), "a call")
        demand(value.shape == (len(x), *shape), f"the result has shape {(len(x), *shape)}, not {tuple(value.shape)}")
        demand(value.dtype == torch.float64, f"float64 stays float64, not {value.dtype}")
        demand(value.isfinite().all(), "the result is finite")
        for before, after in zip(given, (t, x, context)):
            parts = [(before, after)] if not isinstance(before, dict) else [(before[k], after[k]) for k in before]
            demand(all(a is b or torch.equal(a, b) for a, b in parts), "the inputs are not changed")
        demand(torch.equal(field(t, x, context), value), "the same call returns the same value")
        for count in (0, 1):
            few = field(t[:count], x[:count], _head(context, slice(count)))
            demand(few.shape == (count, *shape), f"a batch of {count} has shape {(count, *shape)}")
            demand(few.dtype == torch.float64, f"float64 stays float64 in a batch of {count}")
        for at in as_field(field).interval:
            end = field(torch.full_like(t, at), x, context)
            demand(end.isfinite().all(), f"the result is finite at t = {at}, the end of the interval")


def _check_single_precision(field, t: Tensor, x: Tensor, context) -> None:
    with torch.no_grad():
        value = field(t, x, context)
        rough = copy.deepcopy(field).float()(t.float(), _cast(x, torch.float32), _cast(context, torch.float32))
        demand(rough.dtype == torch.float32, f"in float32 the result is float32, not {rough.dtype}")
        gap = float((rough - value).norm() / value.norm().clamp(min=1e-3))
        demand(gap < 1e-3, f"float32 and float64 agree up to rounding: relative gap {gap:.3g}")


def _check_rows(field, t: Tensor, x: Tensor, context) -> None:
    with torch.no_grad():
        value = field(t, x, context)
        scale = 1e-10 * (1 + float(value.abs().max()))
        for i in range(len(x)):
            alone = field(t[i : i + 1], x[i : i + 1], _head(context, slice(i, i + 1)))
            close(alone[0], value[i], scale, "the result of a sample does not depend on the others")
        shared = field(t[:1].expand(len(x)), x, context)
        close(field(t[0], x, context), shared, scale, "a time [] is shared by all samples")


def _check_context(field, t: Tensor, x: Tensor, context, null: bool) -> None:
    known = as_field(field)
    if known.context_shape is not ...:
        _refused(lambda: field(t, x), "a missing context must raise an error")
    if not null:
        _refused(lambda: known.null_context(context), "null_context must raise an error without a 'no condition'")
        return
    given = copy.deepcopy(context)
    empty = draws_nothing(lambda: known.null_context(context), "null_context")
    pairs = [(context, empty)] if torch.is_tensor(context) else [(context[key], empty[key]) for key in context]
    for old, new in pairs:
        demand(new.shape == old.shape and new.dtype == old.dtype, "no condition has the shape and dtype of a context")
    reverse = lambda value: on_tensors(lambda part: part.flip(0), value)
    again = (known.null_context(reverse(context)), known.null_context(empty))
    alike = lambda a, b: torch.equal(a, b) if torch.is_tensor(a) else all(torch.equal(a[key], b[key]) for key in a)
    demand(all(alike(empty, each) for each in again), "no condition is the same for all contexts")
    demand(alike(context, given), "null_context does not change the context")
    if known.classes:
        labels = (empty < 0) | (empty >= known.classes)
        demand(labels.all(), f"no condition differs from the labels 0 to {known.classes - 1}")
    with torch.no_grad():
        bare, told = field(t, x, empty), field(t, x, context)
        demand(bare.isfinite().all(), "the result without a condition is finite")
        apart = rows(bare - told).abs().amax(1)
        demand((apart > 1e-9).all(), "the result with a condition differs from that without one")
        mixed = on_tensors(lambda old, new: torch.cat([old[:2], new[2:]]), context, empty)
        value = field(t, x, mixed)
        close(value, torch.cat([told[:2], bare[2:]]), 1e-9, "rows with and without a condition may be mixed")


def _check_second_time(field, t: Tensor, x: Tensor, context) -> None:
    s = t + 0.5 * (as_field(field).interval[1] - t)
    if not as_field(field).two_times:
        _refused(lambda: field(t, x, context, s=s), "a second time must raise an error in a field of one time")
        return
    with torch.no_grad():
        now = field(t, x, context)
        close(field(t, x, context, s=t), now, 1e-10, "the result without s is the velocity, the result for s = t")
        step = field(t, x, context, s=s)
        demand(step.shape == now.shape and step.dtype == now.dtype, "with s the result has the same shape and dtype")
        demand((step - now).abs().max() > 1e-9, "the result depends on the second time")


def _check_derivatives(field, t: Tensor, x: Tensor, context) -> None:
    """Compares the derivative along a random direction with a finite difference, which shows rounding below float64."""
    generator, size = torch.Generator().manual_seed(1), 1e-5
    direction = torch.randn(x.shape, generator=generator, dtype=x.dtype)
    point = x.clone().requires_grad_()
    value = field(t, point, context)
    weights = torch.randn(value.shape, generator=generator, dtype=x.dtype)
    (slope,) = torch.autograd.grad((weights * value).sum(), point, materialize_grads=True)
    with torch.no_grad():
        ahead, behind = (field(t, x + sign * size * direction, context) for sign in (1, -1))
        difference = sum_rows(weights * (ahead - behind)) / (2 * size)
        along = sum_rows(slope * direction)
    # Finite differences in float64 are accurate to 1e-10 over the step; in float32 to 1e-2.
    close(along, difference, 1e-5 * (1 + float(along.abs().max())), "the derivative in x agrees with differences")


def _check_gradients(field, t: Tensor, x: Tensor, context, null: bool) -> None:
    known, parameters = as_field(field), {k: p for k, p in field.named_parameters() if p.requires_grad}
    if not parameters:
        return
    calls = [field(t, x, context)]
    if context is not None and null:
        calls.append(field(t, x, known.null_context(context)))
    if known.two_times:
        calls.append(field(t, x, context, s=t + 0.1))
    if known.self_conditioned:
        calls.append(field(t, x, context, previous=calls[0].detach()))
    generator = torch.Generator().manual_seed(2)
    total = sum((torch.randn(v.shape, generator=generator, dtype=v.dtype) * v).sum() for v in calls)
    demand(total.requires_grad, "the result has a graph to the parameters")
    gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    missing = [name for name, each in zip(parameters, gradients) if each is None or not each.any()]
    demand(not missing, f"no gradient reaches {missing[:3]}")
    demand(all(each.isfinite().all() for each in gradients), "gradients are finite")


def _check_divergence(field, t: Tensor, x: Tensor, context) -> None:
    known = as_field(field)
    if known.outputs not in (1, ...):
        return
    try:
        value, trace = known.value_and_divergence(t, x, context)
    except TypeError:  # no closed form is known
        return
    close(value, field(t, x, context), 1e-10, "value_and_divergence returns the value of a call")
    demand(trace.shape == x.shape[:1], f"the divergence has shape {tuple(x.shape[:1])}, not {tuple(trace.shape)}")
    point = x.clone().requires_grad_()
    flat = rows(field(t, point, context))
    slopes = [torch.autograd.grad(flat[:, d].sum(), point, retain_graph=True)[0] for d in range(flat.shape[1])]
    exact = sum(rows(slope)[:, d] for d, slope in enumerate(slopes))
    close(trace, exact, 1e-9 * (1 + float(exact.abs().max())), "the divergence is the trace by autograd")
    rough = as_field(copy.deepcopy(field).float()).value_and_divergence(
        t.float(), x.float(), _cast(context, torch.float32)
    )[1]
    demand(rough.dtype == torch.float32, "in float32 the divergence is float32")


def _refused(call, message: str) -> None:
    try:
        call()
    except (TypeError, ValueError):
        return
    raise AssertionError(message)
