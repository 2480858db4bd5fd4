"""How gradients pass through a solve: by the graph of every operation, or step by step from what each step began with.

A solver that takes ``gradient=`` asks it for a tape before the first step. ``None`` means that nothing is to be
recorded. Otherwise the solver runs without a graph, appends a :class:`Step` per step, and at the end has its results
joined to the graph by :meth:`Tape.attach`::

    tape = self.gradient.begin(problem, params)
    with without_graph(tape):
        ...
        if tape is not None:
            tape.steps.append(Step(tableau, y, times, h))
    if tape is not None:
        y, integrals, outputs = tape.attach(y, integrals, outputs)
"""

from __future__ import annotations

import contextlib
import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from cflow.registry import register
from cflow.solvers.solution import check_tolerances
from cflow.solvers.solver import Problem
from cflow.solvers.state import gather, like_rows
from cflow.solvers.tableau import Tableau

__all__ = [
    "Backprop",
    "Checkpointed",
    "ContinuousAdjoint",
    "Gradient",
    "Output",
    "Step",
    "Tape",
    "autocast",
    "autocast_state",
    "parameters_of",
    "refuse_strangers",
    "wanted_parameters",
    "without_graph",
]


@dataclass
class Output:
    """Records that an output time lies inside a step: ``out[slot][rows] += mask * (y + h * sum_j w_j k_j)``.

    ``weights`` holds one number, or one ``[b]`` tensor, per stage; None stands for the end of the step, whose weights
    are the tableau's ``b``. Where all are zero the output is the step's start. ``mask [b]`` says for which rows of the
    step it holds; None: for all.
    """

    slot: int
    weights: Sequence[float | Tensor] | None = None
    mask: Tensor | None = None


@dataclass
class Step:
    """Records one step of some rows of the batch: all that is needed to take it again.

    Shapes: ``y`` lists the parts of the state at the step's start, ``[b, ...]`` each; ``times`` the stage times that
    ``f`` saw, ``[b]`` each; ``h`` is one number for all rows, or ``[b]`` and zero where a row rests (rejected, finished
    or failed), which then passes its cotangent through unchanged; ``rows [b]`` are the places of the rows in the whole
    batch, each once, None when they are all of it in order.
    """

    tableau: Tableau
    y: list[Tensor]
    times: list[Tensor]
    h: float | Tensor
    rows: Tensor | None = None
    outputs: list[Output] = field(default_factory=list)


class Gradient(ABC):
    """Says how a solver makes its result differentiable; step sizes and times are constants in all of them."""

    @abstractmethod
    def begin(self, problem: Problem, params: Sequence[Tensor] | None) -> Tape | None:
        """Gives the tape that a solve must keep, or None when it is to run as usual."""


@register
@dataclass(frozen=True)
class Backprop(Gradient):
    """Differentiates through the solver's own operations, as any code in torch.

    Cost: the backward pass evaluates nothing again, but the graph of every evaluation is kept: memory is steps times
    stages times the network's activations. Any number of derivatives, forward mode and ``vmap`` work. Take it for
    small networks or few steps, and where a second derivative is needed; :class:`Checkpointed` otherwise.

    Example:
        >>> from cflow import solvers
        >>> y0 = torch.ones(1, 1, requires_grad=True)
        >>> solvers.Euler(2, gradient=Backprop()).solve(lambda t, y: y, y0, 0.0, 1.0).y.backward()
        >>> y0.grad.item()
        2.25
    """

    def begin(self, problem, params):
        """Gives None: there is nothing to record."""
        return None


