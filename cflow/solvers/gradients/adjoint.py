"""The exact adjoint of a solve: the records of its steps, and the backward pass through them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from cflow.modes import autocast, autocast_state
from cflow.solvers.gradients.parameters import refuse_strangers, wanted_parameters
from cflow.solvers.problem import Problem
from cflow.solvers.state import gather, like_rows
from cflow.solvers.tableau import Tableau, stages_of

__all__ = ["Output", "Step", "Tape"]


@dataclass
class Output:
    """Records an output time inside a step: ``out[slot][rows] += mask * (y + h * sum_j w_j k_j)``.

    ``weights`` has one number, or one ``[b]`` tensor, per stage. None is the end of the step, with the weights ``b`` of
    the tableau. If all are zero, the output is the start of the step. ``mask [b]`` selects rows of the step; None: all.
    """

    slot: int
    weights: Sequence[float | Tensor] | None = None
    mask: Tensor | None = None


@dataclass
class Step:
    """Records one step of some rows of the batch: all that is needed to compute it again.

    Shapes: ``y`` lists the parts of the state at the start of the step, ``[b, ...]`` each; ``times`` the stage times,
    ``[b]`` each. ``h`` is one number for all rows, or ``[b]``. It is zero for a row that does not move (rejected,
    finished or failed), whose cotangent passes through unchanged. ``rows [b]`` are the indices of the rows in the whole
    batch, each once; None: the whole batch in order.

    A method that is more than its tableau writes ``again(step, y, args) -> (parts, integrals, outputs)``. It computes
    the parts at the end, what the step adds to each integral, and the parts at each of ``outputs``. The backward pass
    then keeps the graph of a whole step at a time.
    """

    tableau: Tableau
    y: list[Tensor]
    times: list[Tensor]
    h: float | Tensor
    rows: Tensor | None = None
    outputs: list[Output] = field(default_factory=list)
    again: Callable | None = None


class Tape:
    """Stores the steps of a solve that runs without a graph, and connects its results to the graph afterwards."""

    def __init__(self, problem: Problem):
        self.problem, self.steps = problem, []
        leaves, self.structure = pytree.tree_flatten(problem.args)
        self.wanted = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        self.leaves = leaves
        self.params = wanted_parameters(problem)

    def mark(self, slot: int, tableau: Tableau, y: list[Tensor], t: Tensor, rows: Tensor | None = None) -> None:
        """Records that an output is the state between two steps, as a step of length zero."""
        none = [0.0] * len(tableau.b)
        self.steps.append(Step(tableau, y, [t] * len(none), 0.0, rows, [Output(slot, none)]))

    def attach(
        self, parts: list[Tensor], integrals: list[Tensor], outputs: list[list[Tensor]]
    ) -> tuple[list[Tensor], list[Tensor], list[list[Tensor]]]:
        """Returns the results of the solve, ``outputs`` by slot, as functions of the state, ``args`` and parameters."""
        # Autocast may have cached copies of weights without a graph: an evaluation with a graph must not use them.
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
    """Connects the results of a solve to autograd; the backward pass goes through its steps in reverse."""

    @staticmethod
    def forward(ctx, tape: Tape, results: list[Tensor], *inputs: Tensor):
        problem, steps = tape.problem, tape.steps
        ctx.set_materialize_grads(False)
        constants = [leaf for leaf, wanted in zip(tape.leaves, tape.wanted) if isinstance(leaf, Tensor) and not wanted]
        # save_for_backward checks for changes in place, lets hooks move tensors, and frees them after use.
        ctx.save_for_backward(*inputs, *constants, *(part for step in steps for part in step.y))
        ctx.steps = [replace(step, y=[]) for step in steps]
        ctx.problem, ctx.structure, ctx.wanted = problem, tape.structure, tape.wanted
        ctx.fixed = [None if isinstance(leaf, Tensor) else leaf for leaf in tape.leaves]
        ctx.tensors = [isinstance(leaf, Tensor) for leaf in tape.leaves]
        ctx.count, ctx.autocast = len(inputs), autocast_state(problem.device.type)
        # Aliases, since a state may be a result and the start of a step: the graph must not hold its own results.
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
    """Raises if a gradient is differentiated again, also where it would silently be a constant."""

    @staticmethod
    def forward(ctx, gradient, *inputs):
        # Depends on all inputs of the solve, so that a second derivative with respect to any of them arrives here.
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx, *cotangents):
        raise RuntimeError(
            "second derivative of a solve with gradient=Checkpointed(): it is once differentiable, as its graph is not "
            "kept; solve with gradient=Backprop()."
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

    def back(self) -> list[Tensor | None]:
        """Returns the gradients of the state, of the arguments and of the parameters."""
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
        """Propagates the cotangents from the end of a step to its start."""
        outputs = [output for output in step.outputs if any(part is not None for part in self.outputs[output.slot])]
        self.live |= bool(outputs)
        if not self.live:
            return
        if step.again is not None:
            self._whole(replace(step, outputs=outputs), step.again)
            return
        rows, h = step.rows, step.h
        take = lambda value: value if rows is None else value.index_select(0, rows)
        args = self.leaves if rows is None else gather(self.leaves, rows)
        *a, b = step.tableau.table
        lead = [take(part) for part in self.parts]
        # Terms by which the slopes affect the results: each is a list of cotangents, and a weight per stage.
        terms: list[tuple[list[Tensor], Sequence[float | Tensor]]] = []
        if isinstance(h, Tensor) or h:  # a step of length zero only marks an output
            terms.append((lead, b))
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
                None if value is None or _is_zero(b[stage]) else _total([(take(value), b[stage])], h, rest)
                for value in self.integrals
            ]
            state = states.pop(stage)
            pulled[stage] = self._pull(step.times[stage], state, args, rows, slopes, integrands)
        for each in pulled.values():
            direct = [mine + _still(theirs, rest) for mine, theirs in zip(direct, each)]
        self._put(rows, direct)

    def _whole(self, step: Step, again: Callable) -> None:
        """Propagates the cotangents through a step that computes itself again."""
        rows = step.rows
        take = lambda value: value if rows is None else value.index_select(0, rows)
        args = self.leaves if rows is None else gather(self.leaves, rows)
        lead = [take(part) for part in self.parts]
        state, free, args = self._inputs(step.y, args)
        with torch.enable_grad():
            ends, added, kept = again(step, state, args)
        values = [*ends, *added, *(part for parts in kept for part in parts)]
        cotangents = [*lead, *(None if value is None else take(value) for value in self.integrals)]
        for output in step.outputs:
            cotangents += self._reached(output, lead, take)
        self._put(rows, self._gradients(values, cotangents, state, free, rows))

    def _put(self, rows: Tensor | None, parts: list[Tensor]) -> None:
        """Stores the cotangents of the state for some rows; None: all."""
        if rows is not None:
            parts = [part.index_copy(0, rows, new) for part, new in zip(self.parts, parts)]
        self.parts = parts

    def _reached(self, output: Output, like: list[Tensor], take: Callable) -> list[Tensor]:
        """Returns the cotangents of an output for the rows of a step; zero for other rows."""
        reached = []
        for cotangent, part in zip(self.outputs[output.slot], like):
            cotangent = torch.zeros_like(part) if cotangent is None else take(cotangent)
            if output.mask is not None:
                cotangent = torch.where(like_rows(output.mask, part), cotangent, 0.0)
            reached.append(cotangent)
        return reached

    def _stages(self, step: Step, used: set[int], args: list, rest: Tensor | None) -> dict[int, list[Tensor]]:
        """Computes the state at each stage that counts; slopes serve later stages only and are freed at once."""
        args = pytree.tree_unflatten(args, self.structure)
        states, slopes = {}, []
        for stage, combination in enumerate(step.tableau.stages[: max(used, default=-1) + 1]):
            if combination is None:
                y = step.y
            else:
                y = []
                for index, part in enumerate(step.y):
                    bracket, weight = combination.bracket(stages_of(slopes, index)), combination.weight
                    if rest is None:
                        y.append(torch.add(part, bracket, alpha=weight * step.h))
                    else:
                        width = like_rows(step.h, part).to(part.dtype)
                        moved = torch.addcmul(part, bracket, width, value=weight)
                        y.append(torch.where(like_rows(rest, part), part, moved))
            states[stage] = y
            again = stage < max(used)
            slopes.append(self.problem(step.times[stage], y, args, integrals=False)[0] if again else None)
        return states

    def _pull(self, t, state, args, rows, slopes, integrands) -> list[Tensor]:
        """Multiplies cotangents by the Jacobian of ``f`` at one stage; sums gradients of arguments and parameters."""
        state, free, args = self._inputs(state, args)
        with torch.enable_grad():
            counts = any(each is not None for each in integrands)
            k, g = self.problem(t, state, args, integrals=counts)
        return self._gradients([*k, *g], [*slopes, *integrands], state, free, rows)

    def _inputs(self, state: list[Tensor], args: list) -> tuple[list[Tensor], list[Tensor], tuple]:
        """Returns the state and the arguments as leaves of a new graph: state, wanted arguments, all arguments."""
        state = [part.detach().requires_grad_() for part in state]
        leaves = [leaf.detach().requires_grad_() if wanted else leaf for leaf, wanted in zip(args, self.wanted)]
        free = [leaf for leaf, wanted in zip(leaves, self.wanted) if wanted]
        return state, free, pytree.tree_unflatten(leaves, self.structure)

    def _gradients(self, values, cotangents, state, free, rows) -> list[Tensor]:
        """Returns the gradients of the state; sums those of arguments and parameters."""
        pairs = [
            (value, cotangent)
            for value, cotangent in zip(values, cotangents)
            if cotangent is not None and value is not None and value.requires_grad
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


def _is_zero(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _total(pairs: list[tuple[Tensor, float | Tensor]], h: float | Tensor, rest: Tensor | None) -> Tensor:
    """Computes ``h * sum_j w_j v_j``; zero for a row that does not move, for any values."""
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
    """Sets the rows that do not move to zero."""
    return value if rest is None else torch.where(like_rows(rest, value), 0.0, value)


def _added(total: Tensor | None, gradient: Tensor | None, rows: Tensor | None, batch: int) -> Tensor | None:
    """Adds a gradient to its sum, in float32 at least; rows of the batch are added at their indices."""
    if gradient is None:
        return total
    wide = torch.promote_types(gradient.dtype, torch.float32)
    if rows is None:
        # The first gradient may be the cotangent itself or a view of a parameter: copy it before adding in place.
        return gradient.to(wide, copy=True) if total is None else total.add_(gradient)
    if total is None:
        total = gradient.new_zeros((batch, *gradient.shape[1:]), dtype=wide)
    return total.index_add_(0, rows, gradient.to(wide))
