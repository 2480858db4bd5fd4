"""What happens at the ends that a path's interval leaves out, on grids, forward and backward."""

import pytest
import torch
from torch import nn

import cflow
from cflow import bases, paths, solvers
from cflow.testing import GaussianBridgeField, GaussianField


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize("predict", ["x1", "noise"])
def test_states_in_the_stretch_that_is_crossed_are_those_asked_for(predict, backward, generator):
    path = paths.Linear(predict)
    flow = cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    at = [0.0005, 0.002, 0.5, 0.998, 0.9995]
    begin, end, at = (1.0, 0.0, at[::-1]) if backward else (0.0, 1.0, at)
    fine = flow.transport(x, begin, end, solver=solvers.Dopri5(rtol=1e-9, atol=1e-9), at=at).trajectory
    grid = flow.transport(x, begin, end, solver=solvers.RK4(60), at=at).trajectory
    assert torch.allclose(grid, fine, atol=2e-3)
    # Between two times in one stretch the states move on by what the fine solve moves them, not by nothing.
    for early, late in ((0, 1), (-2, -1)):
        assert torch.allclose(grid[late] - grid[early], fine[late] - fine[early], atol=2e-4)


@pytest.mark.parametrize("solver", [solvers.RK4(60), solvers.Dopri5(rtol=1e-8, atol=1e-8)], ids=["grid", "adaptive"])
@pytest.mark.parametrize("predict", ["x1", "noise"])
def test_energies_of_the_stretch_that_is_crossed_are_added_in_both_directions(predict, solver, generator):
    """A tenth of the time is crossed in one step, and with it a tenth of the energy, whichever way the flow runs."""
    flows = [
        cflow.ContinuousFlow(GaussianField(path, 2, 0.7, 0.5), bases.Normal(2), path=path).double()
        for path in (paths.Linear(predict, margin=0.1), paths.Linear())
    ]
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    energies = []
    for flow in flows:
        there = flow.transport(x, 0.0, 1.0, solver=solver, quadratures=("kinetic",))
        back = flow.transport(there.y, 1.0, 0.0, solver=solver, quadratures=("kinetic",))
        energies += [there.quadratures["kinetic"], back.quadratures["kinetic"]]
    for energy in energies:
        assert torch.allclose(energy, energies[-1], rtol=0.1, atol=0.01)  # a wrong sign takes a fifth away


@pytest.mark.parametrize("predict", ["x1", "noise", "score"])
def test_grids_run_backward_as_well_as_forward(predict, generator):
    """A network that is one percent off is not amplified at the end where the grid begins."""
    path = paths.Linear(predict)
    oracle = GaussianField(path, 1, 0.7, 0.5)

    class Off(nn.Module):
        def forward(self, t, x, context=None, *, s=None):
            return 1.01 * oracle(t, x, context)

    flow = cflow.ContinuousFlow(Off(), bases.Normal(1), path=path).double()
    x = 0.7 + 0.5 * torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    for solver, tolerance in ((solvers.Euler(20), 0.15), (solvers.Heun(20), 0.1), (solvers.RK4(20), 0.1)):
        with torch.no_grad():
            assert abs(float(flow.transport(x, 1.0, 0.0, solver=solver).y.std()) - 1) < tolerance


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("predict", ["score", "noise", "velocity"])
def test_the_order_of_a_grid_holds_on_bridges(predict, ends, generator):
    path = paths.BrownianBridge(0.8, predict)
    flow = cflow.ContinuousFlow(GaussianBridgeField(path, 1), bases.Normal(1, -1.0, 0.8), path=path).double()
    x = torch.randn(50, 1, generator=generator, dtype=torch.float64)
    exact = flow.transport(x, *ends, solver=solvers.Dopri5(rtol=1e-10, atol=1e-10)).y
    errors = [float((flow.transport(x, *ends, solver=solvers.RK4(n)).y - exact).abs().max()) for n in (10, 20)]
    assert errors[1] < max(errors[0] / 8, 1e-8)
