"""Runs on two processes (gloo): the same steps as one process makes, stops that all share, checkpoints that travel."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import training_processes
from training_processes import OBJECTIVES, WAYS, interrupted, pairs, result, train

TIGHT = {"rtol": 1e-9, "atol": 1e-12}


def launch(folder):
    """Starts two processes as a launcher does and waits for both."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    shared |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    here = Path(__file__)
    shared["PYTHONPATH"] = os.pathsep.join((str(here.parent), str(here.parents[2])))
    command = [sys.executable, training_processes.__file__, str(folder)]
    started = [
        subprocess.Popen(
            command,
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [each.communicate(timeout=300) for each in started]
    finally:
        for each in started:
            each.kill()
    assert [each.returncode for each in started] == [0, 0], "\n".join(err for _, err in said)
    for out, err in said:
        assert out == "done\n"
        assert err == ""
    return torch.load(folder / "results.pt")


def written(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What one launch left: DDP first, then FSDP2 among what DDP and one process had written."""
    folder = tmp_path_factory.mktemp("processes")
    for way in WAYS:
        interrupted(folder / way / "from one", 1)
    return {"folder": folder, **launch(folder)}


def assert_same(one, other):
    torch.testing.assert_close(one["gradients"], other["gradients"], **TIGHT)
    torch.testing.assert_close(one["weights"], other["weights"], **TIGHT)
    assert len(one["history"]) == len(other["history"])
    for row, twin in zip(one["history"], other["history"]):
        assert row == pytest.approx(twin, rel=1e-6)  # losses are recorded in float32


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("objective", list(OBJECTIVES))
def test_two_processes_make_the_gradients_and_steps_of_one(runs, way, objective):
    assert_same(runs[way][objective], result(*train(objective, 1)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("name", "options"), [("pool", {"pool": 3}), ("accumulate", {"accumulate": 2}), ("fetched", {})]
)
def test_pools_pieces_and_workers_change_nothing_across_processes(runs, way, name, options):
    assert_same(runs[way][name], result(*train("FlowMatching", 1, **options)))


@pytest.mark.parametrize(("way", "name"), [("ddp", "from one"), ("fsdp", "from one"), ("fsdp", "from ddp")])
def test_two_processes_go_on_from_what_others_wrote(runs, way, name):
    whole = result(*train("FlowMatching", 1, pool=2))
    assert_same({**runs[way][name], "gradients": []}, {**whole, "gradients": []})


@pytest.mark.parametrize("way", WAYS)
def test_one_process_goes_on_from_what_two_wrote(runs, way):
    flow, run, _ = train(
        "FlowMatching", 1, out=runs["folder"] / way / "to one", resume=True, pool=2, checkpoint_every=3
    )
    assert run.resumed_from == 7
    assert_same(result(flow, run, []), {**result(*train("FlowMatching", 1, pool=2)), "gradients": []})


def test_two_processes_make_the_pairs_of_one(runs, tmp_path):
    pairs(tmp_path / "one")
    one, two = written(tmp_path / "one"), written(runs["folder"] / "pairs")
    assert len(one) == 11  # the files, their note and the lock, and nothing left over
    assert one == two
