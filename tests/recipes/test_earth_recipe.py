"""The recipes for places and for angles as a user runs them, shortened; what they leave behind is complete."""

import importlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

import cflow
from cflow import bijections
from cflow.cli import main as command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(file, names, values):
    np.savetxt(file, values, delimiter=",", header=names, comments="", fmt="%.6f")


def sites(generator, count=200):
    """Places about two centres, with longitudes on both sides of 180 degrees; the first ten are twice there."""
    centres = torch.tensor([[50.0, 10.0], [-20.0, 178.0]])[torch.arange(count) % 2]
    x = centres + 3 * torch.randn(count, 2, generator=generator)
    return torch.cat([x, x[:10]])


SMALL = {"steps": 4, "hidden": (8,), "batch_size": 32, "resolution": 6, "num": 20}


def test_earth_leaves_maps_a_model_and_nats_per_steradian(folder, generator, capsys):
    earth = importlib.import_module("earth")
    x = sites(generator)
    write("sites.csv", "name,lng,LAT", torch.cat([torch.ones(len(x), 1), x.flip(1)], 1))
    earth.main(earth.Options(data="sites.csv", harmonics=2, **SMALL))
    run = folder / "runs" / "earth-sites"
    assert {"model", "density.png", "samples.png", "training.png", "metrics.json"} <= {e.name for e in run.iterdir()}
    report = json.loads((run / "metrics.json").read_text())
    assert report["columns"] == ["LAT", "lng"]
    assert report["repeated_rows"] == 10
    nats = report["nats_per_steradian"]
    assert nats["uniform"]["mean"] == pytest.approx(-math.log(4 * math.pi))
    assert nats["kernels"]["mean"] > nats["uniform"]["mean"] + 1
    assert "10 rows of 210 repeat another" in capsys.readouterr().out
    # The command finds the columns by their names, and its scores are per square degree.
    command(["score", str(run), "sites.csv", "--output", "scores.csv"])
    scores = np.genfromtxt("scores.csv", delimiter=",", names=True)["log_prob"]
    flow = cflow.load(run / "model")
    assert flow.event_shape == (2,)
    with torch.no_grad():
        inside = cflow.ContinuousFlow(flow.field, flow.base, path=flow.path)
        z, area = bijections.LatLon().encode(x)
        assert np.allclose(scores, (inside.log_prob(z) + area).numpy(), atol=1e-3)


def test_places_are_checked_counted_and_split(folder, generator):
    data = importlib.import_module("earth_data")
    x = sites(generator)
    write("sites.csv", "lat,lon", torch.cat([x, torch.tensor([[90.0, 0.0]])]))
    found = data.read("sites.csv", (), False, False, 0)
    assert [len(part) for part in found.x.values()] == [168, 21, 21]
    known = {tuple(row) for row in found.x["train"].tolist()}
    assert found.seen == sum(tuple(row) in known for row in found.x["test"].tolist())
    assert any("pole" in note for note in found.notes)
    assert sum(map(len, data.read("sites.csv", (), False, True, 0).x.values())) == 200
    write("swapped.csv", "lat,lon", x.flip(1))
    with pytest.raises(ValueError, match="latitude, longitude"):
        data.read("swapped.csv", (), False, False, 0)
    write("other.csv", "a,b", x)
    with pytest.raises(ValueError, match="--columns"):
        data.read("other.csv", (), False, False, 0)


def test_airports_come_with_the_extra():
    pytest.importorskip("airportsdata")
    found = importlib.import_module("earth_data").read("airports", (), False, False, 0)
    assert sum(map(len, found.x.values())) > 20_000


def test_kernels_are_densities_on_sphere_and_torus(generator):
    kernels = importlib.import_module("kernel_density")
    z = bijections.LatLon().encode(sites(generator).double())[0].numpy()
    found = kernels.sphere(z[:150], z[150:])
    up, around = np.meshgrid((np.arange(400) + 0.5) / 400 * math.pi, (np.arange(400) + 0.5) / 200 * math.pi)
    points = np.stack([np.sin(up) * np.cos(around), np.sin(up) * np.sin(around), np.cos(up)], -1).reshape(-1, 3)
    mass = (np.exp(found.log_prob(points)) * np.sin(up).ravel()).sum() * math.pi / 400 * math.pi / 200
    assert mass == pytest.approx(1, abs=2e-3)
    angles = torch.randn(120, 2, generator=generator, dtype=torch.float64).numpy()
    found = kernels.torus(angles[:90], angles[90:])
    grid = np.stack(np.meshgrid(*[np.arange(200) / 100 * math.pi] * 2), -1).reshape(-1, 2)
    assert np.exp(found.log_prob(grid)).sum() * (math.pi / 100) ** 2 == pytest.approx(1, abs=2e-3)
    assert np.allclose(found.log_prob(grid[:5]), found.log_prob(grid[:5] + 2 * math.pi))


def test_angles_leave_pictures_a_model_and_nats_per_radian(folder, generator):
    angles = importlib.import_module("angles")
    grid = torch.cartesian_prod(*[torch.arange(200, dtype=torch.float64) / 100 * math.pi] * 2)
    assert float(angles.true_log_prob(grid).exp().sum()) * (math.pi / 100) ** 2 == pytest.approx(1, abs=1e-6)
    angles.main(angles.Options(count=300, **SMALL))
    run = Path("runs/angles-wrapped-normals")
    assert {"model", "density.png", "samples.png", "held-out.png", "metrics.json"} <= {e.name for e in run.iterdir()}
    report = json.loads((run / "metrics.json").read_text())
    nats = report["nats_per_radian"]
    assert nats["true density"]["mean"] > nats["kernels"]["mean"] > nats["uniform"]["mean"]
    assert report["log_prob_held_out"] == pytest.approx(nats["flow"]["mean"] + 2 * math.log(math.pi / 180))
    write("radians.csv", "phi,psi", torch.randn(150, 2, generator=generator).clamp(-3, 3))
    with pytest.raises(ValueError, match="radians"):
        angles.main(angles.Options(data=Path("radians.csv")))
