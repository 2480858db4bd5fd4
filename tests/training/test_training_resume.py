"""Runs that end early and go on: killed, interrupted, damaged, changed."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
import torch
from training_standins import SmallMatching, checkpoint, data, small_flow, source, train

from cflow import ContinuousFlow, bases, couplings, paths, times, training
from cflow.fields import MLP
from cflow.io import load
from cflow.objectives import FlowMatching


class Accident(Exception):
    pass


def accident(at, error=Accident):
    def callback(step, flow, row):
        if step == at:
            raise error

    return callback


def same(one, other):
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def rows(folder):
    """The history without the clock."""
    with (Path(folder) / "history.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "seconds"} for row in csv.DictReader(file)]


def without_clock(history):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in history]


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
@pytest.mark.parametrize("prefetch", [0, 2])
def test_a_resumed_run_equals_the_uninterrupted_one_to_the_bit(tmp_path, kind, prefetch):
    options = {"prefetch": prefetch, "validation": data(30), "validate_every": 10}
    whole, straight = train(kind, out=tmp_path / "whole", **options)
    with pytest.raises(Accident):
        train(kind, out=tmp_path / "broken", callbacks=[accident(27)], **options)
    other = small_flow()
    with torch.no_grad():  # what it starts from must not matter
        other.net[0].weight.zero_()
    torch.rand(7)
    resumed, run = train(kind, flow=other, out=tmp_path / "broken", resume=True, **options)
    assert run.resumed_from == 21
    assert same(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "broken")
    assert without_clock(run.history) == without_clock(straight.history)
    # The raw weights too, not their average alone.
    raw = [checkpoint(tmp_path / name / "checkpoints/step-000045") for name in ("whole", "broken")]
    for part in ("model", "optimizer"):
        assert raw[0][part].keys() == raw[1][part].keys()
        assert all(torch.equal(raw[0][part][name], raw[1][part][name]) for name in raw[0][part])


@pytest.mark.parametrize("kind", ["tensor", "dataset", "loader"])
def test_a_run_resumed_in_the_middle_of_a_pool_repeats_it(tmp_path, kind):
    options = {"pool": 4, "steps": 22, "log_every": 5, "checkpoint_every": 9, "workers": 2, "out": tmp_path}
    whole, straight = train(kind, **(options | {"out": None}))
    for last in (12, 16):  # step 9 lies inside a pool, 16 ends one
        with pytest.raises(KeyboardInterrupt if last == 16 else Accident):
            train(
                kind, callbacks=[accident(last, KeyboardInterrupt if last == 16 else Accident)], resume=True, **options
            )
    resumed, run = train(kind, resume=True, **(options | {"workers": 1, "prefetch": 0}))
    assert run.resumed_from == 16
    assert same(whole, resumed)
    assert without_clock(run.history) == without_clock(straight.history)


def test_a_parameter_that_never_had_a_gradient_resumes_without_a_state(tmp_path):
    """Its first step comes late: Adam must then count from one, as in the run without a break."""

    class Late(SmallMatching):
        def __init__(self):
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(2))
            self.calls = 0

        def loss(self, flow, batch):
            self.calls += 1
            losses = super().loss(flow, batch)
            return losses if self.calls <= self.until else losses + (batch.x1 - self.shift).square().sum(1)

    def go(until, **options):
        objective = Late()
        objective.until = until
        settings = {"steps": 9, "batch_size": 32, "checkpoint_every": 3, "lr": 0.1} | options
        training.fit(small_flow(), objective, data(), **settings)
        return objective.shift

    straight = go(5)
    with pytest.raises(Accident):
        go(5, out=tmp_path, callbacks=[accident(4)])
    assert torch.equal(go(2, out=tmp_path, resume=True), straight)  # two of the five calls are left
    assert straight.abs().min() > 0


def test_a_run_killed_at_a_random_moment_equals_the_uninterrupted_one(tmp_path):
    steps = 160
    whole, _ = train(out=tmp_path / "whole", steps=steps)
    here = Path(__file__)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(here.parent), str(here.parents[2])))}
    command = [
        sys.executable,
        str(Path(__file__).with_name("training_standins.py")),
        str(tmp_path / "killed"),
        str(steps),
    ]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        for number, _ in enumerate(process.stdout):
            if number == 40:
                time.sleep(random.Random().uniform(0, 0.02))  # anywhere: in a step, in a checkpoint, between them
                break
    finally:
        process.kill()
        process.stdout.close()
    assert process.wait() == -signal.SIGKILL
    resumed, run = train(out=tmp_path / "killed", steps=steps, resume=True)
    assert 35 <= run.resumed_from < steps
    assert same(whole, resumed)
    assert rows(tmp_path / "whole") == rows(tmp_path / "killed")
    assert not list((tmp_path / "killed" / "checkpoints").glob("part-*"))


def test_resuming_leaves_the_random_state_alone(tmp_path):
    with pytest.raises(Accident):
        train(out=tmp_path, callbacks=[accident(10)])
    before = random.getstate(), torch.get_rng_state(), numpy.random.get_state()[1].tolist()  # noqa: NPY002
    random.random()
    torch.rand(1)
    now = random.getstate(), torch.get_rng_state()
    train(out=tmp_path, resume=True)
    assert random.getstate() == now[0]
    assert torch.equal(torch.get_rng_state(), now[1])
    assert numpy.random.get_state()[1].tolist() == before[2]  # noqa: NPY002


@pytest.fixture
def usual_signals():
    """The handlers that Python starts with; a shell that started the tests in the background may have taken them."""
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_ctrl_c_saves_the_last_complete_step(tmp_path, usual_signals):
    def press(step, flow, row):
        if step == 17:
            os.kill(os.getpid(), signal.SIGINT)

    flow = small_flow()
    with pytest.raises(KeyboardInterrupt, match=r"SIGINT.*after step 17; the checkpoint is .*step-000017"):
        train(flow=flow, out=tmp_path / "pressed", callbacks=[press])
    assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    assert same(flow, train(steps=17, schedule=training.Constant())[0]) is False
    # It holds the average, which is what a run of 45 steps held after 17.
    state = checkpoint(tmp_path / "pressed/checkpoints/step-000017")
    assert torch.equal(state["average"]["shadow"]["net.0.weight"], flow.net[0].weight)
    resumed, run = train(out=tmp_path / "pressed", resume=True)
    assert run.resumed_from == 17
    assert same(resumed, train()[0])


def test_a_keyboard_interrupt_from_a_callback_saves_too(tmp_path):
    with pytest.raises(KeyboardInterrupt, match="step-000013"):
        train(out=tmp_path, callbacks=[accident(13, KeyboardInterrupt)])
    with pytest.raises(KeyboardInterrupt, match=r"no checkpoint was written \(out=None\)"):
        train(callbacks=[accident(13, KeyboardInterrupt)])


def test_sigterm_ends_like_ctrl_c(tmp_path, usual_signals):
    def end(step, flow, row):
        if step == 9:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt, match=r"SIGTERM.*step-000009"):
        train(out=tmp_path, callbacks=[end])
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_earlier_run_is_not_overwritten(tmp_path):
    train(out=tmp_path, steps=8)
    with pytest.raises(ValueError, match=r"has checkpoints of an earlier run \(up to step 8\).*resume=True"):
        train(out=tmp_path, steps=8)


def test_resuming_nothing_starts_anew(tmp_path):
    flow, run = train(out=tmp_path, resume=True)
    assert run.resumed_from is None
    assert same(flow, train()[0])


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"seed": 4}, "seed"),
        ({"batch_size": 16}, "batch_size"),
        ({"lr": 2e-2}, "lr"),
        ({"ema": None}, "ema"),
        ({"accumulate": 2}, "accumulate"),
        ({"schedule": training.Constant()}, "schedule"),
        ({"flow": small_flow(width=8)}, "flow.width"),
    ],
)
def test_other_settings_are_refused_by_name(tmp_path, change, name):
    train(out=tmp_path, steps=8)
    with pytest.raises(ValueError, match=rf"fit\(resume=True\): {name} is .* now and was") as error:
        train(out=tmp_path, steps=16, resume=True, **change)
    assert ("warmup may follow from steps=..." in str(error.value)) == (name == "schedule")


def test_other_data_are_refused(tmp_path):
    fixed = {"steps": 4, "batch_size": 32, "out": tmp_path}
    training.fit(small_flow(), SmallMatching(), data(), **fixed)
    with pytest.raises(ValueError, match="data size is 150 now and was 200"):
        training.fit(small_flow(), SmallMatching(), data()[:150], resume=True, **fixed)
    with pytest.raises(
        ValueError, match=r"data content has changed since .* \(values, rows or their order\); pass the former"
    ):
        training.fit(small_flow(), SmallMatching(), data() + 1, resume=True, **fixed)


def test_more_steps_are_allowed_and_fewer_are_not(tmp_path):
    fixed = {"schedule": training.Constant(), "log_every": 5}
    train(out=tmp_path, steps=10, **fixed)
    longer, run = train(out=tmp_path, steps=25, resume=True, **fixed)
    straight, whole = train(steps=25, **fixed)
    assert same(longer, straight)
    assert without_clock(run.history) == without_clock(whole.history)
    with pytest.raises(ValueError, match=r"fit\(steps=12, resume=True\): .* already has 25 steps"):
        train(out=tmp_path, steps=12, resume=True, **fixed)


@pytest.mark.parametrize("file", ["__0_0.distcp", ".metadata", "cflow.json", "flow.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_still_serves(tmp_path, file):
    whole, _ = train(out=tmp_path)
    newest = tmp_path / "checkpoints" / "step-000045"
    content = (newest / file).read_bytes()
    middle = len(content) // 2
    (newest / file).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    with pytest.raises(ValueError, match=rf"step-000045 is damaged .*{file}"):
        train(out=tmp_path, resume=True)
    (newest / file).write_bytes(content[:-20])
    with pytest.raises(ValueError, match=r"step-000045 is damaged .*delete this folder to resume from step 42"):
        train(out=tmp_path, resume=True)
    for each in newest.iterdir():
        each.unlink()
    newest.rmdir()
    resumed, run = train(out=tmp_path, resume=True)
    assert run.resumed_from == 42
    assert same(whole, resumed)


@pytest.mark.parametrize("harm", [b"4,abc", b"\xff\xfe", b",1.0", b"4,1,1,1,1,1,1,1,1"])
def test_a_damaged_history_is_named(tmp_path, harm):
    train(out=tmp_path, steps=8)
    file = tmp_path / "history.csv"
    file.write_bytes(file.read_bytes() + harm + b"\n")
    with pytest.raises(ValueError, match=r"history.csv is damaged .*delete the file"):
        train(out=tmp_path, steps=8, resume=True)
    file.unlink()
    assert train(out=tmp_path, steps=8, resume=True)[1].steps == 8


def test_the_newest_checkpoints_are_kept(tmp_path):
    train(out=tmp_path, keep=3)
    names = sorted(each.name for each in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-000035", "step-000042", "step-000045"]
    note = json.loads((tmp_path / "checkpoints" / "step-000045" / "cflow.json").read_text())
    assert (note["step"], note["settings"]["seed"], note["settings"]["data size"]) == (45, 3, 200)


def test_a_folder_holds_history_events_checkpoints_and_the_model(tmp_path, capfd):
    flow, run = train(out=tmp_path, validation=data(20), validate_every=20)
    assert capfd.readouterr() == ("", "")
    names = sorted(each.name for each in tmp_path.iterdir())
    assert names == [".lock", "checkpoints", "history.csv", "model", "tensorboard"]
    assert list((tmp_path / "tensorboard").glob("events*"))
    assert same(load(tmp_path / "model"), flow)
    assert same(load(tmp_path), flow)
    written = rows(tmp_path)
    assert [int(row["step"]) for row in written] == [*range(4, 45, 4), 45]
    assert [float(row["loss"]) for row in written] == [row["loss"] for row in run.history]
    assert [row["step"] for row in written if row["validation"]] == ["20", "40", "45"]


def test_a_loader_goes_on_in_the_middle_of_an_epoch(tmp_path):
    """Seven batches an epoch: step 21 ends one, step 24 lies inside one."""
    whole, _ = train("loader", steps=30, checkpoint_every=24)
    with pytest.raises(Accident):
        train("loader", steps=30, checkpoint_every=24, out=tmp_path, callbacks=[accident(26)])
    note = json.loads((tmp_path / "checkpoints" / "step-000024" / "cflow.json").read_text())
    assert (note["epoch"], note["used"]) == (3, 3)
    assert same(whole, train("loader", steps=30, checkpoint_every=24, out=tmp_path, resume=True)[0])
    assert len(source("loader")) == 7


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"path": paths.Cosine("x1")}, "flow.path"),
        ({"path": paths.Linear("x1")}, "flow.path.predict"),
        ({"base": bases.StudentT(2, df=5.0)}, "flow.base"),
        ({"coupling": couplings.OptimalTransport()}, "objective.coupling"),
        ({"times": times.LogitNormal()}, "objective.times"),
        ({"condition_dropout": 0.5}, "objective.condition_dropout"),
    ],
)
def test_another_flow_or_objective_is_refused(tmp_path, change, name):
    def go(steps, *, base=None, path=None, **options):
        flow = ContinuousFlow(MLP(2, hidden=(8,)), base or bases.Normal(2), path=path or paths.Linear())
        return training.fit(
            flow, FlowMatching(**options), data(), steps=steps, batch_size=32, out=tmp_path, resume=True
        )

    go(4)
    assert go(6).resumed_from == 4
    with pytest.raises(ValueError, match=rf"fit\(resume=True\): {name} is .* now and was") as error:
        go(8, **change)
    assert len(str(error.value).replace(str(tmp_path), "")) < 250  # what differs, and not the whole of both


class Table(torch.utils.data.Dataset):
    """Rows without a tensor to look at; ``draws`` makes an item another one each time, by a generator of its own."""

    def __init__(self, shift=0.0, draws=None):
        self.shift, self.draws = shift, draws

    def __len__(self):
        return 200

    def __getitem__(self, row):
        noise = 0.0 if self.draws is None else torch.from_numpy(self.draws.normal(size=2)).float()
        return data()[row] + self.shift + noise


class Stream:
    """A loader that says nothing of its items."""

    def __init__(self, shift=0.0):
        self.shift = shift

    def __iter__(self):
        order = torch.randperm(200)
        return iter((data() + self.shift)[order].split(40))


def test_other_data_behind_a_dataset_or_a_loader_are_refused(tmp_path):
    def go(name, source, **options):
        fixed = {"steps": 6, "batch_size": 32, "checkpoint_every": 3, "resume": True, "out": tmp_path / name}
        return training.fit(small_flow(), SmallMatching(), source, **(fixed | options))

    loader = lambda dataset: torch.utils.data.DataLoader(dataset, batch_size=32, shuffle=True)
    for name, kind in (("dataset", lambda dataset: dataset), ("loader", loader)):
        go(name, kind(Table()))
        assert go(name, kind(Table()), steps=8).resumed_from == 6
        with pytest.raises(
            ValueError,
            match=r"data content has changed since .* \(values, rows or their order\); pass the former",
        ):
            go(name, kind(Table(1.0)), steps=10)
        drawn = [kind(Table(draws=numpy.random.default_rng(seed))) for seed in (0, 1)]
        go(f"{name} drawn", drawn[0])
        assert go(f"{name} drawn", drawn[1], steps=8).resumed_from == 6  # not the same twice: nothing is known


def test_other_batches_of_a_loader_are_told(tmp_path, recwarn):
    def go(source, steps, **options):
        fixed = {"checkpoint_every": 4, "out": tmp_path, "resume": True}
        return training.fit(small_flow(), SmallMatching(), source, steps=steps, **(fixed | options))

    go(Stream(), 7)
    go(Stream(), 14)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="batch 4 of epoch 2 has changed since"):
        go(Stream(1.0), 16)


def test_two_runs_do_not_write_to_one_folder(tmp_path):
    told = []

    def second(step, flow, row):
        if step == 5:
            with pytest.raises(ValueError, match=rf"process {os.getpid()} on .* is writing there") as caught:
                train(out=tmp_path, resume=True)
            told.append(str(caught.value))

    whole, _ = train(out=tmp_path, callbacks=[second])
    assert len(told) == 1
    assert same(whole, train()[0])
    assert len(rows(tmp_path)) == 12
    assert train(out=tmp_path, resume=True)[1].resumed_from == 45  # and is let in once the first has ended


def test_a_process_that_is_no_more_keeps_nobody_out(tmp_path):
    from cflow.storage import write_json

    write_json(tmp_path / "running.json", {"pid": 2**22 + 1, "host": os.uname().nodename, "begun": "yesterday"})
    (tmp_path / ".lock").touch()
    train(out=tmp_path, steps=8)
    assert not (tmp_path / "running.json").exists()


@pytest.mark.parametrize("options", [{}, {"ema": None}, {"validation": data(30), "validate_every": 5, "patience": 9}])
def test_a_run_that_ended_early_is_loaded_as_it_was_left(tmp_path, options):
    flow = small_flow()
    with pytest.raises(KeyboardInterrupt):
        train(flow=flow, out=tmp_path, callbacks=[accident(17, KeyboardInterrupt)], **options)
    assert not (tmp_path / "model").exists()
    assert flow.training
    for place in (tmp_path, tmp_path / "checkpoints" / "step-000017"):
        found = load(place)
        assert same(found, flow)
        assert found.trained_by == flow.trained_by
        assert not found.training
    (tmp_path / "checkpoints" / "part-000021").mkdir()
    train(out=tmp_path, resume=True, **options)
    assert not list((tmp_path / "checkpoints").glob("part-*"))
    assert same(load(tmp_path), load(tmp_path / "model"))


def test_a_run_without_a_checkpoint_is_no_flow(tmp_path):
    with pytest.raises(Accident):
        train(out=tmp_path, callbacks=[accident(2)])
    with pytest.raises(FileNotFoundError, match="has not saved a flow yet"):
        load(tmp_path)


def test_a_compiled_network_goes_on_where_a_plain_one_was(tmp_path):
    """Only the call is compiled: nothing that a run keeps by name changes."""

    def go(steps, compiled, out=None):
        torch.manual_seed(0)
        flow = ContinuousFlow(MLP(2, hidden=(8,)), bases.Normal(2), path=paths.Linear())
        if compiled:
            flow.field = torch.compile(flow.field, backend="eager")
        options = {"batch_size": 16, "schedule": training.Constant(), "validation": data(20), "validate_every": 4}
        options |= {"patience": 50, "out": out, "resume": out is not None}
        training.fit(flow, FlowMatching(), data(), steps=steps, **options)
        return flow

    with torch.random.fork_rng(devices=[]):
        go(6, True, tmp_path)
        go(8, False, tmp_path)
        found, straight = go(12, True, tmp_path), go(12, False)
    for one, other, saved in zip(found.parameters(), straight.parameters(), load(tmp_path).parameters()):
        torch.testing.assert_close(one, other)
        assert torch.equal(one, saved)


def test_a_flow_that_is_only_part_of_what_will_be_saved_is_not_saved(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(out=tmp_path, save_model=False, callbacks=[accident(17, KeyboardInterrupt)])
    assert (tmp_path / "checkpoints" / "step-000017").is_dir()
    with pytest.raises(FileNotFoundError, match="has not saved a flow yet"):
        load(tmp_path)
    whole, run = train(out=tmp_path, resume=True, save_model=False)
    assert run.resumed_from == 17
    assert not (tmp_path / "model").exists()
    assert same(whole, train()[0])
