"""What every suite asks of copies, and of generators."""

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
    """Checks that a deep copy, and what is loaded from a file, give the answer of the original, bit by bit."""
    before = answer(module)
    demand(torch.equal(answer(copy.deepcopy(module)), before), f"a deep copy is the same {what}")
    if not saved:
        return
    with tempfile.TemporaryDirectory() as folder:
        loaded = load(save(module, f"{folder}/model"))
    demand(type(loaded) is type(module), f"a loaded {what} has its class")
    demand(torch.equal(answer(loaded), before), f"a loaded {what} is the same {what}")


def check_draws(draw: Callable[[torch.Generator | None], torch.Tensor], what: str, varies: bool = True) -> None:
    """Checks that a generator decides a draw, and nothing else where it is given; PyTorch's own where none is."""
    seeded = lambda seed: draw(torch.Generator().manual_seed(seed))
    state = torch.get_rng_state()
    first, again, other = seeded(1), seeded(1), seeded(2)
    demand(torch.equal(torch.get_rng_state(), state), f"with a generator {what} draws no other random number")
    demand(torch.equal(first, again), f"the same generator gives the same {what}")
    demand(not varies or not torch.equal(first, other), f"another generator gives another {what}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        first, after = draw(None), torch.get_rng_state()
        torch.manual_seed(3)
        demand(torch.equal(first, draw(None)), f"without a generator PyTorch's own decides on {what}")
        torch.manual_seed(3)
        demand(not varies or not torch.equal(after, torch.get_rng_state()), f"{what} is drawn from a generator")


def draws_nothing(call: Callable[[], Any], what: str) -> Any:
    """Gives what a call returns, and raises where it drew random numbers."""
    state = torch.get_rng_state()
    result = call()
    demand(torch.equal(torch.get_rng_state(), state), f"{what} draws no random numbers")
    return result
