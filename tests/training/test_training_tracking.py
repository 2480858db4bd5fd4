"""Where a run shows what it does: boards, bars, callbacks."""

import io
import sys

import pytest
import torch
from accelerate.tracking import GeneralTracker
from training_standins import SmallMatching, data, small_flow, train

from cflow import training
from cflow.training.tracking import is_watched


class Board(GeneralTracker):
    name, requires_logging_directory = "board", False

    def __init__(self):
        super().__init__()
        self.config, self.rows, self.ended = None, [], 0

    @property
    def tracker(self):
        return self

    def store_init_configuration(self, values):
        self.config = values

    def log(self, values, step=None, **options):
        self.rows.append({"step": step, **values})

    def finish(self):
        self.ended += 1


@pytest.mark.parametrize("out", [False, True])
def test_rows_go_to_the_boards_of_accelerate(tmp_path, out):
    boards = [Board(), Board()]
    options = {"log_with": boards, "validation": data(20), "validate_every": 10, "out": tmp_path if out else None}
    flow, run = train(**options)
    for board in boards:
        assert board.rows == run.history
        assert board.ended == 1
        assert (board.config["steps"], board.config["seed"], board.config["lr"]) == (45, 3, 1e-2)
    one = Board()
    again, _ = train(log_with=one)
    assert len(one.rows) == 12
    assert all(torch.equal(*each) for each in zip(flow.parameters(), again.parameters()))  # it costs no draws


def test_a_board_is_closed_however_the_run_ends():
    board = Board()

    def fail(step, flow, row):
        if step == 9:
            raise KeyError

    with pytest.raises(KeyError):
        train(log_with=board, callbacks=[fail])
    assert [row["step"] for row in board.rows] == [4, 8]
    assert board.ended == 1


def test_the_boards_own_names(tmp_path):
    train(log_with="tensorboard", out=tmp_path / "run", steps=8)
    assert len(list((tmp_path / "run").rglob("events*"))) > 1  # more than the one that fit always writes
    for name, message in (
        ("wandbb", "accelerate has no such tracker. Available: .*tensorboard"),
        ("tensorboard", r"out=None\): this tracker writes to a folder"),
        (3, "no such tracker"),
    ):
        with pytest.raises(ValueError, match=message):
            train(log_with=name)


def test_a_board_whose_package_is_missing_is_named(monkeypatch):
    import accelerate.tracking

    monkeypatch.setattr(accelerate.tracking, "get_available_trackers", list)
    with pytest.raises(ValueError, match=r"fit\(log_with='wandb'\): its package is not installed; pip install wandb"):
        train(log_with="wandb")


def test_callbacks_get_the_rows_of_the_history():
    rows = []
    options = {"validation": data(20), "validate_every": 10}
    _, run = train(callbacks=[lambda step, flow, row: rows.append((step, row))], **options)
    assert [step for step, _ in rows] == list(range(1, 46))
    assert [row for _, row in rows if row is not None] == run.history
    assert all(row is None or row["step"] == step for step, row in rows)
    # One that ends the run by what it reads there.
    _, run = train(callbacks=[lambda step, flow, row: row is not None and "validation" in row], **options)
    assert (run.stopped, run.steps, run.history[-1]["step"]) == (True, 10, 10)
    _, run = train(callbacks=[lambda step, flow, row: step == 9], **options)
    assert [(row["step"], "validation" in row) for row in run.history] == [(4, False), (8, False), (9, True)]


def test_a_callback_cannot_change_the_history(tmp_path):
    seen = []

    def spoil(step, flow, row):
        if row is not None:
            row.clear()

    _, run = train(callbacks=[spoil, lambda step, flow, row: seen.append(row)], steps=8, out=tmp_path)
    assert [row for row in seen if row is not None] == run.history
    assert [row["step"] for row in run.history] == [4, 8]
    assert all("loss" in row for row in run.history)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"callbacks": print}, r"fit\(callbacks=print\): this is not a list; pass callbacks=\[\.\.\.\]"),
        ({"callbacks": 3}, r"fit\(callbacks=3\): this is not a list"),
        (
            {"callbacks": [lambda step, flow: None]},
            r"too many positional .* callback\(step, flow, row\)",
        ),
        ({"callbacks": [lambda step, flow, row, more: None]}, "missing a required .* pass a function"),
        ({"callbacks": ["print"]}, "'print'.*it cannot be called"),
        ({"log_with": None}, r"fit\(log_with=None\): .*omit log_with"),
        ({"log_with": Board}, r"fit\(log_with=the class Board\): .*accelerate.tracking.GeneralTracker"),
        ({"log_with": [Board(), None]}, r"fit\(log_with=None\)"),
    ],
)
def test_what_is_no_callback_and_no_board_is_refused_before_the_run(options, message):
    with pytest.raises(TypeError, match=message):
        train(**options)


def test_any_callable_of_three_is_a_callback():
    class Counter:
        steps = 0

        def __call__(self, step, flow, row=None):
            Counter.steps += 1

    rows = []
    train(callbacks=(each for each in (Counter(), lambda *given: rows.append(given))), steps=3)
    assert (Counter.steps, len(rows)) == (3, 3)


class Screen(io.StringIO):
    def isatty(self):
        return True


def test_a_bar_is_shown_where_somebody_watches(monkeypatch, tmp_path):
    settings = {"steps": 4, "batch_size": 32}

    def shown(watched, **options):
        monkeypatch.setattr(sys, "stderr", Screen() if watched else io.StringIO())
        training.fit(small_flow(), SmallMatching(), data(), **settings, **options)
        return sys.stderr.getvalue()

    assert "4/4" in shown(True)
    assert shown(False) == ""
    assert shown(True, progress=False) == ""
    assert "4/4" in shown(False, progress=True)


def test_a_notebook_is_watched(monkeypatch):
    class Shell:
        config = {"IPKernelApp": {}}

    class Module:
        get_ipython = staticmethod(Shell)

    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    assert not is_watched()
    monkeypatch.setitem(sys.modules, "IPython", Module)
    assert is_watched()
    Shell.config = {}
    assert not is_watched()
