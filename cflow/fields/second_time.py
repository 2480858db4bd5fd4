"""A trained field as the start of one of two times."""

from __future__ import annotations

from torch import nn

from cflow.fields.contract import as_field

__all__ = ["two_times"]


def two_times(field: nn.Module) -> nn.Module:
    """Builds the same network with a second time to read, and gives it the weights of this one.

    The new field computes what the old one did, whatever ``s``: average velocities that are velocities. It has weights
    of its own; the old field stays as it is. Of a wrapper, the field inside is built anew.

    Raises:
        TypeError: for a network without the option.
        ValueError: for one that reads two times already.

    Example:
        >>> import torch
        >>> from cflow.fields import MLP
        >>> field = MLP(2)
        >>> double, t, x = two_times(field), torch.tensor(0.2), torch.randn(3, 2)
        >>> torch.equal(double(t, x, s=torch.tensor(0.9)), field(t, x))
        True
    """
    return as_field(field).with_two_times()
