"""Solvers of differential equations: one contract, one loop per kind of grid, a tableau per method.

==================  =======  ==============================  ========================================
name                order    calls of the field              step
==================  =======  ==============================  ========================================
``Euler``           1        1 per step                      fixed grid
``Midpoint``        2        2 per step                      fixed grid
``Heun``            2        2 per step                      fixed grid
``RK4``             4        4 per step                      fixed grid
``Dopri5``          5        2 + 6 per attempt               error control per sample
``EulerMaruyama``   1, weak  1 per step                      fixed grid, noise of a chosen strength
``StochasticHeun``  2, weak  2 per step                      fixed grid, noise of a chosen strength
==================  =======  ==============================  ========================================
"""

from cflow.solvers.adaptive import Adaptive, Dopri5
from cflow.solvers.conformance import check_solver
from cflow.solvers.fixed import RK4, Euler, FixedGrid, Heun, Midpoint
from cflow.solvers.names import METHODS, by_name
from cflow.solvers.solution import Solution, Stats, Status, Tolerance
from cflow.solvers.solver import Problem, Solver
from cflow.solvers.stochastic import EulerMaruyama, Fading, StochasticGrid, StochasticHeun
from cflow.solvers.tableau import Tableau

__all__ = [
    "METHODS",
    "RK4",
    "Adaptive",
    "Dopri5",
    "Euler",
    "EulerMaruyama",
    "Fading",
    "FixedGrid",
    "Heun",
    "Midpoint",
    "Problem",
    "Solution",
    "Solver",
    "Stats",
    "Status",
    "StochasticGrid",
    "StochasticHeun",
    "Tableau",
    "Tolerance",
    "by_name",
    "check_solver",
]
