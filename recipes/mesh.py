"""Densities on curved surfaces: train a flow on the triangles of a mesh, measure it, look at it.

    python recipes/mesh.py                                   # a bumpy sphere made on the spot
    python recipes/mesh.py --mesh spot.obj --up y            # a mesh of your own, .obj or .off
    python recipes/mesh.py --mesh spot.obj --up y --eigenfunction 50 --distance diffusion --tau 0.25

The data are drawn here: their density is the positive part of an eigenfunction of the Laplacian, so it is known at
every point. The flow is trained on paths along which a spectral distance to the data decreases, since shortest
geodesics of a mesh are expensive. Densities are per unit of area, in the units of the mesh.

Writes ``model/``, ``surface.png``, ``training.png`` and ``metrics.json`` into one folder.
"""

import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed
from scipy.spatial import ConvexHull

import cflow
from cflow import data, fields, manifolds, objectives, paths, plot, solvers, training
from cflow.cli import run_recipe


@dataclass
class Options:
    """Trains a flow on the surface of a mesh."""

    mesh: Path | None = None
    """A file of triangles, .obj or .off. Default: a bumpy sphere made on the spot."""
    eigenfunction: int = 10
    """The eigenfunction whose positive part is the density of the data, counted from 1."""
    distance: Literal["biharmonic", "diffusion", "commute-time"] = "biharmonic"
    """The distance that decreases along the paths."""
    tau: float = 0.05
    """The time of the diffusion distance, as a share of the area."""
    eigenpairs: int = 200
    """The number of eigenfunctions in the distance."""
    count: int = 20_000
    """Training points."""
    steps: int = 3000
    """Training steps."""
    batch_size: int = 32
    """Paths per step, on each process."""
    points: int = 8
    """Points of each path on which the network is trained."""
    pool: int = 32
    """Steps whose paths are simulated together."""
    hidden: tuple[int, ...] = (128, 128, 128, 128)
    """Hidden layers of the network."""
    lr: float = 2e-3
    """Peak learning rate."""
    solver_steps: int = 25
    """Runge-Kutta steps for samples and densities."""
    up: Literal["x", "y", "z"] = "z"
    """The axis that points upwards in the picture."""
    azimuth: float = 30.0
    """The angle of view around that axis, in degrees."""
    out: Path | None = None
    """Where everything is written. Default: runs/mesh-<name of the mesh>."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def main(options: Options) -> None:
    started = time.perf_counter()
    name = "bumpy-sphere" if options.mesh is None else options.mesh.stem
    out = run_folder(options.out, f"mesh-{name}", options.mesh or name, options.resume)
    if options.eigenfunction < 1 or options.eigenfunction > options.eigenpairs:
        raise ValueError(
            f"--eigenfunction {options.eigenfunction}: it is one of the {options.eigenpairs} that are computed; raise "
            f"--eigenpairs, or choose one from 1."
        )
    vertices, faces = bumpy_sphere() if options.mesh is None else data.read_mesh(options.mesh)
    mesh = manifolds.Mesh(vertices, faces, eigenpairs=options.eigenpairs)
    area = math.exp(mesh.log_volume)
    if options.distance != "biharmonic":
        diffusion = manifolds.Diffusion(options.tau * area)
        distance = diffusion if options.distance == "diffusion" else manifolds.CommuteTime()
        mesh = manifolds.Mesh(mesh.vertices, mesh.faces, mesh.eigenpairs, distance)
    seconds = time.perf_counter() - started
    say(f"{name}: {len(mesh.faces)} triangles, area {area:.4g}; {options.eigenpairs} eigenpairs in {seconds:.1f} s")

    generator = torch.Generator().manual_seed(options.seed)
    target = mesh.eigenfunctions[:, options.eigenfunction - 1].clamp(min=0)
    train, test = mesh.draw(target, (options.count + 1000,), generator=generator).split([options.count, 1000])
    torch.manual_seed(options.seed)  # the network's initial weights
    field = fields.MLP(3, hidden=options.hidden)
    flow = cflow.ContinuousFlow(field, manifolds.Uniform(mesh), path=paths.Premetric())
    say(f"the uniform density to the positive part of eigenfunction {options.eigenfunction}; writing to {out}/")
    claim(out, options.mesh or name)
    run = training.fit(
        flow,
        objectives.FlowMatching(points_per_pair=options.points),
        train,
        steps=options.steps,
        batch_size=options.batch_size,
        pool=options.pool,
        lr=options.lr,
        clip=1.0,
        schedule=training.Cosine(warmup=min(100, options.steps // 4)),
        checkpoint_every=max(1, options.steps // 4),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
    )
    if options.resume:
        say_resumed(run)
    if not MAIN:
        return
    flow = flow.cpu().eval()
    plot.training(run, out / "training.png", title="loss: mean squared error")
    solver = solvers.RK4(steps=options.solver_steps)
    samples = flow.sample((2000,), solver=solver, generator=generator)
    with torch.no_grad():
        logp = flow.log_prob(test, solver=solver)
        centres = mesh.vertices[mesh.faces].mean(1)
        density = flow.log_prob(centres, solver=solver).exp()
    plot.surfaces(
        mesh,
        {"data": mesh.log_density(target, centres).exp(), "flow": density},
        out / "surface.png",
        samples={"data": test, "flow": samples[:1000]},
        up=options.up,
        azimuth=options.azimuth,
    )
    report = {
        "log_prob_held_out": float(logp.mean()),
        "log_prob_standard_error": float(logp.std() / len(logp) ** 0.5),
        "log_prob_true": float(mesh.log_density(target, test).mean()),
        "log_prob_uniform": -mesh.log_volume,
        "mass": float((density * triangle_areas(mesh)).sum()),
        "samples_where_there_are_no_data": float((mesh.interpolate(target, samples) <= 0).float().mean()),
        "steps": run.steps,
        "training_seconds": run.seconds,
    }
    for key, value in report.items():
        say(f"  {key:32s} {value:.4g}")
    more = f"more samples: cflow sample {out} --num 1000 --output more.csv"
    end_run(out, report, started, ["surface.png", "training.png"], more)


def bumpy_sphere(count: int = 1500) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a sphere with six bumps, from points on a spiral: ``(vertices [V, 3], faces [F, 3])``."""
    number = np.arange(count) + 0.5
    height, angle = 1 - 2 * number / count, math.pi * (1 + 5**0.5) * number
    ring = np.sqrt(1 - height**2)
    points = np.stack((ring * np.cos(angle), ring * np.sin(angle), height), 1)
    faces = ConvexHull(points).simplices.astype(np.int64)
    inward = np.linalg.det(points[faces]) < 0
    faces[inward] = faces[inward][:, ::-1]
    radius = 0.75 + 0.45 * (points**4).sum(1, keepdims=True)
    return torch.tensor(radius * points, dtype=torch.get_default_dtype()), torch.tensor(faces)


def triangle_areas(mesh: manifolds.Mesh) -> torch.Tensor:
    """Computes the area of each triangle."""
    a, b, c = mesh.vertices[mesh.faces].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=1) / 2


if __name__ == "__main__":
    run_recipe(main, Options, "mesh.py")
