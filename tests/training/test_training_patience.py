"""Early stopping: which weights are kept, when a run ends, and that a resumed run knows both."""

import copy
import math

import pytest
import torch
from training_standins import SmallMatching, data, small_flow, train

import cflow
from cflow import training


def watched(losses, seen=None):
    """A validation that gives one number after the other, and keeps the weights that it was shown."""
    left = iter(losses)

    def validation(flow):
        if seen is not None:
            seen.append({name: value.clone() for name, value in flow.state_dict().items()})
        assert not flow.training
        assert not torch.is_grad_enabled()
        return next(left)

    return validation


def same(flow, state):
    return all(torch.equal(value, state[name]) for name, value in flow.state_dict().items())


@pytest.mark.parametrize("ema", [None, training.EMA(0.9)])
def test_the_best_weights_are_kept_and_the_run_ends(ema):
    seen = []
    losses = [5.0, 4.0, 2.0, 3.0, 3.0, 1.0]  # before the first step, then every two steps
    flow, run = train(steps=40, validation=watched(losses, seen), validate_every=2, patience=2, ema=ema, log_every=2)
    assert (run.stopped, run.steps, run.best_step) == (True, 8, 4)
    assert same(flow, seen[2])  # of the average, where there is one
    assert [row["validation"] for row in run.history] == losses[1:5]


def test_an_equal_loss_is_no_improvement():
    losses = [3.0, 2.0, 2.0, 2.0]
    _, run = train(steps=40, validation=watched(losses), validate_every=2, patience=2, ema=None)
    assert (run.stopped, run.steps, run.best_step) == (True, 6, 2)


def test_the_untrained_flow_may_be_the_best():
    start = small_flow().state_dict()
    flow, run = train(steps=6, validation=watched([0.0, 1.0, 1.0, 1.0]), validate_every=2, patience=9, ema=None)
    assert (run.stopped, run.steps, run.best_step) == (False, 6, 0)
    assert same(flow, start)


def test_one_number_that_is_none_is_no_improvement_and_all_are_an_error():
    _, run = train(steps=6, validation=watched([math.nan, math.inf, 3.0, math.nan]), validate_every=2, patience=9)
    assert run.best_step == 4
    with pytest.raises(FloatingPointError, match="none of the validation losses up to step 4 is finite"):
        train(steps=6, validation=watched([math.nan] * 9), validate_every=2, patience=2)


def test_data_are_watched_too_and_a_resumed_run_ends_as_the_uninterrupted_one(tmp_path):
    held = data(60) - 2  # learned from and then unlearned
    settings = {"validation": held, "validate_every": 3, "patience": 2, "steps": 45, "lr": 0.02}
    whole, run = train(**settings)
    assert run.stopped
    assert 0 < run.best_step < run.steps < 45

    class Stop(Exception):
        pass

    def interrupt(step, flow, row):
        if step == 8:
            raise Stop

    with pytest.raises(Stop):
        train(out=tmp_path, callbacks=[interrupt], **settings)
    again, resumed = train(out=tmp_path, resume=True, **settings)
    assert (resumed.resumed_from, resumed.best_step, resumed.steps) == (7, run.best_step, run.steps)
    assert same(again, whole.state_dict())
    # A run that has ended is taken up again as it ended.
    third, ended = train(out=tmp_path, resume=True, **settings)
    assert (ended.stopped, ended.steps, ended.best_step) == (True, run.steps, run.best_step)
    assert same(third, whole.state_dict())


def test_patience_needs_something_to_watch():
    with pytest.raises(ValueError, match="there is no validation loss"):
        training.fit(small_flow(), SmallMatching(), data(), steps=2, patience=3)
    with pytest.raises(ValueError, match=r"patience=0"):
        train(patience=0, validation=data())


def test_a_run_that_has_ended_keeps_its_record_when_it_is_taken_up_again(tmp_path):
    settings = {"validation": data(60), "validate_every": 5, "patience": 1, "steps": 45, "lr": 1e-9, "out": tmp_path}
    flow, run = train(**settings)
    assert run.stopped
    entry = SmallMatching().entry()
    assert flow.trained_by == (entry,)
    again, _ = train(resume=True, **settings)
    assert again.trained_by == cflow.load(tmp_path / "model").trained_by == (entry,)


def test_a_resumed_run_knows_what_came_before_it(tmp_path):
    """The checkpoint brings the record along, also of an earlier training by the same objective."""
    flow = small_flow()
    flow.record(SmallMatching())
    before = copy.deepcopy(flow)
    train(flow=flow, steps=7, out=tmp_path)
    assert len(flow.trained_by) == 2
    again, _ = train(flow=before, steps=9, out=tmp_path, resume=True)
    assert len(again.trained_by) == 2


def test_a_run_without_a_finite_validation_leaves_no_record():
    flow = small_flow()
    with pytest.raises(FloatingPointError):
        train(flow=flow, steps=6, validation=watched([math.nan] * 9), validate_every=2, patience=2)
    assert flow.trained_by == ()


def test_an_interrupt_before_a_validation_loses_none(tmp_path):
    """The step whose validation is still to be made is taken again, so that the run ends as if never interrupted."""
    settings = {"validation": data(60) - 2, "validate_every": 10, "patience": 2, "steps": 90, "lr": 0.02}
    whole, run = train(**settings)
    assert run.stopped
    assert run.best_step < run.steps

    def interrupt(step, flow, row):
        if step == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="in the middle of a step; the last checkpoint is"):
        train(out=tmp_path, callbacks=[interrupt], **settings)
    again, resumed = train(out=tmp_path, resume=True, **settings)
    assert (resumed.best_step, resumed.steps) == (run.best_step, run.steps)
    assert [row["step"] for row in resumed.history] == [row["step"] for row in run.history]
    assert same(again, whole.state_dict())


@pytest.mark.parametrize("returned", [None, "x", {"a": 1.0}, torch.tensor([1.0, 2.0])])
def test_a_validation_function_returns_one_number(returned):
    with pytest.raises(TypeError, match="returned .*; return one number, the loss"):
        train(steps=2, validation=lambda flow: returned, validate_every=1)
