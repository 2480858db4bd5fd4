import json
import os
import signal
import subprocess
import sys

import pytest
import torch

import cflow
from cflow import bases, fields, paths
from cflow.bijections import Dequantise, Rescale
from cflow.cli import main

SMALL = ["--pairs", "64", "--steps", "6", "--solver-steps", "2", "--batch-size", "32", "--samples", "20"]


@pytest.fixture
def run(tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        field = fields.MLP(2, hidden=(8,))
        for each in field.parameters():
            torch.nn.init.normal_(each, std=0.3)
    cflow.save(cflow.ContinuousFlow(field, bases.Normal(2), path=paths.Linear()), tmp_path / "run" / "model")
    return tmp_path / "run"


def weights(folder):
    return cflow.load(folder / "model").state_dict()


def same(one, other):
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_rounds_distillation_and_table(run, capsys):
    main(["reflow", str(run), "--rounds", "2", "--distill", "1", *SMALL])
    said = capsys.readouterr().out
    assert "round 2" in said
    assert "distilled 1" in said
    assert f"picture: {run / 'reflow' / 'few-steps.png'}" in said
    table = json.loads((run / "reflow" / "metrics.json").read_text())
    assert set(table["energy_distance"]["flow"]) == {"1", "2", "4", "8", "32"}
    assert set(table["energy_distance"]["distilled 1"]) == {"1"}
    assert set(table["straightness"]) == {"flow", "round 1", "round 2"}
    assert set(table["transport_cost"]) == {"flow", "round 1", "round 2", "distilled 1"}
    assert all(each["value"] > each["standard_error"] > 0 for each in table["straightness"].values())
    assert (run / "reflow" / "few-steps.png").is_file()
    one = cflow.load(run / "reflow" / "distilled-1" / "model")
    assert one.solver == cflow.solvers.Euler(steps=1)
    main(["sample", str(run / "reflow" / "distilled-1"), "--num", "3", "-o", str(run / "x.npy")])
    # Asked again, it has nothing left to do but the table.
    stamp = (run / "reflow" / "round-1" / "model" / "flow.safetensors").stat().st_mtime_ns
    main(["reflow", str(run), "--rounds", "2", "--distill", "1", *SMALL])
    assert (run / "reflow" / "round-1" / "model" / "flow.safetensors").stat().st_mtime_ns == stamp
    with pytest.raises(SystemExit):
        main(["reflow", str(run), "--rounds", "2", *SMALL, "--seed", "5"])
    assert "started with --seed 0, not 5" in capsys.readouterr().err


KILLER = """
import os, signal, sys
import torch
from cflow.cli import main
from cflow.training.few_step import pairs
from cflow.training.checkpoints import Checkpoints
phase = sys.argv[1]
if phase == "pairs":
    write = pairs.write_tensors
    def killed(file, *given):
        if file.name.endswith("00001.safetensors"):
            os.kill(os.getpid(), signal.SIGKILL)
        write(file, *given)
    pairs.write_tensors = killed
else:
    save = Checkpoints.save
    def killed(self, *args):
        save(self, *args)
        if phase in str(self.folder):
            os.kill(os.getpid(), signal.SIGKILL)
    Checkpoints.save = killed
main(sys.argv[2:])
"""


@pytest.mark.parametrize("phase", ["pairs", "round-1", "distilled-1"])
def test_a_kill_in_each_phase_changes_nothing(phase, run, tmp_path, monkeypatch):
    from cflow.training.few_step import pairs

    arguments = ["--rounds", "1", "--distill", "1", *SMALL]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    broken = ["reflow", str(run), "--output", str(tmp_path / "broken"), *arguments]
    # Shards of 32, so that a set has two.
    command = KILLER.replace("main(sys", "pairs.SHARD = 32\nmain(sys")
    done = subprocess.run([sys.executable, "-c", command, phase, *broken], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    monkeypatch.setattr(pairs, "SHARD", 32)
    main(broken)
    main(["reflow", str(run), "--output", str(tmp_path / "whole"), *arguments])
    for place in ("round-1", "distilled-1"):
        same(weights(tmp_path / "broken" / place), weights(tmp_path / "whole" / place))
    one, other = (json.loads((tmp_path / each / "metrics.json").read_text()) for each in ("broken", "whole"))
    assert one == other


def test_images_with_classes_on_a_curved_path(tmp_path):
    """Labels reach every round, also through a network that is read on another path; what is asked for is shown."""
    shape = (1, 8, 8)
    field = fields.UNet(1, 8, width=8, blocks=1, classes=4)
    images = cflow.ContinuousFlow(field, bases.Normal(shape), path=paths.Cosine(), context_shape=())
    cflow.save(images.with_transform(Dequantise(shape, 17), Rescale(shape)), tmp_path / "images" / "model")
    options = ("--guidance", "1.5", "--rounds", "2", "--distill", "3", *SMALL, "--evaluations", "1", "2")
    main(["reflow", str(tmp_path / "images"), *options])
    assert (tmp_path / "images" / "reflow" / "few-steps.png").stat().st_size > 1000
    table = json.loads((tmp_path / "images" / "reflow" / "metrics.json").read_text())
    assert set(table["energy_distance"]["distilled 3"]) == {"3"}
    assert set(table["energy_distance"]["round 2"]) == {"1", "2", "3"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "at least 1"),
        (["--solver", "hun"], "did you mean 'heun'"),
        (["--guidance", "2"], "trained without classes"),
    ],
)
def test_mistakes_end_in_one_line(run, arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["reflow", str(run), *SMALL, *arguments])
    assert message in capsys.readouterr().err


def test_a_damaged_note_of_the_folder_is_named(run, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "reflow.json").write_text('{"pairs": 6')
    with pytest.raises(SystemExit):
        main(["reflow", str(run), "--output", str(tmp_path / "out"), *SMALL])
    assert "reflow.json is damaged" in capsys.readouterr().err
