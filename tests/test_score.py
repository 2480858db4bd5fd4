import csv

import numpy as np
import pytest
import torch

import cflow
from cflow import bases, bijections, discrete, fields, paths
from cflow.cli import main
from cflow.standardised_context import StandardisedContext


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    plain = discrete.maf(2, layers=1, hidden=(8,)).with_transform(bijections.Standardise(2, loc=5.0, scale=2.0))
    cflow.save(plain, folder / "plain" / "model")
    units = bijections.Standardise(1, loc=300.0, scale=10.0)
    cflow.save(
        StandardisedContext(discrete.maf(2, context=1, layers=1, hidden=(8,)), units), folder / "given" / "model"
    )
    (folder / "given" / "metrics.json").write_text('{"columns": ["b", "a"], "condition": ["t"]}')
    continuous = cflow.ContinuousFlow(fields.MLP(2), bases.Normal(2), path=paths.Linear())
    cflow.save(continuous, folder / "continuous")
    none = cflow.ContinuousFlow(fields.MLP(2), bases.Empirical(torch.rand(9, 2)), path=paths.Linear())
    cflow.save(none, folder / "none")
    labels = cflow.ContinuousFlow(fields.MLP(2, classes=3), bases.Normal(2), path=paths.Linear(), context_shape=())
    cflow.save(labels, folder / "labels")
    return folder


@pytest.fixture
def table(tmp_path):
    rows = 5 + 2 * np.random.default_rng(0).normal(size=(25, 2))
    np.savetxt(tmp_path / "x.csv", rows, delimiter=",", header="a,b", comments="", fmt="%.17g")
    np.save(tmp_path / "x.npy", rows)
    return rows


def scores_of(path):
    with path.open() as lines:
        rows = list(csv.DictReader(lines))
    assert [int(row["row"]) for row in rows] == list(range(len(rows)))
    return np.array([float(row["log_prob"] or "nan") for row in rows])


def exact(run, x, *context):
    with torch.no_grad():
        return cflow.load(run / "model").log_prob(torch.from_numpy(x), *context).numpy()


def test_rows_are_scored_in_order_in_portions(runs, table, tmp_path, capsys):
    for name in ("x.csv", "x.npy"):
        main(["score", str(runs / "plain"), str(tmp_path / name), "-o", str(tmp_path / "s.csv"), "--batch", "7"])
        scores = exact(runs / "plain", table)
        assert np.allclose(scores_of(tmp_path / "s.csv"), scores, atol=1e-5)
        said = capsys.readouterr().out
        assert "25 rows" in said
        assert "0 bad rows" in said
        mean, error = said.split("log-density ")[1].split(" nats")[0].split(" ± ")
        assert float(mean) == pytest.approx(scores.mean(), rel=1e-4)
        assert float(error) == pytest.approx(scores.std(ddof=1) / 5, rel=0.06)
    assert not list(tmp_path.glob("*.part"))


