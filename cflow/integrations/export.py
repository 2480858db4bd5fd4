"""A trained flow as one graph of operations, to run where this library is not: ``torch.export`` programs and ONNX."""

from __future__ import annotations

import copy
import importlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

import cflow
from cflow.arguments import check_integer
from cflow.bijections import Map
from cflow.continuous.flow import ContinuousFlow
from cflow.continuous.transport import transport
from cflow.divergence import Analytic
from cflow.invertible_flow import BaseInvertibleFlow
from cflow.lost_rows import fill_outside, restore, set_aside, set_far_aside
from cflow.registry import outline
from cflow.solvers import Solver

__all__ = ["ENDINGS", "PARTS", "program", "save"]

ENDINGS = (".pt2", ".onnx")


def program(
    flow: BaseInvertibleFlow,
    what: str = "sampler",
    *,
    solver: Solver | None = None,
    guidance: Callable | None = None,
    batch: int | None = None,
) -> torch.export.ExportedProgram:
    r"""Traces a part of a flow into a graph of tensor operations.

    ==============  ==========================  =============================================================
    ``what``        inputs                      output
    ==============  ==========================  =============================================================
    ``"network"``   ``t [B]``, ``x``, context   the velocity ``[B, *event]``, guided if asked, of a continuous
                                                flow, in model space (before the transforms of the data are undone)
    ``"sampler"``   ``z [B, *latent]``,         samples ``[B, *event]`` as :meth:`flow.sample` gives them for
                    context                     these draws ``z`` from the base, transforms undone
    ``"log_prob"``  ``x [B, *event]``, context  log-densities ``[B]`` in nats; of a continuous flow by
                                                ``divergence.Analytic``, whatever its own divergence is
    ==============  ==========================  =============================================================

    A conditional flow's context is the last input: integer labels ``[B]`` (the number of classes means no condition),
    or ``[B, *context_shape]``. Labels are not checked in the graph, and a sample whose solve fails comes out as it is,
    not finite. The program is traced in evaluation mode and without gradients, on the flow's device, and compared with
    the flow once.

    Cost: a sampler's graph holds every step of its solver; tracing takes about half a second per hundred operations.

    Args:
        solver: of a continuous flow's sampler and log-density; a method on a fixed grid without noise, or a fitted one;
            the flow's own unless given.
        guidance: of a continuous flow's network and sampler.
        batch: the size of a batch that the program takes; any, from 1 on, unless given.

    Raises:
        ValueError: for another ``what``, options that the part has no use for, adaptive and stochastic solvers, the
            log-density of a field without a divergence in closed form (autograd, which the other divergences take, has
            no place in a graph), and flows whose Python looks at the values of tensors.

    Source: Ansel et al., PyTorch 2: Faster Machine Learning Through Dynamic Python Bytecode Transformation and Graph
    Compilation, 2024, ASPLOS; torch.export's documentation.

    Example:
        >>> import cflow
        >>> from cflow import bases, fields, paths, solvers
        >>> flow = cflow.ContinuousFlow(fields.MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        >>> sampler = program(flow, "sampler", solver=solvers.Heun(steps=2)).module()
        >>> sampler(torch.randn(5, 2)).shape
        torch.Size([5, 2])
    """
    return _trace(flow, what, solver, guidance, batch)[0]


def save(
    flow: BaseInvertibleFlow,
    path: str | os.PathLike,
    what: str = "sampler",
    *,
    solver: Solver | None = None,
    guidance: Callable | None = None,
    batch: int | None = None,
) -> Path:
    """Writes a part of a flow to a file, by its ending a program of ``torch.export`` (.pt2) or an ONNX model (.onnx).

    Beside it, ``path`` with ``.json`` added says what the inputs and the output are (names, shapes, dtypes), what the
    base is from which a sampler's ``z`` is drawn, and what time means. A program is run by
    ``torch.export.load(path).module()(*inputs)``, which needs torch alone. Arguments and costs: see :func:`program`.

    Raises:
        ValueError: for another ending, and as :func:`program` does; also where an operation has no form in ONNX.
        ImportError: for ONNX where its packages are not installed.

    Example:
        >>> import cflow, tempfile
        >>> flow = cflow.discrete.nsf(2, layers=1, hidden=(8,))
        >>> path = save(flow, tempfile.mkdtemp() + "/density.pt2", "log_prob")
        >>> torch.export.load(path).module()(torch.zeros(3, 2)).shape
        torch.Size([3])
    """
    path = Path(path)
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(
            f"export.save({str(path)!r}): the ending says what is written, and {path.suffix or 'none'!r} is not "
            f"known; choose {' or '.join(ENDINGS)}."
        )
    onnx = path.suffix.lower() == ".onnx"
    if onnx:
        _needs_onnx(path)
    traced, part = _trace(flow, what, solver, guidance, batch)
    path.parent.mkdir(parents=True, exist_ok=True)
    if onnx:
        try:
            # Not optimised here, which takes more than proportionally long: runtimes do so when they load a model.
            torch.onnx.export(
                traced, (), path, dynamo=True, optimize=False, verbose=False, external_data=False,
                input_names=[name for name, *_ in part.inputs], output_names=[part.output],
            )  # fmt: skip
        except torch.onnx.OnnxExporterError as error:
            cause = error
            while cause.__cause__ is not None:
                cause = cause.__cause__
            raise ValueError(
                f"export.save({str(path)!r}): the {what} of this flow has no form in ONNX ({_first_line(cause)}); "
                f"write a .pt2 program."
            ) from error
    else:
        torch.export.save(traced, path)
    description = _described(flow, what, part, batch)
    path.with_name(path.name + ".json").write_text(json.dumps(description, indent=1) + "\n")
    return path


