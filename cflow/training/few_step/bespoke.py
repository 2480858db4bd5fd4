"""``fit_bespoke``: learns times and coefficients of a few-step solver for one trained flow."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from cflow.arguments import check_integer
from cflow.continuous.transport import transport
from cflow.modes import evaluating
from cflow.shapes import mean_rows
from cflow.solvers import (
    DEIS,
    RK4,
    AdamsBashforth,
    Bespoke,
    Dopri5,
    DPMSolverPP2M,
    Euler,
    Heun,
    Midpoint,
    Solver,
    UniPC,
)
from cflow.training.tracking import is_watched

__all__ = ["fit_bespoke"]


def fit_bespoke(
    flow: Any,
    steps: int = 6,
    *,
    seed: int = 0,
    context: Tensor | None = None,
    guidance: Any = None,
    samples: int = 512,
    validation: int = 256,
    batch_size: int = 128,
    iterations: int = 400,
    lr: float = 2e-2,
    reference: Solver | None = None,
    progress: bool | None = None,
) -> Bespoke:
    r"""Fits a solver with ``steps`` function evaluations (NFE) to a trained continuous flow.

    The ``reference`` solver computes the ends of base samples once. Then Adam changes the times and all weights of

    .. math:: x_{n+1} = a_n x_0 + \sum_{j \le n} b_{nj} v_j

    so that the last state agrees with these ends. The loss is the mean over samples of the logarithm of the mean
    squared error (minus the PSNR). The fit starts from the best generic solver with as many evaluations (Euler,
    midpoint, Heun, RK4, Adams-Bashforth, DPM-Solver++, UniPC, DEIS). It is validated on other base samples and returns
    the best solver found there, which is never worse than the start in this loss and in the root mean square error.
    The weights of the network do not change.

    Cost: ``samples + validation`` reference solves, and ``iterations * batch_size * steps`` forward and backward
    evaluations of the network: some seconds for a small network on a CPU core, minutes for a U-Net.

    Args:
        flow: a :class:`cflow.ContinuousFlow`. If its interval is smaller than [0, 1], evaluations stay inside it, and
            the weights lead to the ends.
        steps: the number of function evaluations (NFE).
        seed: the seed of the base samples and of their contexts.
        context: contexts ``[M, *context_shape]`` of a conditional flow, drawn with replacement: ``torch.arange(10)``
            for ten classes, for instance, or those of the training data.
        guidance: the guidance with which samples will be drawn; the solver is fitted to it.
        samples: the number of base samples for the fit.
        validation: the number of base samples for validation.
        batch_size: samples per iteration and per reference solve.
        iterations: steps of Adam.
        lr: the learning rate of Adam, in units of the length of a step.
        reference: an accurate solver. Default: ``Dopri5(rtol=1e-5, atol=1e-5)``.
        progress: whether to show progress bars. Default: only in a terminal or a notebook.

    Raises:
        TypeError: for a flow without a velocity.
        ValueError: for a context that does not fit the flow, or counts below one.
        FloatingPointError: if the reference fails on a sample.

    Source: Shaul et al., Bespoke Non-Stationary Solvers for Fast Sampling of Diffusion and Flow Models, 2024,
    arXiv:2403.01329, algorithm 2.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> solver = fit_bespoke(flow, steps=3, samples=64, validation=64, iterations=5)
        >>> flow.sample((4,), solver=solver).shape, solver.error <= solver.error_before
        (torch.Size([4, 2]), True)
    """
    _check(
        flow, context, lr, steps=steps, samples=samples, validation=validation, batch_size=batch_size,
        iterations=iterations,
    )  # fmt: skip
    reference = Dopri5(rtol=1e-5, atol=1e-5) if reference is None else reference
    with evaluating(flow):
        device = next(flow.parameters()).device
        generator = torch.Generator(device=device).manual_seed(seed)
        shown = is_watched() if progress is None else progress
        with _bar("reference samples", samples + validation, shown) as advance:
            pairs, held = (
                _Pairs.draw(flow, count, context, guidance, batch_size, reference, generator, advance)
                for count in (samples, validation)
            )
        generic, errors = _generic(flow, steps), []
        with _bar("standard solvers", len(generic), shown) as advance:
            for each in generic:
                errors.append(held.error(each))
                advance(1)
        first = min(range(len(generic)), key=lambda index: errors[index][0])
        start, (found, error_before) = generic[first], errors[first]
        best, error = start, error_before
        model = _Coefficients(start, flow.interval).to(device)
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=iterations + 1, pct_start=0.1)
        with _bar("fit", iterations, shown) as advance:
            for step in range(iterations):
                with torch.enable_grad():
                    x, target, given = pairs.some(batch_size, generator)
                    loss = _log_error(model(pairs.velocity, x, given), target).mean()
                    # Only for the coefficients, so gradients of the flow do not change.
                    gradients = torch.autograd.grad(loss, list(model.parameters()))
                for parameter, gradient in zip(model.parameters(), gradients):
                    parameter.grad = torch.nan_to_num(gradient)
                optimizer.step()
                schedule.step()
                if (step + 1) % max(1, iterations // 20) == 0 or step + 1 == iterations:
                    candidate = model.solver()
                    loss, distance = held.error(candidate)
                    if loss < found and distance <= error_before:
                        best, found, error = candidate, loss, distance
                advance(1)
        return replace(best, error=error, error_before=error_before)


@dataclass
class _Pairs:
    """Base samples ``[N, *event]``, their ends, and their contexts."""

    velocity: Any
    x0: Tensor
    x1: Tensor
    context: Tensor | None
    batch: int

    @classmethod
    @torch.no_grad()
    def draw(cls, flow, count: int, context, guidance, batch: int, reference: Solver, generator, advance) -> _Pairs:
        """Draws base samples and computes their ends in batches; calls ``advance`` with the batch sizes."""
        x0 = flow.cast(flow.base.sample((count,), generator=generator))
        given = None
        if context is not None:
            context = flow.cast(torch.as_tensor(context))
            chosen = torch.randint(len(context), (count,), generator=generator, device=generator.device)
            given = context[chosen.to(context.device)]
        ends = []
        for index in range(0, count, batch):
            here = None if given is None else given[index : index + batch]
            x = x0[index : index + batch]
            solution = flow.transport(x, 0.0, 1.0, here, solver=reference, guidance=guidance)
            try:
                ends.append(solution.require_success().y)
            except RuntimeError as failure:
                raise FloatingPointError(f"fit_bespoke: the reference {reference!r} failed: {failure}") from None
            advance(len(x))
        return cls(flow.velocity_field(guidance), x0, torch.cat(ends), given, batch)

    def some(self, count: int, generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Returns random pairs with their contexts."""
        chosen = torch.randint(len(self.x0), (count,), generator=generator, device=generator.device)
        return self.x0[chosen], self.x1[chosen], None if self.context is None else self.context[chosen]

    @torch.no_grad()
    def error(self, solver: Bespoke) -> tuple[float, float]:
        """Returns the loss of a solver on all pairs (infinite if one is not finite), and its root mean square error."""
        ends = []
        for index in range(0, len(self.x0), self.batch):
            here = None if self.context is None else self.context[index : index + self.batch]
            solution = solver.solve(self.velocity, self.x0[index : index + self.batch], *solver.interval, args=(here,))
            ends.append(solution.y)
        x = torch.cat(ends)
        loss = float(_log_error(x, self.x1).mean())
        return loss if math.isfinite(loss) else math.inf, float((x - self.x1).square().mean().sqrt())