def test_bad_rows_are_named_and_keep_their_lines(runs, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("5,6\nnan,1\n5\nx,1\n5,6\n1e300,1e300\n" + "1\n" * 30)
    main(["score", str(runs / "plain"), str(tmp_path / "x.csv"), "--output", str(tmp_path / "s.csv")])
    scores = scores_of(tmp_path / "s.csv")
    assert np.isfinite(scores).tolist() == [True, False, False, False, True, False] + [False] * 30
    assert scores[0] == scores[4]
    assert scores[5] == -np.inf  # no density is a score, the lowest
    captured = capsys.readouterr()
    for part in (
        "line 2: column 0 holds 'nan', a missing value",
        "line 3: 1 field instead of 2",
        "line 4: column 0 holds 'x'",
        "line 6: its log-density",
    ):
        assert part in captured.err
    assert "and 14 more bad rows" in captured.err
    for remedy in (
        "no value: drop such rows, or fill them",
        "another number of fields: write the same number in every line",
    ):
        assert captured.err.count(remedy) == 1
    assert "36 rows" in captured.out
    assert "34 bad rows" in captured.out


def test_a_stray_quote_costs_one_row(runs, tmp_path, capsys):
    lines = ["star,a,b", *(f"s{i},5,6" for i in range(1000)), "", "# the end"]
    lines[10] = 's9,5,"6'
    (tmp_path / "x.csv").write_text("\n".join(lines) + "\n")
    main(["score", str(runs / "plain"), str(tmp_path / "x.csv"), "-o", str(tmp_path / "s.csv"), "--id", "star"])
    assert np.isfinite(scores_of(tmp_path / "s.csv")).nonzero()[0].tolist() == [i for i in range(1000) if i != 9]
    with (tmp_path / "s.csv").open() as rows:
        rows = list(csv.reader(rows))
    assert rows[0] == ["row", "line", "star", "log_prob"]
    assert [row[:3] for row in (rows[1], rows[10], rows[1000])] == [
        ["0", "2", "s0"], ["9", "11", ""], ["999", "1001", "s999"],
    ]  # fmt: skip
    captured = capsys.readouterr()
    assert "x.csv: line 11: a stray quote" in captured.err
    assert "1000 rows" in captured.out
    assert "1 bad row, 2 lines without a row" in captured.out


def test_columns_of_a_condition_are_noted_named_or_last(runs, tmp_path, capsys):
    rng = np.random.default_rng(0)
    a, b, t = rng.normal(size=8), rng.normal(size=8), rng.normal(300, 10, size=8)
    wanted = exact(runs / "given", np.stack([b, a], 1), torch.from_numpy(t)[:, None])
    write = lambda name, header, columns: np.savetxt(
        tmp_path / name, np.stack(columns, 1), delimiter=",", header=header, comments="", fmt="%.17g"
    )
    write("noted.csv", "t,a,b,more", [t, a, b, b])
    write("other.csv", "T,A,B", [t, a, b])
    np.save(tmp_path / "last.npy", np.stack([b, a, t], 1))
    for name, options in (
        ("noted.csv", ()),
        ("other.csv", ("--condition", "T", "--columns", "B", "A")),
        ("last.npy", ()),
        ("last.npy", ("--condition", "2")),
    ):
        main(["score", str(runs / "given"), str(tmp_path / name), "-o", str(tmp_path / "s.csv"), *options])
        assert np.allclose(scores_of(tmp_path / "s.csv"), wanted, atol=1e-4), name
    capsys.readouterr()
    write("renamed.csv", "b,A,T", [b, a, t])
    for options, told in (
        ((), "no column a as in the run (the file has b, A, T); if others"),
        (("--columns", "b", "A"), "no column t as in the run"),
        (("--condition", "T"), "in the order of training with --columns"),
    ):
        with pytest.raises(SystemExit) as left:
            main(["score", str(runs / "given"), str(tmp_path / "renamed.csv"), "-o", str(tmp_path / "r.csv"), *options])
        assert left.value.code == 2
        assert told in capsys.readouterr().err
        assert not (tmp_path / "r.csv").exists()


def test_labels_solvers_and_standard_output_of_continuous_flows(runs, table, tmp_path):
    out = str(tmp_path / "s.csv")
    main(["score", str(runs / "continuous"), str(tmp_path / "x.npy"), "--solver", "rk4", "--steps", "2", "-o", out])
    normal = -0.5 * (table**2).sum(1) - np.log(2 * np.pi)  # an untrained field stands still
    assert np.allclose(scores_of(tmp_path / "s.csv"), normal, atol=1e-4)
    np.save(tmp_path / "l.npy", np.column_stack([table, np.arange(25) % 3]))
    main(["score", str(runs / "labels"), str(tmp_path / "l.npy"), "--rtol", "1e-3", "-o", out])
    assert np.allclose(scores_of(tmp_path / "s.csv"), normal, atol=1e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none", "x.csv"), "has no density"),
        (("plain", "nowhere.csv"), "nowhere.csv"),
        (("plain", "x.csv", "-o", "s.npy"), "choose .csv"),
        (("plain", "x.csv", "--batch", "0"), "--batch 0: this must be at least 1"),
        (("plain", "x.csv", "--rtol", "1e-3"), "has no solver"),
        (("plain", "x.csv", "--condition", "a"), "without a condition"),
        (("plain", "x.csv", "--columns", "a"), "needs 2 columns for --columns, not 1 (a)"),
        (("plain", "x.csv", "--columns", "a", "c"), "no column 'c'"),
        (
            ("plain", "x.csv", "--columns", "a,b"),
            "no column 'a,b'; the file has the columns a, b; list them separately: a b",
        ),
        (("plain", "three.npy"), "needs 2 columns for --columns, not 3 (0, 1, 2)"),
        (("given", "x.csv"), "no column t as in the run (the file has a, b)"),
        (("labels", "x.csv", "--columns", "a", "b"), "needs 1 column for --condition, not 0 (none)"),
        (("plain", "bad.csv"), "none of the 2 rows has a score"),
        (("nowhere", "x.csv"), "no saved flow"),
    ],
)
def test_mistakes_end_in_one_line(runs, table, tmp_path, arguments, message, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("three.npy", np.zeros((4, 3)))
    (tmp_path / "bad.csv").write_text("a,b\nx,1\ny,2\n")
    run, *rest = arguments
    with pytest.raises(SystemExit) as stop:
        main(["score", str(runs / run), *rest])
    assert stop.value.code == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cflow: ")]
    assert len(said) == 1
    assert message in said[0]
    assert not (tmp_path / "scores.csv").exists()


def test_scores_do_not_take_the_place_of_their_table(runs, table, tmp_path, capsys):
    before = (tmp_path / "x.csv").read_bytes()
    (tmp_path / "link.csv").symlink_to(tmp_path / "x.csv")
    for name in ("x.csv", "link.csv"):
        with pytest.raises(SystemExit):
            main(["score", str(runs / "plain"), str(tmp_path / "x.csv"), "-o", str(tmp_path / name)])
        assert "this would overwrite the table; choose another file" in capsys.readouterr().err
    assert (tmp_path / "x.csv").read_bytes() == before


def test_a_missing_context_is_named_in_options_of_the_command(runs, tmp_path, capsys):
    (tmp_path / "t.csv").write_text("t\n3\nNA\n4\nx\n")
    with pytest.raises(SystemExit):
        main(["sample", str(runs / "given"), "--context", str(tmp_path / "t.csv"), "-o", str(tmp_path / "s.csv")])
    said = capsys.readouterr().err
    assert "line 3: column t holds 'NA', a missing value (and 1 more bad row); correct or delete it" in said
    assert "drop_missing" not in said


@pytest.mark.parametrize("name", ["reflow", "bespoke"])
def test_a_flow_without_a_solver_is_not_told_to_omit_an_option(runs, capsys, name):
    with pytest.raises(SystemExit):
        main([name, str(runs / "plain")])
    said = capsys.readouterr().err
    assert "train a continuous flow" in said
    assert "omit" not in said


def test_a_first_line_of_years_is_asked_about(runs, tmp_path, capsys):
    """Scores of a line of names, read as a row, are no scores."""
    (tmp_path / "x.csv").write_text("2019,2020\n" + "5.5,4.25\n" * 9)
    args = ["score", str(runs / "plain"), str(tmp_path / "x.csv"), "-o", str(tmp_path / "s.csv")]
    with pytest.raises(SystemExit):
        main(args)
    assert "pass --header yes if it has names, --header no if not" in capsys.readouterr().err
    main([*args, "--header", "yes"])
    assert "9 rows" in capsys.readouterr().out
    (tmp_path / "t.csv").write_text("3\n4\n")
    args = ["sample", str(runs / "given"), "--context", str(tmp_path / "t.csv"), "-o", str(tmp_path / "s.csv")]
    for header, count in (("yes", 64), ("no", 2)):  # 64 for one context, else one for each
        main([*args, "--header", header])
        assert len((tmp_path / "s.csv").read_text().splitlines()) == 1 + count
