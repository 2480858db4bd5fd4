"""The recipes run as a user runs them, shortened; what they leave behind is complete."""

import ast
import contextlib
import importlib
import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import cflow

RECIPES = Path(__file__).parents[2] / "recipes"


def command(recipe, folder, *options):
    """Runs a recipe in a process of its own, as a user does."""
    words = [sys.executable, str(RECIPES / f"{recipe}.py"), *options]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def run(recipe, folder, *options, check=True):
    """Runs the same script with the same options in this process, where nothing has to be imported again."""
    file, out, err, status = str(RECIPES / f"{recipe}.py"), io.StringIO(), io.StringIO(), 0
    with (
        pytest.MonkeyPatch.context() as patch,
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        warnings.simplefilter("default")
        patch.setattr(sys, "argv", [file, *options])
        patch.syspath_prepend(RECIPES)
        patch.chdir(folder)
        try:
            runpy.run_path(file, run_name="__main__")
        except SystemExit as stop:
            message = stop.code if isinstance(stop.code, str) else ""
            err.write(message)
            status = 1 if message else stop.code or 0
    done = subprocess.CompletedProcess([file, *options], status, out.getvalue(), err.getvalue())
    if check:
        assert done.returncode == 0, done.stderr
    return done


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.py")), ids=lambda each: each.stem)
def test_recipes_import_what_users_import(recipe):
    for node in ast.walk(ast.parse(recipe.read_text())):
        named = [node.module] if isinstance(node, ast.ImportFrom) else []
        named += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in named:
            parts = name.split(".")
            assert parts[0] != "cflow" or len(parts) == 1 or (len(parts) == 2 and parts[1] in cflow.__all__), name


def weights(folder):
    return cflow.load(folder / "model").state_dict()


SMALL = ("--width", "8", "--num", "40", "--solver-steps", "2", "--batch-size", "32")


def test_images_leaves_pictures_model_and_metrics(tmp_path):
    done = command("images", tmp_path, "--steps", "6", *SMALL)
    folder = tmp_path / "runs" / "images-digits"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.png", "training.png", "trajectories.png", "metrics.json", "history.csv"}
    report = json.loads((folder / "metrics.json").read_text())
    assert report["samples"] == 40
    assert 0 <= report["recognised"] <= 1
    assert "cflow sample" in done.stdout
    x = cflow.load(folder / "model").sample((), torch.arange(3), solver=cflow.solvers.Heun(steps=2))
    assert x.shape == (3, 1, 8, 8)
    assert set(x.unique().tolist()) <= set(range(17))


def test_images_goes_on_where_it_stopped(tmp_path):
    """The last step again, against the end of the run."""
    options = ("--steps", "6", *SMALL)
    run("images", tmp_path, *options, "--out", "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "parts")
    checkpoints = sorted((tmp_path / "parts" / "checkpoints").iterdir())
    assert len(checkpoints) == 2
    # The last checkpoint and everything after it is lost; the one before remains.
    for file in sorted(checkpoints[-1].rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    checkpoints[-1].rmdir()
    refused = run("images", tmp_path, *options, "--out", "parts", check=False)
    assert refused.returncode == 1
    assert "pass --resume" in refused.stderr
    assert "Traceback" not in refused.stderr
    run("images", tmp_path, *options, "--out", "parts", "--resume")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_images_draws_samples_during_long_runs_and_trains_as_without(tmp_path, monkeypatch):
    images = importlib.import_module("images")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "measure", lambda *_: {})
    options = {"steps": 6, "width": 8, "num": 10, "solver_steps": 1, "batch_size": 16}
    images.main(images.Options(out=Path("without"), **options))
    monkeypatch.setattr(images, "LONG", 6)
    images.main(images.Options(out=Path("with"), **options))
    assert not Path("without/progress").exists()
    assert sorted(each.name for each in Path("with/progress").iterdir()) == [f"step-00000{k}.png" for k in range(1, 6)]
    assert Path("with/progress/step-000003.png").read_bytes() != Path("with/progress/step-000005.png").read_bytes()
    one, two = weights(tmp_path / "without"), weights(tmp_path / "with")
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_images_reads_folders_of_pictures(tmp_path, generator):
    from PIL import Image

    for label in ("cats", "dogs"):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        for i in range(24):
            pixels = torch.randint(0, 256, (20, 24, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / label / f"{i}.png")
    run("images", tmp_path, "--data", "folder", "--root", "pictures", "--size", "8", "12", "--steps", "3", *SMALL)
    field = cflow.load(tmp_path / "runs" / "images-pictures" / "model").field
    assert (tuple(field.event_shape), field.multipliers) == ((3, 8, 12), (1, 2))
    assert (tmp_path / "runs" / "images-pictures" / "samples.png").stat().st_size > 1000
    # Other pictures in a folder of the same name have a run of their own.
    (tmp_path / "other").mkdir()
    (tmp_path / "pictures").rename(tmp_path / "other" / "pictures")
    said = run(
        "images", tmp_path, "--data", "folder", "--root", "other/pictures", "--size", "8", "--steps", "1", *SMALL
    )
    assert "runs/images-pictures/ holds a run of other data" in said.stdout
    assert (tmp_path / "runs" / "images-pictures-2" / "model").is_dir()


def test_images_reads_mnist(tmp_path, real_data):
    run("images", tmp_path, "--data", "mnist", "--root", str(real_data / "mnist"), "--steps", "2", *SMALL)


def test_toys_leaves_pictures_model_and_metrics(tmp_path):
    options = ("--steps", "30", "--count", "1000", "--solver-steps", "4", "--hidden", "16")
    command("toys", tmp_path, *options, "--data", "checkerboard", "--path", "cosine", "--predict", "x1")
    folder = tmp_path / "runs" / "toys-checkerboard"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.png", "density.png", "trajectories.png", "training.png", "metrics.json"}
    assert set(json.loads((folder / "metrics.json").read_text())) >= {"wasserstein2", "log_prob_true"}


def test_toys_on_a_bridge_from_data_to_data_have_no_density(tmp_path):
    options = ("--steps", "30", "--count", "1000", "--solver-steps", "4", "--hidden", "16")
    said = run("toys", tmp_path, *options, "--source", "pinwheel", "--bridge", "0.5", "--coupling", "sinkhorn")
    folder = tmp_path / "runs" / "toys-pinwheel-to-moons"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.png", "trajectories.png", "training.png", "metrics.json"}
    assert "density.png" not in names
    assert "log_prob_held_out" not in json.loads((folder / "metrics.json").read_text())
    assert "BrownianBridge" in said.stdout


def test_toys_trains_a_classical_flow_by_its_name(tmp_path):
    said = run("toys", tmp_path, "--steps", "20", "--count", "1000", "--hidden", "16", "--flow", "maf")
    folder = tmp_path / "runs" / "toys-moons-maf"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.png", "density.png", "training.png", "metrics.json"}
    assert json.loads((folder / "metrics.json").read_text())["log_prob_held_out"] < -2
    assert "maf on moons" in said.stdout


def test_two_processes_speak_and_write_once(tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1")
    rest = ("--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0")
    words = [sys.executable, *launcher, *rest, str(RECIPES / "images.py"), "--steps", "6", *SMALL]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr
    assert [done.stdout.count(part) for part in ("digits: ", "trained 6 steps", "look at ")] == [1, 1, 1]
    assert "Warning" not in done.stderr
    assert done.stderr.count("0/6 [") == 1
    folder = tmp_path / "runs" / "images-digits"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.png", "training.png", "trajectories.png", "metrics.json", "history.csv"}
    assert sorted(each.name for each in (folder / "checkpoints").iterdir()) == ["step-000005", "step-000006"]
    assert len(list((folder / "tensorboard").iterdir())) == 1


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("images", ("--data", "mnist"), "pass --root"),
        ("images", ("--data", "cifar10", "--root", "nowhere"), "nowhere"),
        ("images", ("--stpes", "3"), "--steps"),
        ("toys", ("--data", "moon"), "moons"),
        ("toys", ("--flow", "nsf", "--path", "cosine"), "omit the latter"),
    ],
)
def test_mistakes_are_explained_without_a_traceback(recipe, options, message, tmp_path):
    done = run(recipe, tmp_path, *options, check=False)
    assert done.returncode != 0
    said = done.stderr + done.stdout
    assert message in said
    assert "Traceback" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_default_digits_are_read_are_no_copies_and_follow_the_held_out_ones(tmp_path):
    run("images", tmp_path)
    report = json.loads((tmp_path / "runs" / "images-digits" / "metrics.json").read_text())
    assert report["recognised"] >= 0.97
    assert report["nearest_ratio"] >= 0.8
    assert report["energy_ratio"] <= 2


def test_a_folder_that_would_not_be_read_is_refused(tmp_path):
    refused = run("images", tmp_path, "--root", "pictures", "--steps", "2", check=False)
    assert refused.returncode == 1
    assert "the digits come with scikit-learn; pass --data folder too" in refused.stderr