class Part(NamedTuple):
    """What is traced: a module, its inputs by name with the shape of a row and the dtype, and its output's name."""

    module: nn.Module
    inputs: list[tuple[str, torch.Size, torch.dtype]]
    output: str
    options: dict


class Network(nn.Module):
    """The velocity of a continuous flow, at its interval's ends where it is asked outside."""

    def __init__(self, flow, guidance=None):
        super().__init__()
        self.flow, self.guidance = flow, guidance

    def forward(self, t: Tensor, x: Tensor, context: Tensor | None = None) -> Tensor:
        return self.flow.velocity_field(self.guidance)(t.clamp(*self.flow.interval), x, context)


class Sampler(nn.Module):
    """From draws of the base to samples."""

    def __init__(self, flow, solver=None, guidance=None):
        super().__init__()
        self.flow, self.solver, self.guidance = flow, solver, guidance

    def forward(self, z: Tensor, context: Tensor | None = None) -> Tensor:
        if isinstance(self.flow, ContinuousFlow):  # without the look at which samples failed
            u = transport(self.flow, z, 0.0, 1.0, context, None, solver=self.solver, guidance=self.guidance).y
        else:
            u, _ = self.flow._decode(z, context, None, ladj=False)
        return self.flow.postprocess(u, context)[0]


class LogProb(nn.Module):
    """From data to log-densities."""

    def __init__(self, flow, solver=None):
        super().__init__()
        self.flow, self.solver = flow, solver

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        if not isinstance(self.flow, ContinuousFlow):
            return self.flow.log_prob(x, context)
        x, size = set_aside(x, self.flow.event_shape)
        u, outer = self.flow.preprocess(x, context)
        u = fill_outside(u, outer, 0.0)
        u, far = set_far_aside(u, self.flow.model_shape)
        options = {"ladj": True, "solver": self.solver, "divergence": Analytic()}
        solution = transport(self.flow, u, 1.0, 0.0, context, None, **options)
        logp = self.flow.base.log_prob(solution.y) + solution.quadratures["ladj"] + outer
        return restore(restore(logp, far), size)


PARTS = {"network": Network, "sampler": Sampler, "log_prob": LogProb}


def _trace(flow, what, solver, guidance, batch) -> tuple[torch.export.ExportedProgram, Part]:
    """Traces a part and compares the program with it."""
    if batch is not None:
        why = "a batch is counted; pass an integer of 1 or more, or None for any."
        check_integer("export", "batch", batch, 1, why)
    part = _part(flow, what, solver, guidance)
    sizes = (3, 7) if batch is None else (batch,)
    dynamic = None
    if batch is None:
        dynamic = {name: {0: torch.export.Dim("batch", min=1)} for name, *_ in part.inputs}
    with torch.no_grad():
        inputs, *more = (_example(part, size) for size in sizes)
        try:
            part.module(*inputs)  # on real numbers first: its own error messages are plain, coefficients are computed
        except TypeError as error:
            if not (what == "log_prob" and isinstance(flow, ContinuousFlow)):
                raise
            raise ValueError(
                f"export(what='log_prob'): {error} For an export there is this one alone: the other divergences "
                f"differentiate inside the graph. Call flow.log_prob instead."
            ) from error
        try:
            traced = torch.export.export(part.module, inputs, dynamic_shapes=dynamic, strict=False)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"export(what={what!r}): torch.export cannot trace this {type(flow).__name__} ({_first_line(error)}): "
                f"its Python looks at the values of tensors or at the size of the batch; keep such choices out of it"
                f"{', or fix the size by batch=...' if batch is None else ''}."
            ) from error
        run = traced.module()
        for each in (inputs, *more):
            wanted, given = part.module(*each), run(*each)
            # A last bit may move a rounded number by one.
            close = given.shape == wanted.shape and torch.isclose(given, wanted, 1e-3, 1e-4, equal_nan=True)
            if close is False or close.double().mean() < 0.98:
                raise ValueError(
                    f"export(what={what!r}): the traced program gives other numbers than the flow for a batch of "
                    f"{len(each[0])}, so its Python depends on more than tensors; make it a function of tensors alone."
                )
    return traced, part