@register
@dataclass(frozen=True)
class Checkpointed(Gradient):
    r"""Differentiates a solve exactly, keeping the state of every step and the graph of one evaluation at a time.

    For a step :math:`Y_i = y + h \sum_{j<i} a_{ij} k_j,\ k_i = f(t_i, Y_i),\ y^+ = y + h \sum_i b_i k_i`, the cotangent
    :math:`\lambda` of :math:`y^+` is carried back to that of :math:`y` stage by stage, from the last to the first:

    .. math:: \bar k_i = h \Big(b_i \lambda + \sum_{j>i} a_{ji} \bar Y_j\Big), \qquad
              (\bar Y_i, \bar\theta_i) = \bar k_i^\top \frac{\partial f}{\partial (Y, \theta)}(t_i, Y_i), \qquad
              \lambda \leftarrow \lambda + \sum_i \bar Y_i

    The gradient is that of the discrete solution, the one that :class:`Backprop` gives, to rounding. Gradients of
    parameters are summed on the way (in float32 at least) and are never part of a state that is integrated.

    Cost: memory of one state per step and one evaluation's graph. The backward pass of a step with s stages takes
    ``2 s - 1`` evaluations, s of them with a graph and its backward: forward and backward together take 1.3 (Euler) to
    1.6 (RK4) times as long as with ``Backprop``, and up to twice where the network is so small that calls cost more
    than arithmetic. The autocast state of the forward pass holds in the backward pass. Take it to train through a
    solver; for a small network in few steps, :class:`Backprop` is faster.

    Raises:
        RuntimeError: in the backward pass, if ``f`` uses a tensor that requires a gradient and is neither in ``args``
            nor among ``params`` (found by themselves where ``f`` is a module, or refers to modules and tensors from
            its closure, attributes or globals); and where a second derivative is asked for.

    Source: Matsubara, Miyatake and Yaguchi, Symplectic Adjoint Method for Exact Gradient of Neural ODE with Minimal
    Memory, 2021, arXiv:2102.09750, where the stages are walked in the same order; Hager, Runge-Kutta methods in optimal
    control and the transformed adjoint system, 2000, Numerische Mathematik 87, for the adjoint of the discrete method.

    Example:
        >>> from cflow import solvers
        >>> net = torch.nn.Linear(2, 2)
        >>> solver = solvers.RK4(10, gradient=Checkpointed())
        >>> solver.solve(lambda t, y: net(y), torch.ones(4, 2), 0.0, 1.0).y.sum().backward()
        >>> net.weight.grad.shape
        torch.Size([2, 2])
    """

    def begin(self, problem, params):
        """Gives a tape where gradients are enabled."""
        return Tape(problem, params) if torch.is_grad_enabled() else None


@register
@dataclass(frozen=True)
class ContinuousAdjoint(Gradient):
    r"""Differentiates by integrating the adjoint equation backward in time; for :class:`TorchDiffEq` alone.

    .. math:: \dot\lambda = -\lambda^\top \frac{\partial f}{\partial y}, \qquad
              \dot{\bar\theta} = -\lambda^\top \frac{\partial f}{\partial \theta}

    The state is integrated back beside it, so nothing is kept but the end: memory of one evaluation's graph. The
    gradient is that of the exact solution up to the tolerance, not that of the computed one, and wrong where the field
    cannot be integrated backward (it contracts strongly). Prefer :class:`Checkpointed` unless the states of all steps
    do not fit in memory.

    Args:
        rtol, atol, method: of the solve backward; those of the forward solve unless given.
        seminorm: leaves the gradients of parameters out of step control, as they feed back into nothing.

    Source: Chen et al., Neural Ordinary Differential Equations, 2018, arXiv:1806.07366; Kidger, Chen and Lyons, "Hey,
    that's not an ODE": Faster ODE Adjoints via Seminorms, 2020, arXiv:2009.09457.

    Example:
        >>> ContinuousAdjoint(rtol=1e-6, atol=1e-6).seminorm
        True
    """

    rtol: float | None = None
    atol: float | None = None
    method: str | None = None
    seminorm: bool = True

    def __post_init__(self):
        check_tolerances("ContinuousAdjoint", *(1.0 if each is None else each for each in (self.rtol, self.atol)))

    def begin(self, problem, params):
        """Refuses: our own steps have an exact gradient at the same price."""
        raise ValueError(
            f"{problem.owner}(gradient={self!r}): this solver has no continuous adjoint, since the gradient of its own "
            f"steps is exact at the same price; pass gradient=Checkpointed(), or solve by TorchDiffEq(method, ...)."
        )


def without_graph(tape: Tape | None):
    """Gives the mode a solve runs in: without a graph when there is a tape."""
    return contextlib.nullcontext() if tape is None else torch.no_grad()


def parameters_of(f: Any) -> tuple[Tensor, ...]:
    """Finds the tensors that require gradients and that a function refers to.

    Looks through modules, bound methods, partial functions, closures, defaults, the globals that a function names, and
    the attributes of callable objects; not through what is imported or reached in another way.
    """
    found: dict[int, Tensor] = {}
    _search(f, found, set())
    return tuple(found.values())


