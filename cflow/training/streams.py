"""Random streams by counter: the draws of a step depend only on the seed and the step, not on earlier draws."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch

__all__ = ["EPOCH", "FORWARD", "LOADER", "PAIRS", "PREPARE", "VALIDATION", "generator_for", "seed_for", "stream"]

# The purpose of a stream: two purposes never share draws, for any counters.
EPOCH, PREPARE, FORWARD, LOADER, VALIDATION, PAIRS = range(6)


def seed_for(seed: int, *counters: int) -> int:
    """Mixes a seed and counters into a 63-bit seed.

    Example:
        >>> seed_for(0, PREPARE, 1) == seed_for(0, PREPARE, 1) != seed_for(0, PREPARE, 2)
        True
    """
    (mixed,) = numpy.random.SeedSequence([seed, *counters]).generate_state(1, numpy.uint64)
    return int(mixed) >> 1


def generator_for(device: torch.device | str, seed: int, *counters: int) -> torch.Generator:
    """Returns a generator at the start of the stream of these counters."""
    return torch.Generator(device=device).manual_seed(seed_for(seed, *counters))


@contextmanager
def stream(device: torch.device, seed: int, *counters: int) -> Iterator[None]:
    """Sets torch's default generators (dropout draws from them) to a stream in this context, then restores them."""
    generators = [torch.default_generator]
    if device.type == "cuda":
        index = torch.cuda.current_device() if device.index is None else device.index
        generators.append(torch.cuda.default_generators[index])
    before = [generator.get_state() for generator in generators]
    mixed = seed_for(seed, *counters)
    try:
        for generator in generators:
            generator.manual_seed(mixed)
        yield
    finally:
        for generator, state in zip(generators, before):
            generator.set_state(state)