def _part(flow, what: str, solver, guidance) -> Part:
    """Finds what is to be traced, and refuses what no graph holds."""
    if what not in PARTS:
        raise ValueError(f"export(what={what!r}): there is no such part of a flow; choose from {', '.join(PARTS)}.")
    if not isinstance(flow, BaseInvertibleFlow) or isinstance(flow.context_shape, dict):
        raise ValueError(
            f"export({type(flow).__name__}): only a bijective flow (ContinuousFlow, discrete.NormalizingFlow), given "
            f"one tensor or nothing, is a function of tensors from one end to the other; pass such a flow."
        )
    continuous = isinstance(flow, ContinuousFlow)
    takes = {"network": ("guidance",), "sampler": ("solver", "guidance"), "log_prob": ("solver",)}[what]
    given = {name: value for name, value in {"solver": solver, "guidance": guidance}.items() if value is not None}
    unused = [name for name in given if name not in takes or not continuous]
    if unused:
        raise ValueError(
            f"export(what={what!r}, {unused[0]}={given[unused[0]]!r}): the {what} of a {type(flow).__name__} has no "
            f"use for it; omit it."
        )
    if what == "network" and not continuous:
        raise ValueError(
            f"export(what='network'): a {type(flow).__name__} has no velocity; export its 'sampler' or 'log_prob'."
        )
    if what == "log_prob":
        flow._check({}, what)  # whether it has a density
    maps = [each for each in flow.modules() if isinstance(each, Map)]
    looking = sorted({type(each).__name__ for each in maps if each.reads_values or each.draws} - {"Compose"})
    if what == "log_prob" and looking:
        raise ValueError(
            f"export(what='log_prob'): the map {looking[0]} looks at its values, whether they are in range, or draws, "
            f"and a graph cannot; export the flow without its transform, or call flow.log_prob."
        )
    if continuous and what != "network":
        given["solver"] = _traceable(flow.solver if solver is None else solver)
    module = copy.deepcopy(PARTS[what](flow, **given)).eval().requires_grad_(False)
    inputs = [("x", flow.model_shape if what == "network" else flow.event_shape, flow.dtype)]
    if what == "sampler":
        inputs = [("z", flow.latent_shape, flow.dtype)]
    if what == "network":
        inputs = [("t", torch.Size(), flow.dtype), *inputs]
    if flow.context_shape is not None:
        labels = flow.classes > 0
        inputs.append(("context", flow.context_shape, torch.int64 if labels else flow.dtype))
    return Part(module, inputs, {"network": "v", "sampler": "x", "log_prob": "log_prob"}[what], given)


def _traceable(solver: Solver) -> Solver:
    """Refuses solvers that a graph cannot hold; gives the others in their form for tracing."""
    why = solver.why_no_graph
    if why is None and solver.step_tolerance is not None:
        why = "it chooses its steps by the values on the way, and a graph holds one number of steps"
    if why is not None:
        raise ValueError(
            f"export(solver={solver!r}): {why}; pass a solver on a fixed grid, such as solvers.Heun(steps=16) or "
            f"UniPC(steps=8), or one that training.fit_bespoke made."
        )
    return solver.for_tracing()


def _example(part: Part, size: int) -> tuple[Tensor, ...]:
    """Makes inputs for a trace: draws of the base, carried to data where data are asked for."""
    flow = part.module.flow
    generator = torch.Generator(device=flow.device).manual_seed(size)
    inputs = []
    context = None if flow.context_shape is None else torch.zeros(size, *flow.context_shape, device=flow.device)
    for name, shape, dtype in part.inputs:
        if name == "t":
            value = torch.linspace(0, 1, size, device=flow.device)
        elif name == "context":
            value = context
        else:
            value = flow.base.sample((size,), generator=generator).reshape(size, *shape)
            value = flow.postprocess(value, context)[0] if part.output == "log_prob" else value
        inputs.append(value.to(dtype))
    return tuple(inputs)


def _described(flow, what: str, part: Part, batch: int | None) -> dict:
    """Says in plain values what a file computes."""
    show = lambda shape: ["batch" if batch is None else batch, *shape]
    name = lambda dtype: str(dtype).removeprefix("torch.")
    output = {"log_prob": torch.Size(), "network": flow.model_shape}.get(what, flow.event_shape)
    description = {
        "format": "cflow export 1",
        "what": what,
        "inputs": [{"name": each, "shape": show(shape), "dtype": name(dtype)} for each, shape, dtype in part.inputs],
        "output": {"name": part.output, "shape": show(output), "dtype": name(flow.dtype)},
        "time": "t = 0 is the base, t = 1 is the data; velocities point from base to data",
        "base": outline(flow.base),
        "options": {name: repr(value) for name, value in part.options.items()},
        "device": str(flow.device),
        "cflow": cflow.__version__,
        "torch": torch.__version__,
    }
    if what == "network":
        description["interval"] = list(flow.interval)
    classes = flow.classes
    if classes:
        description["classes"] = classes
    if what == "log_prob":
        description["likelihood"] = flow.likelihood
    return description


def _needs_onnx(path: Path) -> None:
    try:
        for name in ("onnx", "onnxscript"):
            importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"export.save({str(path)!r}): an ONNX model is made by the packages onnx and onnxscript, which are not "
            f"installed ({error.name}); pip install onnx onnxscript, or write a .pt2 program."
        ) from error


def _first_line(error: BaseException) -> str:
    return str(error).strip().split("\n")[0].rstrip(".:")
