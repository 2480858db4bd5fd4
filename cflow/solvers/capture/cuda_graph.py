"""A solver around a solver: captures its solves in CUDA graphs once, then replays them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.arguments import is_integer
from cflow.modes import autocast, autocast_state
from cflow.registry import register
from cflow.solvers.capture.captured import Captured, CapturedGrid, CapturedSteps
from cflow.solvers.gradients.parameters import held_by
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats
from cflow.solvers.solver import Solver
from cflow.solvers.state import on_tensors, split, tensors_of
from cflow.solvers.uploads import keeping_uploads
from cflow.solvers.wrapper import Wrapper

__all__ = ["CudaGraph"]


@register("solvers.CudaGraph")
@dataclass(frozen=True, repr=False)
class CudaGraph(Wrapper):
    r"""Replays the solves of a solver from CUDA graphs, so that a step takes no time on the host.

    The first solve of its kind runs twice to warm up and is then captured. From then on the inputs are copied in, all
    kernels are replayed in one launch, and the result is copied out. On a fixed grid the graph holds the whole loop.
    For an adaptive method it holds ``check_every`` attempts (default: 4) and is replayed until all samples have ended,
    with one host read between two replays. Samples that have ended do not move, and no row is dropped. With
    ``per_sample=False`` time and step are kept on the device too. Outside a graph they are float64 numbers on the host,
    so steps may differ by rounding.

    The results are those of ``solver``. It saves time if the network or the batch is small, so that launching kernels
    takes longer than running them; for a large batch it changes nothing. **This class has not run on a GPU yet**: its
    logic is tested by a recorder of operations on the CPU.

    A graph is used again if all of these are the same: ``solver``, ``f``, the interval, output times, quadratures, the
    shapes, dtypes and structure of ``y0`` and ``args``, the values in ``args`` that are not tensors, autocast and the
    precision of products, and all that ``f`` refers to: the addresses of its tensors, and its numbers and strings (a
    module's mode is one). ``f`` is compared by ``==``: a function or module is equal only to itself; the field of a
    flow is equal to one with the same network, path, guidance and divergence. So a replay uses the weights after an
    optimizer's step, and replaced parameters are captured again. A function that is created for every call is also
    captured for every call: see :attr:`captures`. What ``f`` reaches in another way (private attributes of modules,
    imported names) stays as it was at the capture: call :meth:`clear` when it changes. A replay runs no Python code of
    ``f`` or its hooks; dropout draws new numbers.

    Args:
        solver: a method on a fixed grid, or an adaptive one without output times inside the interval.
        capacity: the number of graphs that are kept; the least recently used one is dropped. Each one keeps the memory
            of a solve, and ``f`` with all it refers to.

    Cost: that of ``solver`` on the GPU, and one launch for a fixed grid. Memory: inputs, result and one solve per
    graph. Do not solve on several threads or streams at the same time.

    Raises:
        TypeError: if ``solver`` is not a solver.
        ValueError: for a solver that draws numbers or reads results on the way (stochastic ones, ``Picard``,
            ``TorchDiffEq``, a ``CudaGraph``). When solving: for tensors that are not all on one GPU, if a gradient is
            needed, for output times inside an adaptive solve, and for an ``f`` that changes what it refers to.
        RuntimeError: if ``f`` does what a graph cannot hold, such as reading a value on the host.

    Source: Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021, pytorch.org/blog.

    Example:
        >>> from cflow import solvers
        >>> solver = solvers.CudaGraph(solvers.Euler(steps=32))
        >>> with torch.no_grad():
        ...     solver.solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        Traceback (most recent call last):
        ...
        ValueError: CudaGraph.solve: y0 is on cpu, and only GPU kernels can be captured; use Euler(steps=32) ...
    """

    capacity: int = 8

    gradient = None
    why_no_graph = "it is captured already"

    def __post_init__(self):
        super().__post_init__()
        inner = self.solver
        if inner.why_no_graph is not None:
            raise ValueError(
                f"CudaGraph({inner!r}): {inner.why_no_graph}; use it without CudaGraph, or another one such as Heun or "
                f"Dopri5."
            )
        if not is_integer(self.capacity, 1):
            raise ValueError(
                f"CudaGraph(capacity={self.capacity!r}): the number of graphs is whole; pass an integer of 1 or more."
            )
        object.__setattr__(self, "_graphs", _Graphs(self.capacity))

    def __reduce__(self):
        """Copies and pickles only the options: graphs belong to the memory in which they were captured."""
        return type(self), (self.solver, self.capacity)

    def around(self, solver: Solver) -> Self:
        """Returns the same wrapper around another ``solver``; the two share their graphs."""
        other = replace(self, solver=solver)
        object.__setattr__(other, "_graphs", self._graphs)
        return other

    @property
    def captures(self) -> int:
        """Number of solves captured so far; if it grows with every call, no graph is ever replayed."""
        return self._graphs.captures

    def clear(self) -> None:
        """Drops all graphs, with their memory."""
        self._graphs.drop(0)

    def _check(self, problem: Problem) -> None:
        self._refuse(problem)
        ends = (problem.t0, problem.t1)
        if self.solver.step_tolerance is not None and any(t not in ends for t in problem.at or ()):
            raise ValueError(
                f"CudaGraph.solve(at={problem.at}): an adaptive solve in a graph stores no intermediate states; omit "
                f"them, or use {self.solver!r} itself or a fixed grid."
            )
        super()._check(problem)

    def _solve(self, problem: Problem) -> Solution:
        """Replays the solve, after capturing the first of its kind; draws no numbers."""
        if problem.batch == 0:  # nothing to capture
            return super()._solve(problem)
        with _alone(problem.device):
            captured = self._graphs.find(self._key(problem))
            if captured is None:
                captured = self._capture(problem)
                self._graphs.keep(self._key(problem), captured)
            solution = captured(problem.like, problem.args)
        return _copied(solution)

    def _refuse(self, problem: Problem) -> None:
        """Raises for a problem that a graph cannot hold."""
        parts, leaves, device = split(problem.like, problem.like), tensors_of(problem.args), problem.device
        why = _machine.why_not(device)
        if why:
            raise ValueError(f"CudaGraph.solve: y0 is on {device}, and {why}; use {self.solver!r} itself.")
        stray = next((each for each in (*parts, *leaves) if each.device != device), None)
        if stray is not None:
            raise ValueError(
                f"CudaGraph.solve: a tensor of shape {list(stray.shape)} is on {stray.device} and y0 on {device}; move "
                f"both to one device."
            )
        groups = {
            "y0": parts,
            "args": leaves,
            "params": problem.params or (),
            "what f refers to": held_by(problem.f)[0],
        }
        needed = [name for name, group in groups.items() if any(each.requires_grad for each in group)]
        dual = torch.autograd.forward_ad._current_level >= 0
        if dual or (needed and torch.is_grad_enabled()):
            what = "forward-mode derivatives are on" if dual else f"{needed[0]} requires gradients"
            raise ValueError(
                f"CudaGraph.solve: {what}, but a replay has no derivatives; solve under torch.no_grad(), or use "
                f"{self.solver!r} itself."
            )

    def _key(self, problem: Problem) -> tuple:
        """Lists all that must be the same for a replay to return the result of the solve."""
        leaves, structure = pytree.tree_flatten((problem.like, problem.args))
        shown = [(each.shape, each.dtype) if isinstance(each, Tensor) else each for each in leaves]
        # In the order of the quadratures, which the solution has too.
        options = [problem.t0, problem.t1, problem.at, problem.path, *problem.tolerances.items()]
        device = problem.device
        return (self.solver, problem.f, structure, shown, options, device, _mode(device), _held(problem.f, device))

    def _capture(self, problem: Problem) -> Captured:
        """Captures a solve."""
        f, device = problem.f, problem.device

        def record(function: Callable[[], Any]) -> tuple[Any, Callable[[], None]]:
            _machine.warm_up(function, device)
            before = _held(f, device)
            try:
                recorded = _machine.capture(function, device)
            except RuntimeError as error:
                raise RuntimeError(
                    f"CudaGraph({self.solver!r}): the solve cannot be captured ({str(error).splitlines()[0]}); keep "
                    f"host reads (.item(), bool()), uploads (torch.tensor(...)) and own generators out of f, or use "
                    f"the solver itself."
                ) from error
            if _held(f, device) != before:
                raise ValueError(
                    f"CudaGraph.solve(f={type(f).__name__}): f changes what it refers to (a counter, a list), but a "
                    f"replay runs no Python; remove this, or use {self.solver!r} itself."
                )
            return recorded

        kind = CapturedGrid if self.solver.step_tolerance is None else CapturedSteps
        options = {"quadratures": problem.tolerances, "path": problem.path, "at": problem.at}
        uploads: dict[tuple, Tensor] = {}
        with keeping_uploads(uploads):
            captured = kind(record, self.solver, f, problem.like, problem.t0, problem.t1, problem.args, **options)
        captured.uploads = uploads  # which the graph reads
        return captured


class _Graphs:
    """Keeps the graphs used last with their keys; the keys keep objects alive, so that no address is used again."""

    def __init__(self, capacity: int):
        self.capacity, self.captures, self.kept = capacity, 0, []

    def find(self, key: tuple) -> Captured | None:
        """Returns the graph of a key and marks it as used last."""
        for index, (known, captured) in enumerate(self.kept):
            if known == key:
                self.kept.append(self.kept.pop(index))
                return captured
        return None

    def keep(self, key: tuple, captured: Captured) -> None:
        """Keeps a new graph, and drops the least recently used one if there are too many."""
        self.captures += 1
        self.kept.append((key, captured))
        self.drop(self.capacity)

    def drop(self, number: int) -> None:
        """Drops the least recently used graphs until ``number`` are left."""
        if len(self.kept) > number:
            _machine.settle()
            del self.kept[: len(self.kept) - number]


class _Cuda:
    """The operations of the GPU; tests without one replace it with a recorder of operations."""

    def why_not(self, device: torch.device) -> str | None:
        """Returns why nothing can be captured on a device; None if it can."""
        if device.type != "cuda":
            return "only GPU kernels can be captured"
        if torch.cuda.is_current_stream_capturing():
            return "another graph is being captured there"
        return None

    def warm_up(self, function: Callable[[], Any], device: torch.device) -> None:
        """Calls a function on a separate stream: libraries choose algorithms and compilers compile before capture."""
        with torch.cuda.device(device):
            stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(2):
                    function()
            current.wait_stream(stream)

    def capture(self, function: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
        """Captures a function; returns its result and the replay."""
        graph = torch.cuda.CUDAGraph()
        # Other threads that load data may allocate meanwhile: the rules of a graph apply to this thread only.
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay

    def settle(self) -> None:
        """Waits until no replay is running, before its memory is freed."""
        torch.cuda.synchronize()


_machine = _Cuda()


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Runs without autograd, inference mode and the autocast cache of the caller, on which no graph may depend."""
    with torch.inference_mode(False), torch.no_grad(), autocast(autocast_state(device.type)):
        yield


def _mode(device: torch.device) -> tuple:
    """Lists the settings that decide which kernels are launched."""
    return (
        *autocast_state(device.type),
        torch.get_default_dtype(),
        torch.are_deterministic_algorithms_enabled(),
        torch.backends.cuda.matmul.fp32_precision,
        torch.backends.cudnn.conv.fp32_precision,
    )


def _held(f: Any, device: torch.device) -> tuple:
    """Describes what ``f`` refers to: tensors by address, or by value if a kernel would copy the values."""
    tensors, plain = held_by(f)
    shown = []
    for each in tensors:
        if each.device.type == "cpu" != device.type and each.numel() <= 64:
            shown.append(each.tolist())
        else:
            place = each.data_ptr() if each.layout is torch.strided else id(each)
            shown.append((place, each.shape, each.stride(), each.dtype))
    return shown, plain


def _copied(solution: Solution) -> Solution:
    """Copies a solution out of the memory that the next replay overwrites."""
    copy = lambda tree: on_tensors(torch.clone, tree)
    stats = Stats(**copy(vars(solution.stats)))
    return Solution(**copy({**vars(solution), "stats": None}) | {"stats": stats})