class _Coefficients(nn.Module):
    """The changes of the numbers of a :class:`Bespoke` solver, per step and in units of a step, as parameters."""

    def __init__(self, solver: Bespoke, inside: tuple[float, float]):
        super().__init__()
        self.like, self.inside, count = solver, inside, len(solver.times)
        weights = torch.zeros(count, count, dtype=torch.float64)
        for n, row in enumerate(solver.weights):
            weights[n, : n + 1] = torch.tensor(row, dtype=torch.float64)
        for name, value in (("times", solver.times), ("starts", solver.starts), ("weights", weights)):
            self.register_buffer(f"{name}_before", torch.as_tensor(value, dtype=torch.float64))
        self.register_buffer("triangle", torch.ones(count, count, dtype=torch.float64).tril())
        self.times, self.starts, self.weights = (
            nn.Parameter(torch.zeros_like(each)) for each in (self.times_before, self.starts_before, weights)
        )

    def numbers(self) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the times, the weights of the start and the weights of the velocities."""
        unit = (self.like.interval[1] - self.like.interval[0]) / len(self.like.times)
        times = (self.times_before + unit * self.times).clamp(*self.inside)
        # A change in one step is kept in all later steps.
        starts = self.starts_before + unit * self.starts.cumsum(0)
        weights = self.weights_before + unit * (self.weights * self.triangle).cumsum(0)
        return times, starts, weights

    def forward(self, velocity, x: Tensor, context: Tensor | None) -> Tensor:
        times, starts, weights = (each.to(x.dtype) for each in self.numbers())
        y, slopes = x, []
        for n in range(len(times)):
            slopes.append(velocity(times[n].expand(len(x)), y, context))
            y = starts[n] * x + sum(weight * slope for weight, slope in zip(weights[n].unbind(), slopes))
        return y

    def solver(self) -> Bespoke:
        """Returns the solver with the current numbers."""
        times, starts, weights = (each.detach().cpu().tolist() for each in self.numbers())
        rows_of = tuple(tuple(row[: n + 1]) for n, row in enumerate(weights))
        return Bespoke(tuple(times), tuple(starts), rows_of, self.like.interval)


@contextlib.contextmanager
def _bar(what: str, total: int, shown: bool) -> Iterator[Callable[[int], Any]]:
    """Yields a function that advances a progress bar by a count; it does nothing where the bar is not shown."""
    if not shown:
        yield lambda count: None
        return
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=what, unit="", dynamic_ncols=True) as bar:
        yield bar.update


def _log_error(x: Tensor, target: Tensor) -> Tensor:
    """Computes the logarithm of the mean squared error per sample, ``[B]``: minus the PSNR, in other units."""
    return torch.log(mean_rows((x - target).square()) + 1e-20)


class _Shown:
    """Replaces a flow by one whose velocities are unit vectors, so states show their weights."""

    trained_by = ()  # no record of training, so every solver is allowed

    def __init__(self, flow, calls: int):
        self.path, self.interval, self.solver, self.divergence = flow.path, flow.interval, flow.solver, flow.divergence
        self.model_shape, self.manifold = torch.Size((calls + 1,)), None
        self.unit = torch.eye(calls + 1, dtype=torch.float64)
        self.times, self.states = [], []

    def velocity_field(self, guidance):
        return self.show

    def show(self, t: Tensor, x: Tensor, context) -> Tensor:
        self.times.append(float(t))
        self.states.append(x[0])
        return self.unit[len(self.times), None]


def _written(flow, solver: Solver, calls: int) -> Bespoke | None:
    """Returns a solver in the form of :class:`Bespoke`, or None if it needs another number of evaluations or fails."""
    shown = _Shown(flow, calls)
    try:
        end = transport(shown, shown.unit[:1], 0.0, 1.0, None, None, solver=solver).y[0]
    except IndexError:
        return None
    if len(shown.times) != calls or not bool(end.isfinite().all()):
        return None
    rows = [state.tolist() for state in (*shown.states[1:], end)]
    return Bespoke(
        tuple(shown.times), tuple(row[0] for row in rows), tuple(tuple(row[1 : n + 2]) for n, row in enumerate(rows))
    )


def _generic(flow, steps: int) -> list[Bespoke]:
    """Returns the generic solvers with as many evaluations; closed-form steps at an end leave them fewer steps."""
    written = []
    for count in dict.fromkeys(range(steps, max(0, steps - 3), -1)):
        solvers = [Euler(count), AdamsBashforth(count), AdamsBashforth(count, order=3)]
        if flow.path is not None and flow.path.affine:
            solvers += [DPMSolverPP2M(count), UniPC(count), DEIS(count)]
        solvers += [Midpoint(steps=max(1, count // 2)), Heun(max(1, count // 2)), RK4(max(1, count // 4))]
        written += [each for each in (_written(flow, solver, steps) for solver in solvers) if each is not None]
    if not written:
        raise ValueError(
            f"fit_bespoke(steps={steps}): no generic solver has so few evaluations on {flow.path!r}; pass two steps "
            f"more."
        )
    return written


def _check(flow, context, lr: float, **counts: int) -> None:
    if not callable(getattr(flow, "velocity_field", None)):
        raise TypeError(
            f"fit_bespoke(flow={type(flow).__name__}): this flow has no velocity; pass a cflow.ContinuousFlow."
        )
    if flow.manifold is not None and not flow.manifold.flat:
        raise ValueError(
            f"fit_bespoke(flow on {flow.manifold!r}): the fitted solver adds vectors to points, which leaves the "
            f"manifold; use solvers.GeodesicMidpoint."
        )
    for name, count in counts.items():
        check_integer("fit_bespoke", name, count, 1, "pass an integer of 1 or more.")
    if not 0 < lr < math.inf:
        raise ValueError(f"fit_bespoke(lr={lr}): a learning rate is positive; pass for instance 2e-2.")
    if (flow.context_shape is None) != (context is None):
        wanted = "is unconditional" if flow.context_shape is None else f"needs contexts of {tuple(flow.context_shape)}"
        given = None if context is None else tuple(torch.as_tensor(context).shape)
        raise ValueError(
            f"fit_bespoke(context={given}): the flow {wanted}; pass contexts [M, *context_shape] for a "
            f"conditional flow only."
        )
    if context is not None:
        shape = tuple(torch.as_tensor(context).shape)
        if not shape or not shape[0] or shape[1:] != tuple(flow.context_shape):
            raise ValueError(
                f"fit_bespoke(context of shape {shape}): context_shape is {tuple(flow.context_shape)}; pass one row or "
                f"more, [M, *context_shape]."
            )
