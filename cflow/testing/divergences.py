"""Conformance of divergences, on fields whose Jacobian is known."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from cflow.divergence import Divergence
from cflow.fields import Field
from cflow.shapes import rows
from cflow.testing.checks import close, demand
from cflow.testing.copies import check_draws, draws_nothing

__all__ = ["check_divergence"]

DRAWS = 4000


class Swirl(Field):
    """Computes ``cos(t) (tanh(x) A + shift x)``, whose Jacobian ``cos(t) (diag(1 - tanh(x)^2) A + shift)`` is known."""

    def __init__(self, event_shape, generator):
        super().__init__(event_shape)
        size = self.event_shape.numel()
        self.matrix = nn.Parameter(torch.randn(size, size, generator=generator, dtype=torch.float64))

    def forward(self, t: Tensor, x: Tensor, shift: Tensor | None = None, *, s=None) -> Tensor:
        shift = 0.0 if shift is None else shift[:, None]
        flat = rows(x)
        value = torch.tanh(flat) @ self.matrix.to(x.dtype) + shift * flat
        return (torch.cos(t).reshape(-1, 1) * value).reshape(x.shape)

    def jacobian(self, t: Tensor, x: Tensor, shift: Tensor | None = None) -> Tensor:
        flat = rows(x)
        slopes = (1 - torch.tanh(flat).square()).unsqueeze(2) * self.matrix.to(x.dtype)
        if shift is not None:
            slopes = slopes + torch.diag_embed(shift[:, None].expand_as(flat))
        return torch.cos(t).reshape(-1, 1, 1) * slopes

    def value_and_divergence(self, t: Tensor, x: Tensor, shift: Tensor | None = None) -> tuple[Tensor, Tensor]:
        trace = self.jacobian(t, x, shift).diagonal(dim1=1, dim2=2).sum(1)
        return self(t, x, shift), trace.to(torch.promote_types(x.dtype, torch.float32))


def check_divergence(divergence: Divergence) -> None:
    """Checks a divergence.

    The suite checks the value of the field that it returns as well, shapes and dtypes, gradients, probes, empty batches
    and copies. It compares the trace and the squared Frobenius norm with known Jacobians.

    Args:
        divergence: the divergence. The mean of 4000 draws of an estimate must be correct within five standard errors. A
            correct estimate fails once in two million seeds; the seed is fixed.

    Raises:
        AssertionError: if a property fails; the message states which.

    Example:
        >>> from cflow.divergence import Exact
        >>> check_divergence(Exact())
    """
    demand(isinstance(divergence.exact, bool), "exact is a bool: whether the value is exact")
    demand(isinstance(divergence.frobenius, bool), "frobenius is a bool: whether the norm is returned")
    for event in ((3,), (2, 3), (1,), ()):
        generator = torch.Generator().manual_seed(0)
        field = Swirl(event, generator)
        x = torch.randn(5, *event, generator=generator, dtype=torch.float64)
        t, shift = torch.rand(2, 5, generator=generator, dtype=torch.float64)
        _check_call(divergence, field, t, x, shift)
        _check_rows(divergence, field, t, x, shift)
        _check_value(divergence, field, t, x, shift)
        _check_gradients(divergence, field, t, x, shift)
    _check_probe(divergence, field, t, x, shift)
    copied = copy.deepcopy(divergence)
    answers = [_ask(each, field, t, x, shift, seed=4)[1] for each in (divergence, copied)]
    demand(torch.equal(*answers), "a deep copy is the same divergence")
    if dataclasses.is_dataclass(divergence):
        demand(dataclasses.replace(divergence) == divergence, "it is rebuilt from its arguments")


def _ask(divergence, field, t, x, *args, seed: int = 1):
    probe = divergence.begin(x, torch.Generator().manual_seed(seed))
    return divergence(field, t, x, probe, *args)


def _check_call(divergence, field, t: Tensor, x: Tensor, shift: Tensor) -> None:
    probe = divergence.begin(x, torch.Generator().manual_seed(1))
    demand(probe is None or probe.shape[0] == len(x), "the first dimension of a probe is the batch")
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            v, div, norm = draws_nothing(lambda: divergence(field, t, x, probe, shift), "a call")
            demand(torch.equal(divergence(field, t, x, probe, shift)[1], div), "the probe decides the value")
            close(v, field(t, x, shift), 1e-12, "the value is the field's")
        demand(div.shape == x.shape[:1], f"the divergence has shape {tuple(x.shape[:1])}, not {tuple(div.shape)}")
        demand(div.dtype == torch.float64, f"float64 stays float64, not {div.dtype}")
        demand((norm is not None) == divergence.frobenius, "the norm is returned if frobenius is true")
        demand(norm is None or norm.shape == div.shape, "the norm has the divergence's shape")
        demand(div.requires_grad == (mode is torch.enable_grad), "there is a graph only if gradients are on")
    for dtype in (torch.float32, torch.bfloat16):
        v, div, _ = _ask(divergence, field, t.to(dtype), x.to(dtype), shift.to(dtype))
        demand(v.dtype == dtype, f"the value of {dtype} keeps its dtype")
        demand(div.dtype == torch.float32, f"the divergence of {dtype} is float32, not {div.dtype}")


def _check_rows(divergence, field, t: Tensor, x: Tensor, shift: Tensor) -> None:
    with torch.no_grad():
        probe = divergence.begin(x, torch.Generator().manual_seed(1))
        take = lambda part: None if probe is None else probe[part]
        v, div, _ = divergence(field, t, x, probe, shift)
        for part in (slice(3, 4), [4, 0], slice(0, 0)):
            few = divergence(field, t[part], x[part], take(part), shift[part])
            demand(few[0].shape == v[part].shape, "a part of a batch has the value of its shape")
            close(few[1], div[part], 1e-10, "the divergence of a sample does not depend on the others")
        close(
            divergence(field, t[0], x, probe, shift)[1],
            divergence(field, t[:1].expand(len(x)), x, probe, shift)[1],
            1e-10,
            "a time [] is shared by all samples",
        )


def _check_value(divergence, field, t: Tensor, x: Tensor, shift: Tensor) -> None:
    count = 1 if divergence.exact else DRAWS
    many = lambda each: each[:1].expand(count, *each.shape[1:]) if count > 1 else each
    t, x, shift = many(t), many(x), many(shift)
    with torch.no_grad():
        _, div, norm = _ask(divergence, field, t, x, shift)
        jacobian = field.jacobian(t, x, shift)
        for name, found, exact in (
            ("divergence", div, jacobian.diagonal(dim1=1, dim2=2).sum(1)),
            ("squared Frobenius norm", norm, jacobian.square().sum((1, 2))),
        ):
            if found is None:
                continue
            if divergence.exact:
                close(found, exact, 1e-9 * (1 + float(exact.abs().max())), f"the {name} is the Jacobian's")
                continue
            gap, error = abs(float((found - exact).mean())), float(found.std()) / count**0.5
            demand(gap <= 5 * error + 1e-9, f"the {name} is off by {gap:.3g} on average, standard error {error:.3g}")


def _check_gradients(divergence, field, t: Tensor, x: Tensor, shift: Tensor) -> None:
    point = x.clone().requires_grad_()
    _, div, _ = _ask(divergence, field, t, point, shift)
    found = torch.autograd.grad(div.sum(), (point, field.matrix), allow_unused=True)
    demand(all(each is not None and each.isfinite().all() for each in found), "gradients reach x and the parameters")
    if divergence.exact:
        trace = field.jacobian(t, point, shift).diagonal(dim1=1, dim2=2).sum()
        for one, other in zip(found, torch.autograd.grad(trace, (point, field.matrix))):
            close(one, other, 1e-9 * (1 + float(other.abs().max())), "the gradient is the gradient of the trace")


def _check_probe(divergence, field, t: Tensor, x: Tensor, shift: Tensor) -> None:
    wide = torch.zeros(3, 40, dtype=torch.float64)  # more dimensions than those for which sketches are exact
    probe = divergence.begin(wide, torch.Generator())
    demand(probe is not None or divergence.exact, "an estimate draws a probe in begin")
    if probe is None:
        draws_nothing(lambda: divergence.begin(wide, None), "a divergence without a probe")
        return
    demand(probe.dtype == torch.float64, "a probe has the dtype of x")
    check_draws(lambda generator: divergence.begin(wide, generator), "the probe")
    for wrong in (None, divergence.begin(wide[:2], torch.Generator())):
        try:
            divergence(Swirl(40, torch.Generator()), torch.zeros(3).double(), wide, wrong)
        except (ValueError, TypeError):
            continue
        raise AssertionError("a probe of other samples, or a missing probe, must raise an error")
