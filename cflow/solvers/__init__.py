"""Solvers of differential equations: one contract, one loop per kind of grid, one tableau per method.

| name               | order    | evaluations of the field | steps                                      |
|--------------------|----------|--------------------------|--------------------------------------------|
| ``Euler``          | 1        | 1 per step               | fixed grid                                 |
| ``Midpoint``       | 2        | 2 per step               | fixed grid                                 |
| ``Heun``           | 2        | 2 per step               | fixed grid                                 |
| ``Ralston``        | 2        | 2 per step               | fixed grid                                 |
| ``RK4``            | 4        | 4 per step               | fixed grid                                 |
| ``Bosh3``          | 3        | 2 + 3 per attempt        | error control, per sample or for the batch |
| ``Dopri5``         | 5        | 2 + 6 per attempt        | the same                                   |
| ``Tsit5``          | 5        | 2 + 6 per attempt        | the same                                   |
| ``Dopri8``         | 8        | 2 + 13 per attempt       | the same                                   |
| ``AdamsBashforth`` | 2, 3, 4  | 1 per step               | fixed grid, uses earlier slopes again      |
| ``DPMSolverPP2M``  | 2        | 1 per step               | the same, on an affine path                |
| ``UniPC``          | 3, 4     | 1 per step               | the same, with a corrector                 |
| ``DEIS``           | 2, 3     | 1 per step               | the same                                   |
| ``Bespoke``        | fitted   | 1 per step               | fitted to one flow                         |
| ``FlowMap``        | learned  | 1 per step               | fixed grid, a field of two times           |
| ``Picard``         | 1        | 1 per window and round   | Euler's grid, many steps at once           |
| ``EulerMaruyama``  | 1 (weak) | 1 per step               | fixed grid, noise of a chosen strength     |
| ``StochasticHeun`` | 2 (weak) | 2 per step               | fixed grid, noise of a chosen strength     |

On a manifold (the others integrate in the ambient space):

| name                 | order | evaluations of the field | steps                                                   |
|----------------------|-------|--------------------------|---------------------------------------------------------|
| ``GeodesicEuler``    | 1     | 1 per step               | fixed grid, along geodesics                             |
| ``ProjectedEuler``   | 1     | 1 per step               | fixed grid, straight steps that are projected           |
| ``GeodesicMidpoint`` | 2     | 2 per step               | fixed grid, slopes by parallel transport                |
| ``GeodesicRK4``      | 4     | 4 per step               | fixed grid, in normal coordinates                       |
| ``RKMK4``            | 4     | 4 per step               | fixed grid, on a Lie group                              |
| ``GeodesicDopri5``   | 5     | 2 + 6 per attempt        | error control, in normal coordinates                    |

Two more are built around another solver: ``CudaGraph`` replays its solves from a CUDA graph (without noise), and
``Wrapper`` is the base of solvers that change only a part of it.
"""

from cflow.solvers.adaptive.controllers import PID
from cflow.solvers.adaptive.methods import Adaptive, Bosh3, Dopri5, Dopri8, Tsit5
from cflow.solvers.capture.cuda_graph import CudaGraph
from cflow.solvers.geodesic.adaptive import GeodesicDopri5
from cflow.solvers.geodesic.grid import (
    RKMK4,
    GeodesicEuler,
    GeodesicGrid,
    GeodesicMidpoint,
    GeodesicRK4,
    ProjectedEuler,
)
from cflow.solvers.gradients.modes import Backprop, Checkpointed, ContinuousAdjoint, Gradient
from cflow.solvers.grid.bespoke import Bespoke
from cflow.solvers.grid.fixed import RK4, Euler, FixedGrid, Heun, Midpoint, Ralston
from cflow.solvers.grid.flow_map import FlowMap
from cflow.solvers.grid.multistep import DEIS, AdamsBashforth, DPMSolverPP2M, Multistep, UniPC
from cflow.solvers.grid.picard import Picard
from cflow.solvers.grid.stochastic import EulerMaruyama, Fading, StochasticGrid, StochasticHeun
from cflow.solvers.names import METHODS, by_name
from cflow.solvers.problem import Problem
from cflow.solvers.solution import Solution, Stats, Status, Tolerance
from cflow.solvers.solver import Solver
from cflow.solvers.tableau import Tableau
from cflow.solvers.torchdiffeq.adapter import TorchDiffEq
from cflow.solvers.torchdiffeq.call import odeint, odeint_adjoint
from cflow.solvers.wrapper import Wrapper

__all__ = [
    "DEIS",
    "METHODS",
    "PID",
    "RK4",
    "RKMK4",
    "AdamsBashforth",
    "Adaptive",
    "Backprop",
    "Bespoke",
    "Bosh3",
    "Checkpointed",
    "ContinuousAdjoint",
    "CudaGraph",
    "DPMSolverPP2M",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EulerMaruyama",
    "Fading",
    "FixedGrid",
    "FlowMap",
    "GeodesicDopri5",
    "GeodesicEuler",
    "GeodesicGrid",
    "GeodesicMidpoint",
    "GeodesicRK4",
    "Gradient",
    "Heun",
    "Midpoint",
    "Multistep",
    "Picard",
    "Problem",
    "ProjectedEuler",
    "Ralston",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "StochasticGrid",
    "StochasticHeun",
    "Tableau",
    "Tolerance",
    "TorchDiffEq",
    "Tsit5",
    "UniPC",
    "Wrapper",
    "by_name",
    "odeint",
    "odeint_adjoint",
]
