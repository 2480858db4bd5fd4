"""Checks of copies and of generators, which every suite uses."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable
from typing import Any

import torch

from cflow.io import load, save
from cflow.testing.checks import demand

__all__ = ["check_copies", "check_draws", "draws_nothing"]


def check_copies(module: torch.nn.Module, answer: Callable, what: str, saved: bool = True) -> None:
    """Checks that a deep copy and a saved and loaded copy return the same as the original, bit for bit."""
    before = answer(module)
    demand(torch.equal(answer(copy.deepcopy(module)), before), f"a deep copy is the same {what}")
    if not saved:
        return
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(module, f"{folder}/model"))
    demand(type(loaded) is type(module), f"a loaded {what} has its class")
    demand(torch.equal(answer(loaded), before), f"a loaded {what} is the same {what}")


def check_draws(draw: Callable[[torch.Generator | None], torch.Tensor], what: str, varies: bool = True) -> None:
    """Checks that a draw depends only on its generator, or on torch's generator if there is none."""
    seeded = lambda seed: draw(torch.Generator().manual_seed(seed))
    state = torch.get_rng_state()
    first, again, other = seeded(1), seeded(1), seeded(2)
    demand(torch.equal(torch.get_rng_state(), state), f"with a generator, {what} draws no other random numbers")
    demand(torch.equal(first, again), f"{what} is the same for the same generator")
    demand(not varies or not torch.equal(first, other), f"{what} changes with the generator")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, after = draw(None), torch.get_rng_state()
        torch.manual_seed(3)
        demand(torch.equal(first, draw(None)), f"without a generator, {what} is drawn from torch's generator")
        torch.manual_seed(3)
        demand(not varies or not torch.equal(after, torch.get_rng_state()), f"{what} is drawn from a generator")


def draws_nothing(call: Callable[[], Any], what: str) -> Any:
    """Returns the result of a call; raises if the call drew random numbers."""
    state = torch.get_rng_state()
    result = call()
    demand(torch.equal(torch.get_rng_state(), state), f"{what} draws no random numbers")
    return result