def _search(thing: Any, found: dict[int, Tensor], seen: set[int]) -> None:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, Tensor):
        if thing.requires_grad:
            found[id(thing)] = thing
        return
    inside: list[Any] = []
    if isinstance(thing, nn.Module):
        inside += thing.parameters()
        inside += [value for name, value in vars(thing).items() if not name.startswith("_")]
    elif isinstance(thing, functools.partial):
        inside += [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, list | tuple | set | frozenset):
        inside += thing
    elif isinstance(thing, dict):
        inside += thing.values()
    elif hasattr(thing, "__self__") and hasattr(thing, "__func__"):
        inside += [thing.__self__, thing.__func__]
    elif hasattr(thing, "__code__"):
        for cell in thing.__closure__ or ():
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                inside.append(cell.cell_contents)
        inside += [*(thing.__defaults__ or ()), *(thing.__kwdefaults__ or {}).values()]
        named = [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
        # Functions of other files are a library's, as a rule, and lead far away.
        inside += [each for each in named if getattr(each, "__globals__", thing.__globals__) is thing.__globals__]
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        inside += vars(thing).values()
    for each in inside:
        _search(each, found, seen)


def wanted_parameters(problem: Problem, params: Sequence[Tensor] | None) -> list[Tensor]:
    """Lists the parameters that require gradients, each once; those that ``f`` refers to unless told."""
    params = parameters_of(problem.f) if params is None else params
    params = list({id(each): each for each in params if each.requires_grad}.values())
    for each in params:
        if each.grad_fn is not None and _reaches(each, params):
            raise ValueError(
                f"{problem.owner}.solve(gradient={problem.gradient!r}): a tensor of shape {list(each.shape)} among "
                f"params, or in f's closure, was computed from another one, whose gradient would be counted twice; "
                f"pass params=(...) without one of the two."
            )
    return params


class Tape:
    """Keeps the steps of a solve that runs without a graph, and joins its results to the graph afterwards."""

    def __init__(self, problem: Problem, params: Sequence[Tensor] | None):
        self.problem, self.steps = problem, []
        leaves, self.structure = pytree.tree_flatten(problem.args)
        self.wanted = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        self.leaves = leaves
        self.params = wanted_parameters(problem, params)

    def attach(
        self, parts: list[Tensor], integrals: list[Tensor], outputs: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """Gives the results of the solve, ``outputs`` by slot, as functions of the state, ``args`` and parameters."""
        # Copies of weights that autocast made without a graph must not be met by a call that wants one.
        torch.clear_autocast_cache()
        inputs = [*self.problem.y0, *(leaf for leaf, wanted in zip(self.leaves, self.wanted) if wanted), *self.params]
        if not any(tensor.requires_grad for tensor in inputs):
            self._check_alone()
            return parts, integrals, outputs
        results = [*parts, *integrals, *(part for output in outputs for part in output)]
        attached = iter(_Adjoint.apply(self, results, *inputs))
        take = lambda like: [next(attached) for _ in like]
        return take(parts), take(integrals), [take(output) for output in outputs]

    def _check_alone(self) -> None:
        """Raises if ``f`` depends on a tensor that requires a gradient although nothing else does."""
        if self.steps:
            step = self.steps[-1]
            args = self.problem.args if step.rows is None else gather(self.problem.args, step.rows)
            with torch.enable_grad():
                slopes, integrands = self.problem(step.times[0], step.y, args)
            refuse_strangers(self.problem, (*slopes, *integrands), [])
        torch.clear_autocast_cache()


class _Adjoint(torch.autograd.Function):
    """Gives the results of a solve a gradient: the reverse walk through its steps."""

    @staticmethod
    def forward(ctx, tape: Tape, results: list[Tensor], *inputs: Tensor):
        problem, steps = tape.problem, tape.steps
        ctx.set_materialize_grads(False)
        constants = [leaf for leaf, wanted in zip(tape.leaves, tape.wanted) if isinstance(leaf, Tensor) and not wanted]
        # Saved in torch's way, tensors are checked for changes in place, can be moved by hooks, and go after use.
        ctx.save_for_backward(*inputs, *constants, *(part for step in steps for part in step.y))
        ctx.steps = [replace(step, y=[]) for step in steps]
        ctx.problem, ctx.structure, ctx.wanted = problem, tape.structure, tape.wanted
        ctx.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in tape.leaves]
        ctx.tensors = [isinstance(leaf, Tensor) for leaf in tape.leaves]
        ctx.count, ctx.autocast = len(inputs), autocast_state(problem.device.type)
        # An alias, since a state may be a result and the start of a step: the graph must not hold its own results.
        return tuple(result.detach() for result in results)

    @staticmethod
    def backward(ctx, *cotangents):
        with torch.no_grad(), autocast(ctx.autocast):
            gradients = _Walk(ctx, cotangents).back()
        if torch.is_grad_enabled():
            inputs = ctx.saved_tensors[: ctx.count]
            gradients = [None if g is None else _Once.apply(g.detach(), *inputs) for g in gradients]
        return None, None, *gradients


class _Once(torch.autograd.Function):
    """Raises when a gradient is differentiated again, also where it would come out as a constant without a word."""

    @staticmethod
    def forward(ctx, gradient, *inputs):
        # Hung on what the solve depends on, whatever of it a second derivative is taken by.
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *cotangents):
        raise RuntimeError(
            "a second derivative was asked of a solve with gradient=Checkpointed(): its gradient is once "
            "differentiable, since the graph of its steps is not kept; solve with gradient=Backprop() for this."
        )


