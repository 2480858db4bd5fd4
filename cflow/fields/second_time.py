"""A trained field as the start of one of two times."""

from __future__ import annotations

from torch import nn

from cflow.registry import build, configuration

__all__ = ["two_times"]


def two_times(field: nn.Module) -> nn.Module:
    """Builds the same network with a second time to read, and gives it the weights of this one.

    The new field computes what the old one did, whatever ``s``: average velocities that are velocities. It has weights
    of its own; the old field stays as it is.

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
    arguments = configuration(field)
    if "two_times" not in arguments:
        raise TypeError(
            f"two_times({type(field).__name__}): this network has no option two_times; use fields.MLP, UNet, DiT or "
            f"MMDiT, or write a field with one."
        )
    if arguments["two_times"]:
        raise ValueError(f"two_times({type(field).__name__}): this field reads two times already; use it as it is.")
    reference = next(field.parameters())
    new = build(type(field), {**arguments, "two_times": True}).to(reference.device, reference.dtype)
    missing, unexpected = new.load_state_dict(field.state_dict(), strict=False)
    if unexpected or any("span" not in name.split(".") for name in missing):
        raise TypeError(f"two_times({type(field).__name__}): weights do not fit: {missing[:3]}, {unexpected[:3]}.")
    return new.train(field.training)
