"""Solvers by name, for the command line, recipes and the conventions of other libraries."""

from __future__ import annotations

from typing import Any

from cflow.keywords import made_by_name
from cflow.solvers.adaptive.methods import Bosh3, Dopri5, Dopri8, Tsit5
from cflow.solvers.geodesic.adaptive import GeodesicDopri5
from cflow.solvers.geodesic.grid import RKMK4, GeodesicEuler, GeodesicMidpoint, GeodesicRK4, ProjectedEuler
from cflow.solvers.grid.fixed import RK4, Euler, Heun, Midpoint, Ralston
from cflow.solvers.grid.flow_map import FlowMap
from cflow.solvers.grid.multistep import DEIS, AdamsBashforth, DPMSolverPP2M, UniPC
from cflow.solvers.grid.picard import Picard
from cflow.solvers.grid.stochastic import EulerMaruyama, StochasticHeun
from cflow.solvers.solver import Solver

__all__ = ["METHODS", "by_name"]

METHODS: dict[str, type[Solver]] = {
    "adams_bashforth": AdamsBashforth,
    "deis": DEIS,
    "bosh3": Bosh3,
    "dopri5": Dopri5,
    "dpm_solver_pp_2m": DPMSolverPP2M,
    "dopri8": Dopri8,
    "euler": Euler,
    "euler_maruyama": EulerMaruyama,
    "flow_map": FlowMap,
    "geodesic_dopri5": GeodesicDopri5,
    "geodesic_euler": GeodesicEuler,
    "geodesic_midpoint": GeodesicMidpoint,
    "geodesic_rk4": GeodesicRK4,
    "heun": Heun,
    "midpoint": Midpoint,
    "picard": Picard,
    "projected_euler": ProjectedEuler,
    "ralston": Ralston,
    "rk4": RK4,
    "rkmk4": RKMK4,
    "stochastic_heun": StochasticHeun,
    "tsit5": Tsit5,
    "unipc": UniPC,
}


def by_name(name: str, **options: Any) -> Solver:
    """Builds a solver from its name and its constructor's options.

    Args:
        name: a key of ``METHODS``, such as ``"dopri5"``.
        options: arguments of the solver's constructor.

    Raises:
        ValueError: if there is no such solver, or the solver has no such option; the message lists the valid ones.

    Example:
        >>> by_name("euler", steps=8)
        Euler(steps=8)
    """
    return made_by_name("by_name", "solver", METHODS, name, options)
