"""What the recipes share: folders by data, and what they say at the end."""

import importlib
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch


@pytest.fixture
def common(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return importlib.import_module("common")


def test_two_data_sets_of_one_name_have_folders_of_their_own(common, capsys):
    one, two = Path("a/stars.csv"), Path("b/stars.csv")
    runs = Path("runs")
    assert common.run_folder(None, "density-stars", one) == runs / "density-stars"
    assert not runs.exists()  # a mistake that is found later leaves nothing behind
    common.claim(runs / "density-stars", one)
    assert common.run_folder(None, "density-stars", one) == runs / "density-stars"
    assert capsys.readouterr().out == ""
    with pytest.raises(ValueError, match=r"--resume: runs/density-stars holds a run of .*a/stars.csv.* one of .*b/st"):
        common.run_folder(None, "density-stars", two, resume=True)
    assert common.run_folder(None, "density-stars", two) == runs / "density-stars-2"
    assert "runs/density-stars/ holds a run of other data" in capsys.readouterr().out
    common.claim(runs / "density-stars-2", two)
    assert common.run_folder(None, "density-stars", two, resume=True) == runs / "density-stars-2"
    assert common.run_folder(None, "density-stars", Path("stars.csv")) == runs / "density-stars-3"
    assert common.run_folder(None, "density-stars", "stars") == runs / "density-stars-3"
    assert capsys.readouterr().out.count("other data") == 2


def test_a_folder_that_was_asked_for_is_refused_where_it_holds_other_data(common):
    common.claim(Path("mine"), Path("a.csv"))
    assert common.run_folder(Path("mine"), "x", Path("a.csv")) == Path("mine")
    with pytest.raises(ValueError, match=r"--out mine: this folder holds a run of other data \(.*a.csv\); choose"):
        common.run_folder(Path("mine"), "x", Path("b.csv"))
    # Data that have moved: training compares their content.
    assert common.run_folder(Path("mine"), "x", Path("b.csv"), resume=True) == Path("mine")
    common.claim(Path("mine"), Path("b.csv"))  # the first to come stays
    assert json.loads(Path("mine/data.json").read_text())["data"] == str(Path("a.csv").resolve())
    assert [each.name for each in Path("mine").iterdir()] == ["data.json"]


def test_the_end_of_a_run(common, capsys):
    common.say_resumed(SimpleNamespace(resumed_from=40))
    common.say_resumed(SimpleNamespace(resumed_from=None))
    assert capsys.readouterr().out.split("\n")[:2] == [
        "--resume: continued from step 40", "--resume: found no checkpoint, started at step 0",
    ]  # fmt: skip
    common.end_run(Path("."), {"loss": 1.5}, 0.0, ["a.png", "b.csv"], "next: c")
    assert json.loads(Path("metrics.json").read_text()).keys() == {"loss", "seconds"}
    first, second = capsys.readouterr().out.splitlines()
    assert first.endswith("s in all; look at ./a.png, b.csv")
    assert second == "next: c"


def test_only_the_main_process_speaks(common, capsys, monkeypatch):
    monkeypatch.setattr(common, "MAIN", False)
    common.say("a")
    common.claim(Path("out"), "a")
    assert capsys.readouterr().out == ""
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(3.0, 17, "3"), (0.1, 17, "0.1"), (1 / 3, 6, "0.333333"), (-999.0, 6, "-999"), (1e20, 6, "1e+20")],
)
def test_numbers_are_written_as_a_table_has_them(common, value, digits, text):
    assert common.plain(value, digits) == text


def test_digits_show_the_spread_and_constants_are_no_error(common):
    spread = torch.linspace(-1, 1, 100, dtype=torch.float64)
    table = torch.stack([spread, 1e9 + spread, torch.full_like(spread, 3.5), torch.zeros_like(spread)], 1)
    assert common.digits_of(table) == [6, 15, 17, 6]
    assert common.digits_of(table[:1])[2] == 17
