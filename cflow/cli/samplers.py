"""The solver or the sampler of samples, built from the options of a command or from the metrics of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from cflow import ctmc
from cflow.cli.runs import bespoke_file, report_of
from cflow.solvers import METHODS, Bespoke, by_name

__all__ = ["check_method", "described", "kind_of", "needs_solver", "sampler_of", "solver_of"]

# The options of flows with a solver, and of flows with a sampler; --steps belongs to both.
OPTIONS = {"solver": ("solver", "rtol", "atol", "diffusion", "cuda_graph"), "sampler": ("sampler", "temperature")}


def needs_solver(flow, what: str, instead: str = "omit the option") -> None:
    """Raises if an option or command needs a solver, and the flow has none; ``instead`` is what to do."""
    kind = kind_of(flow)
    if kind != "solver":
        lacks = "no solver and no steps" if kind is None else "no solver"
        raise ValueError(f"{what}: a {type(flow).__name__} has {lacks}; {instead}.")


def kind_of(flow) -> str | None:
    """Returns what draws the samples of a flow, ``"solver"`` or ``"sampler"``; None if the flow needs neither."""
    return next((kind for kind in OPTIONS if kind in flow.options_of("sample")), None)


def described(kind: str, method) -> str:
    """Formats a solver as it is, and a sampler with its steps and the options that differ from their defaults.

    Example:
        >>> described("sampler", ctmc.Analytic(temperature=0.9))
        'Analytic(steps=64, temperature=0.9)'
    """
    if kind == "solver":
        return repr(method)
    values = ((each, getattr(method, each.name)) for each in dataclasses.fields(method))
    shown = [f"{each.name}={value!r}" for each, value in values if each.name == "steps" or value != each.default]
    return f"{type(method).__name__}({', '.join(shown)})"


def check_method(flow, asked: Mapping[str, object]) -> None:
    """Raises for the first option of a solver or a sampler that does not fit the flow.

    Args:
        flow: the flow.
        asked: the options by name; None or False if omitted.
    """
    kind = kind_of(flow)
    fitting = () if kind is None else ("steps", *OPTIONS[kind])
    for name, value in asked.items():
        if value in (None, False) or name in fitting:
            continue
        option = f"--{name.replace('_', '-')}" + ("" if value is True else f" {value}")
        if kind is None:
            needs_solver(flow, option)
        if kind == "solver":
            lacks, advice = "sampler", "choose a solver by --solver, such as heun"
        else:
            lacks, advice = "solver", f"choose a sampler by --sampler: {', '.join(ctmc.SAMPLERS)}"
        raise ValueError(f"{option}: a {type(flow).__name__} has no {lacks}; {advice}.")


def sampler_of(flow, run: Path, folder: Path, **asked: float | str | None) -> dict:
    """Builds the solver or the sampler of samples, as a keyword of ``sample``; empty if it is that of the flow.

    It is that of the options, or that with which the run drew its samples. The options ``steps`` and ``temperature``
    alone change that of the run, or of the flow.

    Args:
        flow: the flow.
        run: the folder of the run, whose metrics have the options under ``"sampler"``.
        folder: the folder of the saved flow.
        asked: the options by name, such as ``solver="heun", steps=8``; None if omitted.

    Raises:
        ValueError: for an unknown name, and options that do not fit.
    """
    kind = kind_of(flow)
    options = {name: value for name, value in asked.items() if value is not None}
    own = report_of(run).get("sampler") or {}
    if kind in own and set(options) <= {"steps", "temperature"}:
        options = own | options
    name = options.pop(kind, None)
    if kind == "solver":
        return solver_of(folder, name, **options)
    if kind is None or (name is None and not options):
        return {}
    sampler = flow.sampler if name is None else ctmc.sampler_by_name(name)
    known = [each.name for each in dataclasses.fields(sampler)]
    for option, value in options.items():
        if option not in known:
            raise ValueError(
                f"--{option} {value}: the sampler {type(sampler).__name__} has no {option}; choose another one by "
                f"--sampler: {', '.join(ctmc.SAMPLERS)}."
            )
    return {"sampler": dataclasses.replace(sampler, **options)}


def solver_of(folder: Path, name: str | None, **options: float | None) -> dict:
    """Builds the solver of the options, as keywords of ``sample``; empty if there are no options."""
    options = {key: value for key, value in options.items() if value is not None}
    if name is not None and (name == "bespoke" or name.endswith(".json")):
        file = bespoke_file(folder) if name == "bespoke" else Path(name)
        if options:
            raise ValueError(
                f"--solver {name} --{next(iter(options))}: a fitted solver has fixed steps; omit the option."
            )
        if not file.is_file():
            raise FileNotFoundError(f"--solver {name}: there is no {file}; fit one by `cflow bespoke {folder}`.")
        return {"solver": Bespoke.read(file)}
    if name is None and not options:
        return {}
    if name is None:
        stochastic, counted = "diffusion" in options, "steps" in options
        name = "euler_maruyama" if stochastic else "heun" if counted else "dopri5"
    if "steps" not in options and any(
        each.name == "steps" and each.default is None for each in dataclasses.fields(METHODS.get(name, Bespoke))
    ):
        raise ValueError(f"--solver {name}: the number of steps is missing; pass for example --steps 20.")
    try:
        return {"solver": by_name(name, **options)}
    except ValueError as error:
        fitted = "" if name in METHODS else " Also bespoke, fitted by `cflow bespoke`, and its .json file."
        raise ValueError(f"{error}{fitted}") from None
