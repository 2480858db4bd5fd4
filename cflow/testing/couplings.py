"""Conformance of couplings: which rows are paired."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from cflow.testing.checks import demand

__all__ = ["check_coupling"]


def check_coupling(
    coupling,
    *,
    rows: str = "permuted",
    cheaper: bool = True,
    conditional: bool = False,
    dimension: int = 3,
    count: int = 24,
) -> None:
    """Checks a coupling: it pairs rows of its inputs, moves contexts with their data, is reproducible and thread-safe.

    Args:
        coupling: the coupling.
        rows: how rows are used: ``"permuted"`` (each row of both sides exactly once), ``"kept"`` (each row of ``x1``
            exactly once, in its place, and rows of ``x0`` drawn), ``"fewer"`` (some rows of both sides, none twice) or
            ``"drawn"`` (rows of both sides drawn, the same number as before).
        cheaper: whether the pairs must not cost more than before: in every batch for ``"permuted"`` and ``"fewer"``, on
            average over draws otherwise.
        conditional: whether the coupling needs a context.
        dimension: dimension of the samples.
        count: rows of the batch.

    Raises:
        AssertionError: if a property fails; the message states which.
        ValueError: for another ``rows``.

    Example:
        >>> from cflow.couplings import OptimalTransport
        >>> check_coupling(OptimalTransport())
    """
    kinds = ("permuted", "kept", "fewer", "drawn")
    if rows not in kinds:
        raise ValueError(f"check_coupling(rows={rows!r}): not supported; pass one of {', '.join(map(repr, kinds))}.")
    for dtype in (torch.float64, torch.float32):
        x0, x1, context = _coupling_batch(0, count, dimension, dtype)
        given = copy.deepcopy((x0, x1, context))
        state = torch.get_rng_state()
        first = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
        again = coupling(x0, x1, context, generator=torch.Generator().manual_seed(1))
        demand(torch.equal(torch.get_rng_state(), state), "with a generator no other random numbers are drawn")
        demand(_same(first, again), "the pairs are the same for the same generator")
        demand(_same((x0, x1, context), given), "the inputs are not changed")
        _check_coupling_rows(x0, x1, first, rows)
    with torch.random.fork_rng(devices=[]):
        draws = []
        for _ in range(2):
            torch.manual_seed(2)
            draws.append(coupling(x0, x1, context))
        demand(_same(*draws), "without a generator the pairs are drawn from torch's generator")

    labels = coupling(x0, x1, context["label"], generator=torch.Generator().manual_seed(1))[2]
    demand(torch.is_tensor(labels) and labels.dtype == torch.long, "a tensor of contexts stays one")
    if not conditional:
        demand(coupling(x0, x1, None, generator=torch.Generator())[2] is None, "no context stays no context")
    if cheaper:
        _check_coupling_cost(coupling, rows, dimension, count)
    _check_coupling_edges(coupling, dimension, count)
    _check_coupling_threads(coupling, dimension, count)


def _coupling_batch(seed: int, count: int, dimension: int, dtype: torch.dtype):
    generator = torch.Generator().manual_seed(seed)
    x0, x1 = torch.randn(2, count, dimension, generator=generator, dtype=dtype)
    x1 = 1.5 * x1 + 1
    number = torch.linspace(0, 1, count, dtype=dtype)
    return x0, x1, {"label": torch.arange(count) % 2, "parts": {"number": number}}


def _same(first, second) -> bool:
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_same, first, second))
    return torch.equal(first, second) if isinstance(first, Tensor) else first is second


def _places(part: Tensor, whole: Tensor, name: str) -> Tensor:
    """Returns, for each row of the part, its position in the whole."""
    demand(part.dtype == whole.dtype and part.shape[1:] == whole.shape[1:], f"{name} keeps its dtype and event shape")
    equal = (part[:, None] == whole).flatten(2).all(2)
    demand((equal.sum(1) == 1).all(), f"every row of {name} is a row of the input")
    return equal.int().argmax(1)


def _check_coupling_rows(x0: Tensor, x1: Tensor, pairs, rows: str) -> None:
    y0, y1, context = pairs
    count = len(x1)
    at0, at1 = _places(y0, x0, "x0"), _places(y1, x1, "x1")
    demand(len(y0) == len(y1), "the numbers of base samples and data samples are equal")
    demand(torch.equal(context["label"], at1 % 2), "contexts stay with their data rows")
    number = context["parts"]["number"]
    demand(torch.equal(number, torch.linspace(0, 1, count, dtype=number.dtype)[at1]), "parts of contexts stay, too")
    if rows == "fewer":
        demand(0 < len(y1) < count, "there are fewer rows than in the input")
    else:
        demand(len(y1) == count, "there are as many rows as in the input")
    if rows in ("permuted", "fewer"):
        demand(len(at0.unique()) == len(y0), "no row of x0 is used twice")
        demand(len(at1.unique()) == len(y1), "no row of x1 is used twice")
    if rows == "kept":
        demand(torch.equal(at1, torch.arange(count)), "every row of x1 keeps its place")


def _check_coupling_cost(coupling, rows: str, dimension: int, count: int) -> None:
    gaps = []
    for seed in range(20):
        x0, x1, context = _coupling_batch(10 + seed, count, dimension, torch.float64)
        y0, y1, _ = coupling(x0, x1, context["label"], generator=torch.Generator().manual_seed(seed))
        gaps.append(float((y0 - y1).square().sum(1).mean() - (x0 - x1).square().sum(1).mean()))
        if rows in ("permuted", "fewer"):
            demand(gaps[-1] <= 1e-9, "the pairs cost no more than those of the input")
    demand(sum(gaps) <= 1e-9, "the pairs cost no more than those of the input, on average over draws")


def _check_coupling_edges(coupling, dimension: int, count: int) -> None:
    x0, x1, context = _coupling_batch(3, count, dimension, torch.float64)
    label = context["label"]
    for size, what in ((1, "a batch of one does not change"), (0, "an empty batch stays empty")):
        given = x0[:size], x1[:size], label[:size]
        demand(_same(coupling(*given, generator=torch.Generator()), given), what)
    event = (2, 1, dimension)
    images = [x.reshape(-1, 1, 1, dimension).expand(-1, *event) for x in (x0, x1)]
    for got in coupling(*images, label, generator=torch.Generator())[:2]:
        demand(got.shape[1:] == event, "events of any shape are paired")
    for wrong, what in (
        ((x0[:-1], x1, label), "fewer base samples than data samples"),
        ((x0, x1, label[:-1]), "fewer contexts than data samples"),
        ((x0, x1, {"label": label[:-1]}), "fewer contexts than data samples, in a dict"),
    ):
        try:
            coupling(*wrong, generator=torch.Generator())
        except ValueError:
            continue
        raise AssertionError(f"{what} must raise a ValueError")


def _check_coupling_threads(coupling, dimension: int, count: int) -> None:
    batches = [_coupling_batch(20 + i, count, dimension, torch.float64) for i in range(8)]
    call = lambda i: coupling(*batches[i], generator=torch.Generator().manual_seed(i))
    alone = [call(i) for i in range(len(batches))]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(call, range(len(batches))))
    demand(_same(alone, together), "calls in several threads return the same as in one")