class _Walk:
    """Goes back through the steps of one solve."""

    def __init__(self, ctx, cotangents):
        problem = self.problem = ctx.problem
        saved = list(ctx.saved_tensors)
        inputs, rest = saved[: ctx.count], iter(saved[ctx.count :])
        count = len(problem.shown)
        self.starts, given = inputs[:count], iter(inputs[count:])
        leaves = []
        for tensor, wanted, other in zip(ctx.tensors, ctx.wanted, ctx.fixed):
            leaves.append((next(given) if wanted else None) if tensor else other)
        self.params = list(given)
        for index, (tensor, wanted) in enumerate(zip(ctx.tensors, ctx.wanted)):
            if tensor and not wanted:
                leaves[index] = next(rest)
        self.leaves, self.wanted, self.structure = leaves, ctx.wanted, ctx.structure
        self.steps = [replace(step, y=[next(rest) for _ in range(count)]) for step in ctx.steps]
        parts = list(cotangents[:count])
        self.live = any(part is not None for part in parts)
        self.parts = [torch.zeros_like(y) if part is None else part for y, part in zip(self.starts, parts)]
        names = len(problem.tolerances)
        self.integrals = list(cotangents[count : count + names])
        self.live |= any(each is not None for each in self.integrals)
        later = cotangents[count + names :]
        self.outputs = [later[start : start + count] for start in range(0, len(later), count)]
        self.arg_sums: list[Tensor | None] = [None] * sum(self.wanted)
        self.param_sums: list[Tensor | None] = [None] * len(self.params)
        self.coefficients: dict[int, tuple] = {}

    def back(self) -> list[Tensor | None]:
        """Gives the gradients of the state, of the arguments and of the parameters."""
        while self.steps:
            self._step(self.steps.pop())
        settle = lambda total, like: total if total is None else total.to(like.dtype)
        args = [leaf for leaf, wanted in zip(self.leaves, self.wanted) if wanted]
        return [
            *self.parts,
            *(settle(total, like) for total, like in zip(self.arg_sums, args)),
            *(settle(total, like) for total, like in zip(self.param_sums, self.params)),
        ]

    def _step(self, step: Step) -> None:
        """Carries the cotangents from the end of a step to its start."""
        outputs = [output for output in step.outputs if any(part is not None for part in self.outputs[output.slot])]
        self.live |= bool(outputs)
        if not self.live:
            return
        rows, h = step.rows, step.h
        take = lambda value: value if rows is None else value.index_select(0, rows)
        args = self.leaves if rows is None else gather(self.leaves, rows)
        a, b = self._weights(step.tableau)
        lead = [take(part) for part in self.parts]
        # Terms through which the slopes reach the results: each is a list of cotangents, and a weight per stage.
        terms: list[tuple[list[Tensor], Sequence[float | Tensor]]] = [(lead, b)]
        direct = list(lead)
        for output in outputs:
            reached = self._reached(output, lead, take)
            terms.append((reached, b if output.weights is None else output.weights))
            direct = [mine + theirs for mine, theirs in zip(direct, reached)]
        used = {stage for _, weights in terms for stage, weight in enumerate(weights) if not _is_zero(weight)}
        for stage in reversed(range(len(a))):
            used |= {other for other, weight in enumerate(a[stage]) if stage in used and weight}
        rest = None if not isinstance(h, Tensor) else h == 0
        states = self._stages(step, used, args, rest)
        pulled: dict[int, list[Tensor]] = {}
        for stage in sorted(used, reverse=True):
            pairs = [(values, weights[stage]) for values, weights in terms if stage < len(weights)]
            pairs += [(pulled[later], a[later][stage]) for later in pulled]
            slopes = [_total([(values[part], w) for values, w in pairs], h, rest) for part in range(len(lead))]
            integrands = [
                None if value is None else _total([(take(value), b[stage])], h, rest) for value in self.integrals
            ]
            state = states.pop(stage)
            pulled[stage] = self._pull(step.times[stage], state, args, rows, slopes, integrands)
        for each in pulled.values():
            direct = [mine + _still(theirs, rest) for mine, theirs in zip(direct, each)]
        if rows is None:
            self.parts = direct
        else:
            self.parts = [part.index_copy(0, rows, new) for part, new in zip(self.parts, direct)]

    def _reached(self, output: Output, like: list[Tensor], take: Callable) -> list[Tensor]:
        """Gives the cotangents of an output for the rows of a step, zero where it is not theirs."""
        reached = []
        for cotangent, part in zip(self.outputs[output.slot], like):
            cotangent = torch.zeros_like(part) if cotangent is None else take(cotangent)
            if output.mask is not None:
                cotangent = torch.where(like_rows(output.mask, part), cotangent, 0.0)
            reached.append(cotangent)
        return reached

    def _stages(self, step: Step, used: set[int], args: list, rest: Tensor | None) -> dict[int, list[Tensor]]:
        """Computes the state at each stage that counts; the slopes serve later stages only and go at once."""
        args = pytree.tree_unflatten(args, self.structure)
        states, slopes = {}, []
        for stage, combination in enumerate(step.tableau.stages[: max(used, default=-1) + 1]):
            if combination is None:
                y = step.y
            else:
                y = []
                for index, part in enumerate(step.y):
                    bracket, weight = combination.bracket(slopes, index), combination.weight
                    if rest is None:
                        y.append(torch.add(part, bracket, alpha=weight * step.h))
                    else:
                        width = like_rows(step.h, part).to(part.dtype)
                        moved = torch.addcmul(part, bracket, width, value=weight)
                        y.append(torch.where(like_rows(rest, part), part, moved))
            states[stage] = y
            slopes.append(self.problem(step.times[stage], y, args)[0] if stage < max(used) else None)
        return states

    def _pull(self, t, state, args, rows, slopes, integrands) -> list[Tensor]:
        """Takes the product of cotangents with the Jacobian of ``f`` at one stage; sums what is not the state's."""
        with torch.enable_grad():
            state = [part.detach().requires_grad_() for part in state]
            free = [leaf.detach().requires_grad_() if wanted else leaf for leaf, wanted in zip(args, self.wanted)]
            k, g = self.problem(t, state, pytree.tree_unflatten(free, self.structure))
        free = [leaf for leaf, wanted in zip(free, self.wanted) if wanted]
        pairs = [
            (value, cotangent)
            for value, cotangent in zip([*k, *g], [*slopes, *integrands])
            if cotangent is not None and value.requires_grad
        ]
        if not pairs:
            return [torch.zeros_like(part) for part in state]
        values, cotangents = zip(*pairs)
        inputs = [*state, *free, *self.params]
        refuse_strangers(self.problem, values, inputs)
        found = torch.autograd.grad(values, inputs, cotangents, allow_unused=True)
        parts, found = found[: len(state)], found[len(state) :]
        for index, gradient in enumerate(found[: len(free)]):
            self.arg_sums[index] = _added(self.arg_sums[index], gradient, rows, self.problem.batch)
        for index, gradient in enumerate(found[len(free) :]):
            self.param_sums[index] = _added(self.param_sums[index], gradient, None, 0)
        return [torch.zeros_like(like) if part is None else part for like, part in zip(state, parts)]

    def _weights(self, tableau: Tableau) -> tuple[list[list[float]], list[float]]:
        """Gives the coefficients of a tableau as floats."""
        if id(tableau) not in self.coefficients:
            table = [[float(each) for each in row] for row in tableau.a], [float(each) for each in tableau.b]
            self.coefficients[id(tableau)] = table
        return self.coefficients[id(tableau)]


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _total(pairs: list[tuple[Tensor, float | Tensor]], h: float | Tensor, rest: Tensor | None) -> Tensor:
    """Computes ``h * sum_j w_j v_j``; zero where a row rests, whatever the values are there."""
    total = None
    for value, weight in pairs:
        if _is_zero(weight):
            continue
        if isinstance(weight, Tensor):
            value, weight = value * like_rows(weight, value).to(value.dtype), 1.0
        if total is None:
            total = value if weight == 1 else value * weight
        else:
            total = torch.add(total, value, alpha=weight)
    if total is None:
        return torch.zeros_like(pairs[0][0])
    if rest is None:
        return total * h
    return _still(total * like_rows(h, total).to(total.dtype), rest)


