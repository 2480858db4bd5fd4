"""A solver around a solver: its solves are captured in CUDA graphs once and replayed from then on."""

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
    r"""Replays a solver's solves from CUDA graphs, so that a step costs no time on the host.

    The first solve of its kind is run twice to warm up, then captured. From then on inputs are copied in, all kernels
    replayed in one launch, and the result is copied out. On a fixed grid the graph holds the whole loop. Of an adaptive
    method it holds ``check_every`` attempts (4 unless given), replayed until all samples have ended: one host read
    between two replays; samples that have ended rest, and no row is dropped. With ``per_sample=False`` time and step
    live on the device too, where the eager loop keeps them in float64 on the host, so that steps may differ by
    rounding.

    The results are those of ``solver``. It pays where the network is small or the batch is, so that launching kernels
    takes longer than running them; beside a large batch it changes nothing. **This class has not run on a GPU yet**:
    its logic is tested by a recorder of operations on the CPU.

    A graph is used again where all this is the same: ``solver``, ``f``, the interval, output times, quadratures, the
    shapes, dtypes and structure of ``y0`` and ``args``, what is not a tensor in ``args``, autocast and the precision of
    products, and all that ``f`` refers to: the addresses of its tensors, and its numbers and strings (a module's mode
    is one). ``f`` is compared by ``==``: a function or module is equal to itself alone, what a flow integrates to what
    the same network, path, guidance and divergence give again. So an optimizer's step is seen, replaced parameters are
    captured anew, and so is a function that is made anew for every call: see :attr:`captures`. What ``f`` reaches in
    another way (private attributes of modules, imported names) is as it was at the capture: call :meth:`clear` when it
    changes. No Python of ``f`` runs in a replay, its hooks included; dropout draws new numbers.

    Args:
        solver: a method on a fixed grid, or an adaptive one without output times inside the interval.
        capacity: the number of graphs that are kept; the one not used for longest is dropped. Each keeps the memory of
            a solve, and ``f`` with all it refers to.

    Cost: that of ``solver`` on the GPU, one launch for a fixed grid. Memory: inputs, result and what one solve holds,
    per graph. Not for solves on several threads or streams at a time.

    Raises:
        TypeError: if ``solver`` is not a solver.
        ValueError: for a solver that draws numbers or looks at results on the way (stochastic ones, ``Picard``,
            ``TorchDiffEq``, a ``CudaGraph``); when solving, for tensors elsewhere than on one GPU, where a gradient
            would be needed, for output times inside an adaptive solve, and for an ``f`` that changes what it refers to.
        RuntimeError: if ``f`` does what a graph cannot hold, such as reading a value on the host.

    Source: Nguyen et al., Accelerating PyTorch with CUDA Graphs, 2021, pytorch.org/blog.

    Example:
        >>> from cflow import solvers
        >>> solver = solvers.CudaGraph(solvers.Euler(steps=32))
        >>> with torch.no_grad():
        ...     solver.solve(lambda t, y: -y, torch.ones(1, 1), 0.0, 1.0)
        Traceback (most recent call last):
        ...
        ValueError: CudaGraph.solve: y0 is on cpu, and only a GPU's kernels can be captured; take Euler(steps=32) ...
    """

    capacity: int = 8

    gradient = None
    why_no_graph = "it is captured already, in graphs that live in this process"

    def __post_init__(self):
        super().__post_init__()
        inner = self.solver
        if inner.why_no_graph is not None:
            raise ValueError(
                f"CudaGraph({inner!r}): {inner.why_no_graph}; take that solver itself, or CudaGraph around a method on "
                f"a fixed grid such as Heun, or an adaptive one such as Dopri5."
            )
        if not is_integer(self.capacity, 1):
            raise ValueError(
                f"CudaGraph(capacity={self.capacity!r}): graphs are counted; pass an integer of 1 or more."
            )
        object.__setattr__(self, "_graphs", _Graphs(self.capacity))

    def __reduce__(self):
        """Copies and pickles the options alone: graphs stay with the memory that they were captured in."""
        return type(self), (self.solver, self.capacity)

    def around(self, solver: Solver) -> Self:
        """Gives the same around another solver; the two share their graphs."""
        other = replace(self, solver=solver)
        object.__setattr__(other, "_graphs", self._graphs)
        return other

    @property
    def captures(self) -> int:
        """How many solves have been captured so far; it grows with every call where nothing is ever replayed."""
        return self._graphs.captures

    def clear(self) -> None:
        """Drops all graphs, with their memory."""
        self._graphs.drop(0)

    def _check(self, problem: Problem) -> None:
        self._refuse(problem)
        ends = (problem.t0, problem.t1)
        if self.solver.step_tolerance is not None and any(t not in ends for t in problem.at or ()):
            raise ValueError(
                f"CudaGraph.solve(at={problem.at}): which steps pass an output time is read attempt by attempt in an "
                f"adaptive solve; ask for the ends alone, take {self.solver!r} itself, or CudaGraph around a fixed "
                f"grid."
            )
        super()._check(problem)

    def _solve(self, problem: Problem) -> Solution:
        """Replays the solve, after capturing the first of its kind; nothing is drawn."""
        if problem.batch == 0:  # there is no work to capture
            return super()._solve(problem)
        with _alone(problem.device):
            captured = self._graphs.find(self._key(problem))
            if captured is None:
                captured = self._capture(problem)
                self._graphs.keep(self._key(problem), captured)
            solution = captured(problem.like, problem.args)
        return _copied(solution)

    def _refuse(self, problem: Problem) -> None:
        """Raises for what no graph can hold."""
        parts, leaves, device = split(problem.like, problem.like), tensors_of(problem.args), problem.device
        why = _machine.why_not(device)
        if why:
            raise ValueError(f"CudaGraph.solve: y0 is on {device}, and {why}; take {self.solver!r} itself there.")
        stray = next((each for each in (*parts, *leaves) if each.device != device), None)
        if stray is not None:
            raise ValueError(
                f"CudaGraph.solve: a tensor of shape {list(stray.shape)} is on {stray.device} and y0 on {device}; a "
                f"graph lives on one device, so move both there."
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
                f"CudaGraph.solve: {what}, and a replay leaves no derivatives behind; solve under torch.no_grad() (as "
                f"flow.sample does), or take {self.solver!r} itself to differentiate."
            )

    def _key(self, problem: Problem) -> tuple:
        """Lists all that must be the same for a replay to give what the solve would."""
        leaves, structure = pytree.tree_flatten((problem.like, problem.args))
        shown = [(each.shape, each.dtype) if isinstance(each, Tensor) else each for each in leaves]
        # The order of quadratures is that of the solution's.
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
                    f"CudaGraph({self.solver!r}): the solve cannot be captured ({str(error).splitlines()[0]}): a graph "
                    f"holds kernels of one GPU alone, no host reads (.item(), bool(), nonzero), no uploads "
                    f"(torch.tensor(...) of numbers) and no draws from generators of one's own; keep them out of f, or "
                    f"take the solver itself."
                ) from error
            if _held(f, device) != before:
                raise ValueError(
                    f"CudaGraph.solve(f={type(f).__name__}): f changes what it refers to whenever it is called (a "
                    f"counter, a list that grows, a tensor kept aside), and a replay runs no Python that would; leave "
                    f"that away, or take {self.solver!r} itself."
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
    """Keeps the graphs used last, with their keys: what keys refer to stays alive, so that no address is another's."""

    def __init__(self, capacity: int):
        self.capacity, self.captures, self.kept = capacity, 0, []

    def find(self, key: tuple) -> Captured | None:
        """Gives the graph of a key, which then was used last."""
        for index, (known, captured) in enumerate(self.kept):
            if known == key:
                self.kept.append(self.kept.pop(index))
                return captured
        return None

    def keep(self, key: tuple, captured: Captured) -> None:
        """Keeps a new graph, instead of the one not used for longest where there is no room."""
        self.captures += 1
        self.kept.append((key, captured))
        self.drop(self.capacity)

    def drop(self, number: int) -> None:
        """Drops the graphs not used for longest until ``number`` are left."""
        if len(self.kept) > number:
            _machine.settle()
            del self.kept[: len(self.kept) - number]


class _Cuda:
    """What is asked of the machine; tests without a GPU put a recorder of operations in its place."""

    def why_not(self, device: torch.device) -> str | None:
        """Says why nothing can be captured on a device."""
        if device.type != "cuda":
            return "only a GPU's kernels can be captured"
        if torch.cuda.is_current_stream_capturing():
            return "another graph is being captured there"
        return None

    def warm_up(self, function: Callable[[], Any], device: torch.device) -> None:
        """Calls a function on a stream of its own: libraries choose algorithms and compilers compile before capture."""
        with torch.cuda.device(device):
            stream, current = torch.cuda.Stream(device), torch.cuda.current_stream(device)
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                for _ in range(2):
                    function()
            current.wait_stream(stream)

    def capture(self, function: Callable[[], Any], device: torch.device) -> tuple[Any, Callable[[], None]]:
        """Captures a function; gives what it returned and the replay."""
        graph = torch.cuda.CUDAGraph()
        # Threads that load data meanwhile may allocate: only what this one does is held to a graph's rules.
        with torch.cuda.device(device), torch.cuda.graph(graph, capture_error_mode="thread_local"):
            result = function()
        return result, graph.replay

    def settle(self) -> None:
        """Waits until no replay is under way, before memory that it uses is given back."""
        torch.cuda.synchronize()


_machine = _Cuda()


@contextlib.contextmanager
def _alone(device: torch.device) -> Iterator[None]:
    """Leaves graphs of derivatives, inference mode and autocast's cache aside: none of them outlives the call."""
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
    """Describes what ``f`` refers to: tensors by their address, or by their values where a kernel would copy these."""
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
    """Copies a solution out of the memory that the next replay writes over."""
    copy = lambda tree: on_tensors(torch.clone, tree)
    stats = Stats(**copy(vars(solution.stats)))
    return Solution(**copy({**vars(solution), "stats": None}) | {"stats": stats})
