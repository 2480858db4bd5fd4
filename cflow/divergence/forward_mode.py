"""Derivatives along a direction, without the warning that torch prints for the first one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor
from torch.autograd import forward_ad

__all__ = ["jvp"]


def jvp(function: Callable[..., Tensor], primals: tuple, tangents: tuple) -> tuple[Tensor, Tensor]:
    """Computes ``function(*primals)`` and its derivative along ``tangents``, in one pass in forward mode.

    Cost: about two evaluations of ``function``.

    Example:
        >>> jvp(lambda x: x**2, (torch.tensor(3.0),), (torch.tensor(1.0),))
        (tensor(9.), tensor(6.))
    """
    if not torch.compiler.is_compiling():
        _load_rules()
    return torch.func.jvp(function, primals, tangents)


@cache
def _load_rules() -> None:
    """Makes torch load its rules of forward mode, which otherwise happens on first use.

    From 2.14 on, this prints a warning about ``torch.jit.script``, which torch itself uses there.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.script` is")  # its category differs between releases
        with forward_ad.dual_level():
            forward_ad.make_dual(torch.zeros(()), torch.zeros(()))