def _still(value: Tensor, rest: Tensor | None) -> Tensor:
    """Sets the rows at rest to zero."""
    return value if rest is None else torch.where(like_rows(rest, value), 0.0, value)


def _added(total: Tensor | None, gradient: Tensor | None, rows: Tensor | None, batch: int) -> Tensor | None:
    """Adds a gradient to its sum, in float32 at least; the rows of a batch to their places."""
    if gradient is None:
        return total
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if rows is None:
        # A gradient may be the cotangent itself or a parameter's view: the first one must not be added to in place.
        return gradient.to(wide, copy=True) if total is None else total.add_(gradient)
    if total is None:
        total = gradient.new_zeros((batch, *gradient.shape[1:]), dtype=wide)
    return total.index_add_(0, rows, gradient.to(wide))


def refuse_strangers(problem: Problem, values: Sequence[Tensor], known: Sequence[Tensor]) -> None:
    """Raises if the graph of some values reaches a tensor that requires a gradient and is not known.

    Its gradient would be lost without a word.
    """
    values = [value for value in values if value.requires_grad]
    leaves = {id(tensor) for tensor in known}
    stranger = next((value for value in values if value.is_leaf and id(value) not in leaves), None)
    for node in _nodes([value.grad_fn for value in values], {tensor.grad_fn for tensor in known}):
        if type(node).__name__ == "AccumulateGrad" and id(node.variable) not in leaves:
            stranger = node.variable
            break
    if stranger is not None:
        raise RuntimeError(
            f"{problem.owner}.solve(gradient={problem.gradient!r}): f depends on a tensor of shape "
            f"{list(stranger.shape)} that requires a gradient and is neither in args nor among params, so its gradient "
            f"would be lost; pass params=(...) with every such tensor, hand on what varies with the sample through "
            f"args=, or freeze it with requires_grad_(False)."
        )


