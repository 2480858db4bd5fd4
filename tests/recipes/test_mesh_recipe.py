"""The recipe for meshes, shortened: what it leaves behind is complete, and its density is that of the surface."""

import importlib
import json
from pathlib import Path

import pytest

import cflow

SMALL = {
    "steps": 4, "count": 100, "batch_size": 4, "pool": 2, "points": 2, "hidden": (8,), "solver_steps": 1,
    "eigenpairs": 4, "eigenfunction": 3,
}  # fmt: skip
OFF = "OFF 5 6 0\n0 0 0\n2 0 0\n2 2 0\n0 2 0\n1 1 2\n3 0 3 2\n3 0 2 1\n3 0 1 4\n3 1 2 4\n3 2 3 4\n3 3 0 4\n"


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("mesh")


def test_a_run_leaves_pictures_a_model_and_figures(recipe, tmp_path):
    (tmp_path / "hill.off").write_text(OFF)
    recipe.main(recipe.Options(mesh=Path("hill.off"), distance="diffusion", **SMALL))
    folder = tmp_path / "runs" / "mesh-hill"
    assert {each.name for each in folder.iterdir()} >= {"model", "surface.png", "training.png", "metrics.json"}
    report = json.loads((folder / "metrics.json").read_text())
    assert report["log_prob_true"] > report["log_prob_uniform"]
    assert report["mass"] == pytest.approx(1.0, abs=0.05)
    flow = cflow.load(folder / "model")
    assert isinstance(flow.manifold.distance, cflow.manifolds.Diffusion)
    assert bool(flow.manifold.holds(flow.sample((5,), solver=cflow.solvers.RK4(steps=2))).all())


def test_the_mesh_made_on_the_spot_is_closed_and_even(recipe):
    mesh = cflow.manifolds.Mesh(*recipe.bumpy_sphere(300), eigenpairs=1)
    assert len(mesh.faces) == 2 * 300 - 4  # Euler: a sphere
    areas = recipe.triangle_areas(mesh)
    assert float(areas.max() / areas.min()) < 6


def test_an_eigenfunction_that_is_not_computed_is_named(recipe):
    with pytest.raises(ValueError, match="--eigenfunction 9"):
        recipe.main(recipe.Options(eigenfunction=9, eigenpairs=8))
