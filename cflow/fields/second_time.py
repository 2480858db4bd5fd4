"""A second time input for a trained field."""

from __future__ import annotations

from torch import nn

from cflow.fields.contract import as_field

__all__ = ["two_times"]


def two_times(field: nn.Module) -> nn.Module:
    """Builds a copy of a trained field with a second time input ``s``.

    The copy has the same weights and returns the same values for every ``s``, until it is trained on average
    velocities. The original field does not change. For a wrapper, the field inside gets the second input.

    Args:
        field: a field of one time that has the option ``two_times``, or a wrapper of one.

    Raises:
        TypeError: for a network without this option.
        ValueError: for a field that already reads two times.

    Example:
        >>> import torch
        >>> from cflow.fields import MLP
        >>> field = MLP(2)
        >>> double, t, x = two_times(field), torch.tensor(0.2), torch.randn(3, 2)
        >>> torch.equal(double(t, x, s=torch.tensor(0.9)), field(t, x))
        True
    """
    return as_field(field).with_two_times()
