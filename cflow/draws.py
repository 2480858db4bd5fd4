"""Random draws from one generator, or from one generator per row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

__all__ = ["Source", "check_generator", "draw_rows"]

Source: TypeAlias = torch.Generator | Sequence[torch.Generator] | None
"""A source of random numbers: a generator, one generator per row, or None for torch's default of the device."""


def check_generator(owner: str, generator: Any, *, by_row: bool = False) -> None:
    """Raises a TypeError unless ``generator`` is a generator or None, or with ``by_row`` a list or tuple of generators.

    Example:
        >>> check_generator("moons", 42)
        Traceback (most recent call last):
        ...
        TypeError: moons(generator=42): not a torch.Generator; pass torch.Generator().manual_seed(42).
    """
    if generator is None or isinstance(generator, torch.Generator):
        return
    several = isinstance(generator, list | tuple)
    if several and by_row and all(isinstance(each, torch.Generator) for each in generator):
        return
    seed = generator if isinstance(generator, int) and not isinstance(generator, bool) else 0
    if not several:
        raise TypeError(
            f"{owner}(generator={generator!r:.60}): not a torch.Generator; pass torch.Generator().manual_seed({seed})."
        )
    why = "each entry must be a generator" if by_row else "this takes one generator for the whole batch"
    raise TypeError(
        f"{owner}(generator=a {type(generator).__name__} of {len(generator)}): {why}; pass "
        f"{'a list of torch.Generator' if by_row else 'torch.Generator().manual_seed(0)'}."
    )


def draw_rows(draw: Callable[..., Tensor], shape: Sequence[int], generator: Source, **options: Any) -> Tensor:
    """Computes ``draw(shape, generator=...)``; with a list of generators, each row is drawn from its own generator.

    Shapes: ``[*shape, ...]``, with the dimensions that ``draw`` adds. Cost: one call of ``draw``, or one per row if
    there are several generators.

    Raises:
        ValueError: if the number of generators is not the number of rows.

    Example:
        >>> seeded = lambda seed: torch.Generator().manual_seed(seed)
        >>> pair = draw_rows(torch.randn, (2, 3), [seeded(0), seeded(7)])
        >>> torch.equal(pair[1], torch.randn(3, generator=seeded(7)))
        True
    """
    if generator is None or isinstance(generator, torch.Generator):
        return draw(shape, generator=generator, **options)
    if not shape or len(generator) != shape[0]:
        raise ValueError(
            f"generator=a list of {len(generator)} for draws of shape {list(shape)}: a list needs one generator per "
            f"row; pass {shape[0] if shape else 'one generator, not a list'}."
        )
    if not generator:
        return draw(shape, generator=None, **options)
    return torch.stack([draw(tuple(shape[1:]), generator=each, **options) for each in generator])
