"""The recipe of few steps, shortened: its table, its models, going on, and its refusals."""

import json

import pytest
import torch
from test_recipes import SMALL, command, run

import cflow

SHORT = ("--pairs", "60", "--steps", "6", "--solver-steps", "2", "--num", "40", "--batch-size", "32")
SHORT += ("--distill", "1", "3", "--evaluations", "1", "2")


@pytest.fixture(scope="module")
def straightened(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reflow")
    run("images", folder, "--steps", "6", *SMALL)
    return folder, command("reflow", folder, "--real", *SHORT)


def test_it_leaves_a_table_a_picture_and_models(straightened):
    folder, done = straightened
    out = folder / "runs" / "reflow-digits"
    report = json.loads((out / "metrics.json").read_text())
    assert [list(report[name]) for name in ("flow", "flow, UniPC", "round 1")] == [["1", "2", "3"]] * 3
    assert [list(report[f"distilled {calls}"]) for calls in (1, 3)] == [["1"], ["3"]]  # shown though not asked for
    assert all(0 <= each["accuracy"] <= 1 and each["frechet"] > 0 for each in report["round 1"].values())
    assert report["held-out images"]["accuracy"] > 0.9  # by the classifier that judges
    assert (out / "few-steps.png").stat().st_size > 1000
    assert "distilled 3" in done.stdout
    real = cflow.training.Pairs(out / "pairs-1-real")
    digits = cflow.data.digits()
    assert len(real) == len(digits.train)
    assert torch.equal(real.context, digits.train_labels)
    assert cflow.load(out / "distilled-3" / "model").solver == cflow.solvers.Euler(steps=3)


def test_again_it_has_nothing_left_to_do_but_the_table(straightened):
    folder, _ = straightened
    out = folder / "runs" / "reflow-digits"
    before = json.loads((out / "metrics.json").read_text())
    weights = cflow.load(out / "round-1" / "model").state_dict()
    run("reflow", folder, "--real", *SHORT)
    again = json.loads((out / "metrics.json").read_text())
    assert {**again, "seconds": 0} == {**before, "seconds": 0}
    same = cflow.load(out / "round-1" / "model").state_dict()
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--num", "20"), "more samples than the 32 features"),
        (("--rounds", "0", "--distill"), "straighten or distil at least once"),
        (("--distill", "0"), "at least 1 for all else"),
        (("--seed", "5", *SHORT), "made with another seed"),
    ],
)
def test_mistakes_end_in_one_line(straightened, options, message):
    done = run("reflow", straightened[0], *options, check=False)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr
