"""The recipe for tables as a user runs it, shortened; what it leaves behind is complete."""

import csv
import importlib.util
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import cflow
from cflow.cli import main as command

RECIPE = Path(__file__).parents[2] / "recipes" / "density.py"
SMALL = {"steps": 40, "batch_size": 32, "num": 400}


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    spec = importlib.util.spec_from_file_location("density_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # where dataclasses and tyro look for its names
    spec.loader.exec_module(module)
    return module


def table(rng, rows=160):
    """A line with noise, a count, and a text."""
    a = rng.normal(50, 5, rows)
    return np.stack([a, 3 * a + rng.normal(size=rows), rng.poisson(4.0, rows)], 1)


def write(path, values):
    np.savetxt(path, values, delimiter=",", header="a,b,n", comments="", fmt="%.17g")


def test_the_command_leaves_pictures_a_model_anomalies_and_a_table(tmp_path):
    columns = ("radius", "area", "concavity")
    options = ("--steps", "40", "--num", "400", "--columns", *columns)
    done = subprocess.run([sys.executable, str(RECIPE), *options], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "density-breast-cancer"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "corner.png", "calibration.png", "training.png", "metrics.json", "anomalies.csv"}
    report = json.loads((folder / "metrics.json").read_text())
    assert report["columns"] == list(columns)
    assert report["models"]["nsf-ar"]["nats"] == pytest.approx(report["log_prob_held_out"])
    assert len(report["calibration"]) == 3 + 1
    for part in ("nats per row", "gaussian", "mixture of", "tail", "malignant"):
        assert part in done.stdout
    # The model gives the same scores to the rows of the data as given, least likely first.
    from sklearn.datasets import load_breast_cancer

    with (folder / "anomalies.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert sorted(int(row["row"]) for row in rows) == list(range(569))
    scores = [float(row["log_prob"]) for row in rows]
    assert scores == sorted(scores)
    held = [score for score, row in zip(scores, rows) if row["part"] == "test"]
    assert len(held) == 114
    values = torch.from_numpy(load_breast_cancer().data[[int(row["row"]) for row in rows]][:, [0, 3, 6]])
    with torch.no_grad():
        exact = cflow.load(folder / "model").log_prob(values)
    assert np.allclose(exact.numpy(), scores, rtol=1e-5)
    assert np.mean(held) == pytest.approx(report["log_prob_held_out"], abs=1e-3)
    own = load_breast_cancer().data[:, [0, 3, 6]]
    assert all(own[int(row["row"])].tolist() == [float(row[name]) for name in columns] for row in rows)


def test_tables_are_conditioned_spread_and_scored(recipe, tmp_path, generator, capsys):
    values = table(np.random.default_rng(0))
    write("t.csv", values)
    recipe.main(recipe.Options(data=Path("t.csv"), condition=("a",), flow="maf", out=Path("out"), **SMALL))
    report = json.loads(Path("out/metrics.json").read_text())
    assert (report["columns"], report["condition"], report["dequantised"]) == (
        ["b", "n"],
        ["a"],
        {"n": [values[:, 2].min(), 1.0]},
    )
    assert list(report["models"])[1] == "gaussian"
    with Path("out/intervals.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert list(rows[0])[:7] == ["row", "line", "a", "b", "b 5%", "b 50%", "b 95%"]
    assert len(rows) == 32
    for row in rows:
        assert [float(row[name]) for name in "abn"] == values[int(row["row"])].tolist()
        assert float(row["b 5%"]) < float(row["b 50%"]) < float(row["b 95%"])
    inside = np.mean([float(row["b 5%"]) < float(row["b"]) < float(row["b 95%"]) for row in rows])
    assert report["coverage_of_90"]["b"] == pytest.approx(inside, abs=1.5 / 32)  # quantiles are interpolated
    said = capsys.readouterr().out
    assert "90% intervals contain this share of the held-out rows: " in said
    assert "intervals.csv" in said
    with Path("out/anomalies.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["a"]) for row in rows] == [values[int(row["row"]), 0] for row in rows]
    assert all(0 < float(row["tail"]) < 1 for row in rows)
    np.savetxt("new.csv", values[:, [2, 0, 1]], delimiter=",", header="n,a,b", comments="", fmt="%.17g")
    command(["score", "out", "new.csv", "--output", "scores.csv"])  # columns are found by their names
    flow = cflow.load("out/model")
    with torch.no_grad():
        exact = flow.log_prob(torch.from_numpy(values[:, 1:]), torch.from_numpy(values[:, :1]))
    scores = np.genfromtxt("scores.csv", delimiter=",", names=True)["log_prob"]
    assert np.allclose(scores, exact.numpy(), atol=1e-4)


def test_messy_tables_are_listed_with_their_own_values_lines_and_names(recipe, tmp_path, capsys):
    """Dates, words, a count, missing values, remarks: every row that can be scored, as ``cflow score`` scores it."""
    values = table(np.random.default_rng(0))
    lines = ["name\tday\ta\tn\tb", "# made up"]
    for i, (a, b, n) in enumerate(values):
        lines.append(f"star {i}\t2020-01-01\t{'NA' if i == 7 else repr(float(a))}\t{n:.0f}\t{float(b)!r}")
    Path("t.tsv").write_text("\ufeff" + "\n".join(lines) + "\n", encoding="utf-8")
    options = {"data": Path("t.tsv"), "columns": ("a", "n"), "out": Path("out"), **SMALL}
    with pytest.raises(ValueError, match="(?s)  a: a missing value in line 10 .'NA'.*drop_missing=True"):
        recipe.main(recipe.Options(**options))
    recipe.main(recipe.Options(**options, id="name", drop_missing=True))
    said = capsys.readouterr().out
    for part in (
        "dropped 1 row with missing values",
        "skipped 1 line without a row",
        "the least likely of 159 rows",
        "star",
    ):
        assert part in said
    with Path("out/anomalies.csv").open() as rows:
        rows = list(csv.DictReader(rows))
    assert list(rows[0]) == ["row", "line", "name", "part", "log_prob", "tail", "a", "n"]
    assert sorted(int(row["row"]) for row in rows) == [i for i in range(160) if i != 7]
    for row in rows:  # values as they were given, a count without noise or point
        i = int(row["row"])
        assert (row["line"], row["name"], row["n"]) == (str(i + 3), f"star {i}", f"{values[i, 2]:.0f}")
        assert float(row["a"]) == values[i, 0]
    command(["sample", "out", "--num", "50", "--output", "drawn.csv"])  # names, and whole numbers where there were
    with Path("drawn.csv").open() as drawn:
        drawn = list(csv.DictReader(drawn))
    assert len(drawn) == 50
    assert all(row["n"].lstrip("-").isdecimal() and not row["a"].isdecimal() for row in drawn)
    command(["score", "out", "t.tsv", "--output", "scores.csv", "--id", "name"])
    with Path("scores.csv").open() as scored:
        scored = {row["line"]: row for row in csv.DictReader(scored)}
    assert scored["10"]["log_prob"] == ""
    for row in rows:
        assert scored[row["line"]]["name"] == row["name"]
        assert float(scored[row["line"]]["log_prob"]) == pytest.approx(float(row["log_prob"]), abs=1e-4)


def test_an_index_is_left_out_and_said_and_columns_of_one_name_are_found_by_number(recipe, tmp_path, capsys):
    values = np.column_stack([np.arange(160), table(np.random.default_rng(0))])
    np.savetxt("t.csv", values, delimiter=",", header=",a,b,b", comments="", fmt="%.17g")
    recipe.main(recipe.Options(data=Path("t.csv"), columns=("1", "2"), out=Path("out"), **SMALL))
    said = capsys.readouterr().out
    assert "has no name" not in said  # these columns were asked for
    command(said.rsplit("cflow ", 1)[1].replace("new.csv", "t.csv").split())
    assert "160 rows" in capsys.readouterr().out
    np.savetxt("t.csv", values, delimiter=",", header=",a,b,n", comments="", fmt="%.17g")
    read = recipe.read(recipe.Options(data=Path("t.csv")))
    assert (read.columns, read.again) == (["a", "b", "n"], "")
    assert read.notes == ["column 0 has no name, as an index has none, and is omitted"]


def test_codes_for_missing_values_long_numbers_and_far_rows_are_named_by_their_columns(recipe, tmp_path):
    values = table(np.random.default_rng(0))
    write("t.csv", values)
    assert recipe.read(recipe.Options(data=Path("t.csv"))).notes == []
    own = np.random.default_rng(0).normal(size=(160, 3))
    write("twice.csv", np.concatenate([own, own[:10]]))
    assert [each[:24] for each in recipe.read(recipe.Options(data=Path("twice.csv"))).notes] == [
        "10 of 170 rows repeat ot"
    ]
    values[::20, 0] = -999
    write("t.csv", values)
    for options in ({}, {"columns": ("b",), "condition": ("a",)}):
        (note,) = recipe.read(recipe.Options(data=Path("t.csv"), **options)).notes
        assert note.startswith("column a: -999 in 8 rows, far from all others; if it means missing")
    values[:, 0] = 12345678901234567 + 2 * np.arange(160)
    write("t.csv", values)
    with pytest.raises(ValueError, match="^column a: the values differ by less .* --columns, .*: --id a"):
        recipe.read(recipe.Options(data=Path("t.csv")))
    values = table(np.random.default_rng(0), 1000)
    values[3, 1], values[[5, 7, 9], 0], values[11, 0] = 1e8, -99999, 1.5e6
    write("t.csv", values)
    read = recipe.read(recipe.Options(data=Path("t.csv"), columns=("b", "n"), condition=("a",), dequantise=False))
    x = torch.from_numpy(values)
    with pytest.warns(UserWarning, match="far from all others") as warned:
        units = recipe.units_of(x, ["a", "b", "n"], read.listed)
    (message,) = [str(each.message) for each in warned]
    assert message.startswith(
        "values far from all others ruin the fit: a -99999 (3 rows: a code for missing values?), 1500000 (line 13); "
        "b 100000000 (line 5); correct or delete them"
    )
    assert torch.equal(units.loc, x.mean(0))


def test_codes_of_missing_values_are_dropped_and_known_to_score(recipe, tmp_path, capsys):
    values = table(np.random.default_rng(0))
    values[::20, 0], values[3, 1] = -999, 2500
    write("t.csv", values)
    options = {**SMALL, "data": Path("t.csv"), "columns": ("a", "b"), "flow": "maf", "missing": (-999.0,)}
    with pytest.raises(ValueError, match="--missing -999: 8 rows of 160 have such a value; pass --drop-missing"):
        recipe.main(recipe.Options(**options))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # --robust needs no warning of values far away
        recipe.main(recipe.Options(**options, drop_missing=True, robust=True, out=Path("out")))
    assert "dropped 8 rows with a code of a missing value (-999)" in capsys.readouterr().out
    with Path("out/anomalies.csv").open() as rows:
        rows = list(csv.DictReader(rows))
    assert sorted(int(row["row"]) for row in rows) == [i for i in range(160) if i % 20]
    assert all(float(row["a"]) == values[int(row["row"]), 0] for row in rows)
    command(["score", "out", "t.csv", "--output", "scores.csv"])
    captured = capsys.readouterr()
    assert "8 bad rows" in captured.out
    assert "line 2: column a holds -999, a code of a missing value in this run" in captured.err
    with Path("scores.csv").open() as scored:
        scored = {row["row"]: row["log_prob"] for row in csv.DictReader(scored)}
    assert [row for row, score in scored.items() if not score] == [str(i) for i in range(0, 160, 20)]
    assert all(float(scored[row["row"]]) == pytest.approx(float(row["log_prob"]), abs=1e-3) for row in rows)
    drawn = cflow.load("out/model").sample((200,))
    assert float(drawn[:, 0].median()) == pytest.approx(50, abs=10)  # the far value is compressed


def test_pictures_say_which_columns_they_leave_out_and_what_is_crossed(recipe, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(recipe.plot, "corner", lambda *_, **options: drawn.update(corner=options))
    monkeypatch.setattr(recipe.plot, "calibration", lambda *_, **options: drawn.update(calibration=options))
    values = np.random.default_rng(0).normal(size=(80, 9))
    np.savetxt("t.csv", values, delimiter=",", header=",".join("abcdefghi"), comments="")
    recipe.main(recipe.Options(data=Path("t.csv"), flow="maf", out=Path("out"), **{**SMALL, "steps": 2}))
    assert {each["title"] for each in drawn.values()} == {"the first 8 of 9 columns"}
    assert drawn["corner"]["mark_label"] == "the 5 least likely"
    assert drawn["calibration"]["words"] == ("row", "samples")
    options = {**SMALL, "steps": 2, "columns": ("a",), "condition": ("b",)}
    recipe.main(recipe.Options(data=Path("t.csv"), flow="maf", out=Path("given"), **options))
    assert drawn["corner"]["names"] == ["a", "b (given)"]


def test_the_conditional_gaussian_is_that_of_linear_regression(recipe):
    rng = np.random.default_rng(0)
    values = torch.from_numpy(table(rng, 600)[:, :2])
    parts = dict(zip(("train", "validation", "test"), values.split([300, 100, 200])))
    x = {name: part[:, 1:] for name, part in parts.items()}
    context = {name: part[:, :1] for name, part in parts.items()}
    split = recipe.Table("t", x, context, ["b"], ["a"], np.arange(200))
    scores = recipe.mixtures(split, recipe.Options())["gaussian"]
    known = torch.cat([parts["train"], parts["validation"]]).numpy()
    slope, offset = np.polyfit(known[:, 0], known[:, 1], 1)
    deviation = (known[:, 1] - slope * known[:, 0] - offset).std()
    rest = (parts["test"][:, 1].numpy() - slope * parts["test"][:, 0].numpy() - offset) / deviation
    assert np.allclose(scores, -0.5 * rest**2 - np.log(deviation * np.sqrt(2 * np.pi)), atol=0.02)


def test_ranks_and_tails_of_the_true_density_are_uniform(recipe, generator):
    """With a flow that is right by construction; each test fails once in 10,000 seeds."""
    from scipy.stats import kstest

    flow = cflow.discrete.maf(2, layers=1).double()
    x = flow.sample((800,), generator=generator)
    split = recipe.Table("t", {"test": x}, None, ["a", "b"], [], np.arange(800))
    scores = recipe.score(flow, x, None, generator)
    _, pit, tail, _ = recipe.calibrate(flow, split, scores, recipe.Options(num=3000), generator)
    assert all(kstest(each.numpy(), "uniform").pvalue > 1e-4 for each in (*pit.T, tail))
    flow = cflow.discrete.maf(2, context=1, layers=1).double()
    context = torch.randn(300, 1, generator=generator, dtype=torch.float64)
    x = flow.sample((), context, generator=generator)
    split = recipe.Table("t", {"test": x}, {"test": context}, ["a", "b"], ["c"], np.arange(300))
    with torch.no_grad():
        scores = recipe.score(flow, x, context, generator)
    samples, pit, tail, _ = recipe.calibrate(flow, split, scores, recipe.Options(), generator)
    assert samples.shape == (256, *x.shape)
    assert all(kstest(each.numpy(), "uniform").pvalue > 1e-4 for each in (*pit.T, tail))


def test_a_run_goes_on_where_it_stopped(recipe, tmp_path):
    write("t.csv", table(np.random.default_rng(0)))
    options = {**SMALL, "data": Path("t.csv")}
    for folder in ("whole", "parts"):
        recipe.main(recipe.Options(out=Path(folder), **options))
    with pytest.raises(ValueError, match="resume=True"):
        recipe.main(recipe.Options(out=Path("parts"), **options))
    shutil.rmtree(sorted((tmp_path / "parts" / "checkpoints").iterdir())[-1])
    recipe.main(recipe.Options(out=Path("parts"), resume=True, **options))
    one, two = (cflow.load(Path(folder) / "model").state_dict() for folder in ("whole", "parts"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    one, two = (json.loads((Path(folder) / "metrics.json").read_text()) for folder in ("whole", "parts"))
    assert one["log_prob_held_out"] == two["log_prob_held_out"]


def test_the_protocol_of_the_paper(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr(recipe.plot, "corner", lambda *_, **__: None)  # drawn by the other tests
    monkeypatch.setattr(recipe.plot, "calibration", lambda *_, **__: None)
    rng = np.random.default_rng(0)
    values = np.stack([*(rng.integers(0, 9, 2000) for _ in range(5)), rng.integers(0, 1440, 2000)], 1).astype(float)
    np.save("power.npy", values)
    split = recipe.read(recipe.Options(reference="power", folder=Path(".")))
    assert [len(split.x[part]) for part in ("train", "validation", "test")] == [1620, 180, 200]
    first, last = split.x["train"][0], torch.from_numpy(np.random.RandomState(42).permutation(values)[0])
    assert bool(((first - last >= 0) & (first - last <= torch.tensor([0.001, 0.01, 1, 1, 1, 0]))).all())
    options = {"steps": 8, "layers": 1, "hidden": (8,), "num": 100, "lr": 1e-3}
    recipe.main(recipe.Options(reference="power", folder=Path("."), out=Path("out"), **options))
    report = json.loads(Path("out/metrics.json").read_text())
    shift = float(cflow.load("out/model").transform[0].scale.log().sum())
    assert report["log_prob_of_the_protocol"] == pytest.approx(report["log_prob_held_out"] + shift)
    assert report["published"]["MAF (10)"] == "0.24 ± 0.01"
    patches = {
        part: rng.normal(size=(n, 63)).astype(np.float32) for part, n in (("train", 90), ("val", 30), ("test", 40))
    }
    np.savez("bsds300.npz", **patches)
    recipe.main(
        recipe.Options(
            reference="bsds300", folder=Path("."), flow="maf", out=Path("bsds"), **{**options, "batch_size": 50}
        )
    )
    report = json.loads(Path("bsds/metrics.json").read_text())
    assert report["log_prob_of_the_protocol"] == report["log_prob_held_out"]


def test_mistakes_are_explained(recipe):
    rng = np.random.default_rng(0)
    write("t.csv", table(rng))
    write("short.csv", table(rng, 20))
    write("flat.csv", np.column_stack([table(rng)[:, :2], np.ones(160)]))
    np.savetxt("twice.csv", table(rng), delimiter=",", header="a,b,a", comments="")
    for options, message in (
        ({"data": Path("t.csv"), "columns": ("c",)}, "no column 'c'; the file has the columns a, b, n"),
        ({"data": Path("t.csv"), "columns": ("a",), "condition": ("a",)}, "each named once"),
        ({"data": Path("short.csv")}, "20 rows; a density of 3 columns takes 50"),
        ({"data": Path("flat.csv")}, "columns n are constant"),
        ({"data": Path("t.csv"), "test_fraction": 1.0}, "some are to report"),
        (
            {"data": Path("twice.csv")},
            "columns 0 and 2 are both called 'a'; rename one in the file, or .* --columns",
        ),
        ({"data": Path("t.csv"), "num": 0}, "--num 0: pictures and calibration take 2 samples at least"),
        ({"data": Path("t.csv"), "num": 1}, "--num 1: "),
        ({"reference": "power"}, "goes with --folder"),
        ({"flow": "planar", "hidden": (8,)}, "omit the latter"),
        ({"flow": "maf", "bins": 8}, "omit the latter"),
    ):
        with pytest.raises(ValueError, match=message):
            recipe.main(recipe.Options(**options))
    with pytest.raises(FileNotFoundError, match="nowhere.csv"):
        recipe.main(recipe.Options(data=Path("nowhere.csv")))
    assert not Path("runs").exists()
    done = subprocess.run([sys.executable, str(RECIPE), "--flow", "nfs"], capture_output=True, text=True)
    assert done.returncode != 0
    assert "nsf" in done.stderr + done.stdout
    assert "Traceback" not in done.stderr
