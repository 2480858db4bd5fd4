"""Vector-Jacobian products of a field, in every mode of autograd."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

__all__ = ["enter", "evaluate", "gradients", "product"]


@contextlib.contextmanager
def gradients():
    """Enables gradients in every mode; yields whether they were enabled outside."""
    differentiable = torch.is_grad_enabled()
    with contextlib.ExitStack() as stack:
        if torch.is_inference_mode_enabled():
            stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if differentiable:
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        yield differentiable


def enter(inputs: Any) -> Any:
    """Copies tensors that were made in inference mode, so that they can be part of a graph."""
    return pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) and leaf.is_inference() else leaf, inputs
    )


def evaluate(f: Callable, t: Tensor, x: Tensor, args: tuple) -> tuple[Tensor, Tensor]:
    """Evaluates a field at a new node of the graph, so that derivatives are with respect to the field's point only."""
    point = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
    value = f(t, point, *args)
    if value.shape != x.shape:
        raise ValueError(
            f"divergence: the field maps x of shape {list(x.shape)} to {list(value.shape)}; a trace needs equal "
            f"shapes, so return x's shape."
        )
    return point, value


def product(value: Tensor, point: Tensor, cotangent: Tensor, differentiable: bool) -> Tensor:
    """Computes ``J^T e`` in float32 or better; zero if the value does not depend on the point."""
    dtype = torch.promote_types(point.dtype, torch.float32)
    if not value.requires_grad:
        return torch.zeros(point.shape, dtype=dtype, device=point.device)
    cotangent = cotangent.to(value.dtype)
    options = {"create_graph": differentiable, "retain_graph": True, "materialize_grads": True}
    return torch.autograd.grad(value, point, cotangent, **options)[0].to(dtype)