def _reaches(tensor: Tensor, others: list[Tensor]) -> bool:
    """Says whether a tensor was computed from one of some others."""
    ends = {id(other) for other in others if other.grad_fn is None}
    ends |= {other.grad_fn for other in others if other is not tensor and other.grad_fn is not None}
    return any(
        node in ends or (type(node).__name__ == "AccumulateGrad" and id(node.variable) in ends)
        for node in _nodes([tensor.grad_fn], set())
    )


def _nodes(roots: list, stops: set) -> Iterator[Any]:
    """Walks a graph from its roots, without the nodes to stop at and what is behind them."""
    todo, seen = list(roots), {None, *stops}
    while todo:
        node = todo.pop()
        if node not in seen:
            seen.add(node)
            yield node
            todo += [after for after, _ in node.next_functions]


def autocast_state(device: str) -> list[tuple[str, bool, torch.dtype]]:
    """Reads whether and how autocast is on."""
    kinds = dict.fromkeys((device, "cpu"))
    return [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds]


@contextlib.contextmanager
def autocast(states: list[tuple[str, bool, torch.dtype]]) -> Iterator[None]:
    """Puts autocast into a state; without its cache, whose copies made without a graph would cut the gradient."""
    with contextlib.ExitStack() as stack:
        for kind, enabled, dtype in states:
            stack.enter_context(torch.autocast(kind, enabled=enabled, dtype=dtype, cache_enabled=False))
        yield
