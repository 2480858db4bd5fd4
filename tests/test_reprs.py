"""What is shown at a prompt, or under a cell of a notebook, is a line and not pages of numbers."""

import numpy as np
import pytest
import torch

from cflow import bases, data, metrics, plot, solvers
from cflow.density import compare


@pytest.fixture
def table(tmp_path):
    np.savetxt(tmp_path / "t.csv", np.arange(800.0).reshape(400, 2), delimiter=",", header="a,b", comments="")
    return tmp_path / "t.csv"


def test_results_of_calibration(generator):
    draws, truth = torch.randn(19, 400, 2, generator=generator), torch.randn(400, 2, generator=generator)
    found = metrics.simulation_based_calibration(draws, truth, generator=generator)
    shown = repr(found)
    assert shown.startswith("Calibration(ranks=[400, 2], draws=19, ks=[")
    assert f"dispersion=[{found.dispersion[0]:.3g}, {found.dispersion[1]:.3g}]" in shown
    coverage = metrics.tarp(draws, truth, generator=generator)
    assert repr(coverage) == f"Coverage(credibility=[400], excess={coverage.excess:+.3g}, ks={coverage.ks:.3g})"
    many = metrics.simulation_based_calibration(draws[..., :1].expand(-1, -1, 30), truth[:, :1].expand(-1, 30))
    assert repr(many).count("...") == 3


def test_a_solution():
    field = lambda t, y: (-y, {"integral": y.sum(1)})
    solve = solvers.Tsit5().solve
    solution = solve(lambda t, y: -y, torch.ones(300, 2), 0.0, 1.0, at=[0.5, 1.0])
    nfe = solution.stats.nfe
    assert repr(solution) == f"Solution(y=[300, 2], trajectory=[2, 300, 2], nfe={nfe}, 300 of 300 succeeded)"
    steps = int(solution.stats.accepted.sum())
    evaluations = solution.stats.evaluations
    assert repr(solution.stats) == f"Stats(nfe={nfe}, evaluations={evaluations}, accepted={steps}, rejected=0)"
    solution = solve(field, torch.ones(3, 2), 0.0, 1.0, quadratures={"integral": None})
    assert repr(solution).startswith("Solution(y=[3, 2], quadratures={integral: [3]}, nfe=")
    parts = lambda t, y: {"a": -y["a"], "b": y["b"]}
    solution = solve(parts, {"a": torch.ones(3, 2), "b": torch.ones(3)}, 0.0, 1.0)
    assert repr(solution).startswith("Solution(y={a: [3, 2], b: [3]}, nfe=")
    pair = lambda t, y: (-y[0], y[1])
    assert repr(solve(pair, (torch.ones(3, 2), torch.ones(3)), 0.0, 1.0)).startswith("Solution(y=([3, 2], [3]), nfe=")


def test_a_table(table):
    shown = repr(data.read_table(table))
    assert shown == "Table([400, 2], names=('a', 'b'), dropped=0, passed=0)"
    assert repr(data.TableFile(table, columns=["b"])) == f"TableFile({str(table)!r}, columns=[1], names=('b',))"


def test_a_density_on_a_grid():
    assert (
        repr(plot.grid(bases.Normal(2), resolution=20))
        == "Grid([20, 20], across=(-4.0, 4.0), up=(-4.0, 4.0), mass=0.9999)"
    )


def test_a_comparison():
    from sklearn.mixture import GaussianMixture

    found = compare({"normal": GaussianMixture(1)}, np.random.default_rng(0).normal(size=(50, 2)), cv=2)
    assert repr(found) == str(found)
    assert "nats per row" in repr(found)
