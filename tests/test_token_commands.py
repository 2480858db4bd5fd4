"""The commands on flows over tokens: text that is drawn, completed and scored."""

import csv
import importlib
import inspect
import json
import math
import sys
from pathlib import Path

import numpy
import pytest
import torch

import cflow
from cflow import bases, ctmc, data, paths, registry
from cflow.bijections import OneHot
from cflow.cli import main
from cflow.data import Bytes, Characters, read_table
from cflow.testing.exact_denoiser import ExactDenoiser

LETTERS = Characters("abcdefghijklmnopqrstuvwxyz ")
LINES = Characters("ab\n")
ABC = Characters("abc")
NAMES = Characters("abcdefghijklmnopqrstuvwxyz\n", end="\n")
CYCLES = ("abc", "bca", "cab")  # the three texts of the law in `cycles`


@cflow.register("tests.Frequencies")
class Frequencies(torch.nn.Module):
    """A denoiser of independent tokens."""

    def __init__(self, tokens, classes=0):
        super().__init__()
        self.tokens, self.classes = tokens, classes
        self.context_shape = torch.Size() if classes else None
        self.logits = torch.nn.Parameter(torch.linspace(0, 1, tokens))
        self.shift = torch.nn.Parameter(5.0 * torch.eye(max(classes, 1), tokens))

    def forward(self, t, x, context=None, *, s=None):
        logits = self.logits.expand(*x.shape, -1)
        return logits if context is None else logits + self.shift[context].reshape(len(x), 1, -1)


@cflow.register("tests.Same")
class Same(torch.nn.Module):
    """Logits of one-hot tokens: the point itself."""

    def forward(self, t, x, context=None, *, s=None):
        return x


def tokens(shape, size, alphabet=None, classes=0, **options):
    return ctmc.TokenFlow(Frequencies(size, classes), ctmc.Mask(shape, size), alphabet=alphabet, **options)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, alphabet in (("letters", LETTERS), ("lines", LINES), ("bytes", Bytes())):
        cflow.save(tokens(12, alphabet.size, alphabet), folder / name / "model")
    cflow.save(tokens(12, 27, NAMES), folder / "names" / "model")
    cflow.save(tokens(2, 5), folder / "pairs")
    vectors = cflow.ContinuousFlow(Same(), bases.Normal((2, 5)), path=paths.Linear("logits"))
    cflow.save(vectors.with_transform(OneHot(2, 5)), folder / "vectors")
    cflow.save(tokens((1, 4, 4), 2), folder / "pictures")
    cflow.save(tokens((3, 4), 27, LETTERS), folder / "tables")
    cflow.save(tokens(12, 27, LETTERS, classes=3), folder / "classes")
    cflow.save(tokens(12, 27, LETTERS, sampler=ctmc.FirstHitting()), folder / "exact")
    law = torch.zeros(3, 3, 3)
    for text in CYCLES:
        law[tuple(ABC.encode(text))] = 1 / 3
    source, path = ctmc.Mask(3, 3), ctmc.Mixture()
    cflow.save(ctmc.TokenFlow(ExactDenoiser(law, source, path), source, path=path, alphabet=ABC), folder / "cycles")
    return folder


def drawn(run, num, seed, **options):
    return cflow.load(run).sample((num,), generator=torch.Generator().manual_seed(seed), **options)


def refused(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        main(list(map(str, arguments)))
    assert stop.value.code == 2
    said = capsys.readouterr().err.splitlines()
    assert said[-1].startswith("cflow: ")
    return said[-1]


def test_samples_are_text_by_default_and_a_few_are_printed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for num, printed in ((3, True), (9, False)):
        (tmp_path / "samples.txt").unlink(missing_ok=True)
        main(["sample", str(runs / "letters"), "-n", str(num), "--seed", "3"])
        lines = (tmp_path / "samples.txt").read_text().split("\n")
        texts = [LETTERS.decode(row) for row in drawn(runs / "letters", num, 3)]
        assert lines == [*texts, ""]
        said = capsys.readouterr().out
        assert said.startswith("\n".join([*texts, ""])) == printed
        assert said.splitlines()[-1].startswith(f"samples.txt: {num} samples, shape (12,), seed 3, Analytic(steps=64")


def test_tokens_are_whole_numbers_in_other_files(runs, tmp_path, capsys):
    x = drawn(runs / "letters", 4, 1).numpy()
    for ending in ("npy", "npz", "csv", "txt"):
        main(["sample", str(runs / "letters"), "-n", "4", "--seed", "1", "-o", str(tmp_path / f"x.{ending}")])
    assert LETTERS.decode(torch.tensor(x[0])) not in capsys.readouterr().out
    assert numpy.array_equal(numpy.load(tmp_path / "x.npy"), x)
    assert numpy.array_equal(numpy.load(tmp_path / "x.npz")["samples"], x)
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert lines[1] == ",".join(map(str, x[0]))
    assert numpy.array_equal(read_table(tmp_path / "x.csv").values.numpy(), x)


def test_texts_of_several_lines_are_separated_by_dashes(runs, tmp_path):
    main(["sample", str(runs / "lines"), "-n", "5", "--seed", "2", "-o", str(tmp_path / "x.txt")])
    texts = (tmp_path / "x.txt").read_text().removesuffix("\n").split("\n" + "-" * 40 + "\n")
    assert texts == [LINES.decode(row) for row in drawn(runs / "lines", 5, 2)]
    assert any("\n" in each for each in texts)


def test_texts_of_classes_have_their_class_above(runs, tmp_path):
    options = ["-n", "4", "--seed", "1", "-o", str(tmp_path / "x.txt")]
    main(["sample", str(runs / "classes"), *options])
    lines = (tmp_path / "x.txt").read_text().splitlines()
    assert lines[::2] == ["-" * 40 + f" {label}" for label in (0, 1, 2, 0)]
    assert all(text.count("abc"[label]) > 2 for text, label in zip(lines[1::2], (0, 1, 2, 0)))
    cflow.save(cflow.load(runs / "classes"), tmp_path / "run" / "model")
    (tmp_path / "run" / "metrics.json").write_text('{"classes": ["news", "poems", "code"]}')
    main(["sample", str(tmp_path / "run"), *options])
    again = (tmp_path / "x.txt").read_text().splitlines()
    assert again[::2] == ["-" * 40 + f" {name}" for name in ("news", "poems", "code", "news")]
    assert again[1::2] == lines[1::2]
    main(["sample", str(tmp_path / "run"), *options, "--label", "code"])
    assert all(len(line) == 12 and line.count("c") > 2 for line in (tmp_path / "x.txt").read_text().splitlines())


def test_what_would_control_a_terminal_is_not_printed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["sample", str(runs / "bytes"), "-n", "8", "--seed", "0"])
    with (tmp_path / "samples.txt").open(newline="") as file:
        text = file.read()
    control = {chr(code) for code in (*range(32), 127)} - {"\n", "\t"}
    assert control & set(text)  # the file has what was drawn
    assert not control & set(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("run", "output", "message"),
    [
        ("pairs", "x.png", "--output x.png: tokens of shape (2,) have no picture; choose .npy, .npz, .csv."),
        ("vectors", "x.png", "--output x.png: tokens of shape (2,) have no picture; choose .npy, .npz, .csv."),
        ("pairs", "x.txt", "this flow has no alphabet, so its samples are not text; choose .npy, .npz, .csv."),
        ("letters", "x.png", "tokens of shape (12,) have no picture; choose .txt, .npy, .npz, .csv."),
        ("letters", "x.jpg", "this ending is not supported; choose .txt, .npy, .npz, .csv."),
        ("letters", "x", "--output x: this ending is not supported; choose .txt"),
        ("tables", "x.txt", "samples of shape (3, 4) are not one text; choose .npy, .npz, .csv."),
    ],
)
def test_files_that_a_flow_cannot_be_written_to_are_refused_before_anything_is_drawn(
    run, output, message, runs, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for kind in (ctmc.TokenFlow, cflow.ContinuousFlow):
        monkeypatch.setattr(kind, "_sample", lambda *args, **options: pytest.fail("samples were drawn"))
    assert message in refused(["sample", runs / run, "-o", output], capsys)
    assert not list(tmp_path.iterdir())


def test_tokens_of_continuous_flows_are_whole_numbers(runs, tmp_path):
    main(["sample", str(runs / "vectors"), "-n", "3", "--steps", "4", "--seed", "1", "-o", str(tmp_path / "x.csv")])
    lines = (tmp_path / "x.csv").read_text().splitlines()
    assert all(each.isdecimal() and int(each) < 5 for line in lines[1:] for each in line.split(","))


def test_tokens_of_images_have_pictures(runs, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(cflow.plot, "images", lambda pixels, path, columns: shown.update(pixels=pixels))
    main(["sample", str(runs / "pictures"), "-n", "6", "--seed", "1", "-o", str(tmp_path / "x.png")])
    assert torch.equal(shown["pixels"], drawn(runs / "pictures", 6, 1).float())  # of two tokens: black and white


SAMPLERS = (
    (("--sampler", "analytic", "--steps", "5"), ctmc.Analytic(5)),
    (("--sampler", "euler", "--steps", "5", "--temperature", "0.5"), ctmc.Euler(5, temperature=0.5)),
    (("--sampler", "first_hitting"), ctmc.FirstHitting()),
    (("--steps", "3"), ctmc.Analytic(3)),
    (("--temperature", "0.3"), ctmc.Analytic(temperature=0.3)),
)


@pytest.mark.parametrize(("options", "sampler"), SAMPLERS)
def test_the_options_choose_the_sampler(options, sampler, runs, tmp_path, capsys):
    arguments = ["-n", "5", "--seed", "4", "-o", str(tmp_path / "x.npy")]
    main(["sample", str(runs / "letters"), *options, *arguments])
    expected = drawn(runs / "letters", 5, 4, sampler=sampler)
    assert numpy.array_equal(numpy.load(tmp_path / "x.npy"), expected.numpy())
    assert type(sampler).__name__ in capsys.readouterr().out


def test_the_sampler_of_the_run_is_the_default(runs, tmp_path, capsys):
    cflow.save(cflow.load(runs / "letters"), tmp_path / "model")
    note = {"sampler": "euler", "steps": 7, "temperature": 0.5}
    (tmp_path / "metrics.json").write_text(json.dumps({"sampler": note}))
    for options, sampler in (
        ((), ctmc.Euler(7, temperature=0.5)),
        (("--steps", "3"), ctmc.Euler(3, temperature=0.5)),
        (("--temperature", "1"), ctmc.Euler(7)),
        (("--sampler", "analytic"), ctmc.Analytic()),
    ):
        main(["sample", str(tmp_path), "-n", "5", "--seed", "4", "-o", str(tmp_path / "x.npy"), *options])
        expected = drawn(tmp_path / "model", 5, 4, sampler=sampler)
        assert numpy.array_equal(numpy.load(tmp_path / "x.npy"), expected.numpy())
        assert "seed 4, " + type(sampler).__name__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        (
            "letters",
            ("--solver", "heun"),
            "--solver heun: a TokenFlow has no solver; choose a sampler by --sampler: ana",
        ),
        ("letters", ("--rtol", "0.1"), "--rtol 0.1: a TokenFlow has no solver; choose a sampler by --sampler"),
        ("letters", ("--cuda-graph",), "--cuda-graph: a TokenFlow has no solver; choose a sampler"),
        ("letters", ("--sampler", "analitic"), "there is no such sampler; did you mean 'analytic'?"),
        ("letters", ("--steps", "0"), "positive integer"),
        ("letters", ("--temperature", "-1"), "temperature"),
        ("letters", ("--sampler", "thinning", "--steps", "3"), "--steps 3: the sampler Thinning has no steps"),
        (
            "exact",
            ("--steps", "3"),
            "--steps 3: the sampler FirstHitting has no steps; choose another one by --sampler",
        ),
        ("toys", ("--sampler", "analytic"), "--sampler analytic: a ContinuousFlow has no sampler; choose a solver by"),
        ("toys", ("--temperature", "0.5"), "--temperature 0.5: a ContinuousFlow has no sampler; choose a solver by"),
        ("spline", ("--sampler", "analytic"), "--sampler analytic: a NormalizingFlow has no solver and no steps; omit"),
    ],
)
def test_options_of_another_kind_of_flow_are_refused(run, options, message, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if run == "toys":
        cflow.save(cflow.ContinuousFlow(cflow.fields.MLP(2), cflow.bases.Normal(2)), tmp_path / run)
    if run == "spline":
        cflow.save(cflow.discrete.nsf(2, layers=1, hidden=(8,)), tmp_path / run)
    place = tmp_path / run if run in ("toys", "spline") else runs / run
    assert message in refused(["sample", place, *options], capsys)


def test_a_sentence_is_completed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["sample", str(runs / "cycles"), "--infill", "_b_", "--seed", "7"])
    *texts, last = capsys.readouterr().out.splitlines()
    assert texts == ["abc"] * 4  # one law has one answer
    assert last == "4 samples, shape (3,), seed 7, Analytic(steps=64)"
    assert not list(tmp_path.iterdir())
    main(["sample", str(runs / "cycles"), "--infill", "b", "-n", "2", "-o", "x.npy"])
    captured = capsys.readouterr()
    assert captured.out.splitlines()[:-1] == ["bca"] * 2
    assert "the sentence has 1 token, and the samples 3: 2 blanks are added at the end" in captured.err
    assert [ABC.decode(row) for row in torch.from_numpy(numpy.load("x.npy"))] == ["bca"] * 2
    main(["sample", str(runs / "cycles"), "--infill", "?a?", "--blank", "?", "-n", "1"])
    assert capsys.readouterr().out.splitlines()[0] == "cab"


def test_characters_that_the_alphabet_replaces_are_reported(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    alphabet = Characters("ab?", other="?")
    cflow.save(tokens(4, 3, alphabet), tmp_path / "model")
    main(["sample", "model", "--infill", "ax_b", "-n", "1"])
    captured = capsys.readouterr()
    assert "--infill: the alphabet of this flow changes 'ax' to 'a?'" in captured.err
    assert captured.out.startswith("a?")


def test_a_sentence_is_completed_for_each_class_with_the_sampler_of_the_options(runs, tmp_path, capsys):
    options = ["--sampler", "first_hitting", "--temperature", "0.7", "--seed", "5", "-o", str(tmp_path / "x.npy")]
    main(["sample", str(runs / "classes"), "--infill", "the ____ cat", "-n", "5", "--batch", "3", *options])
    flow, generator = cflow.load(runs / "classes"), torch.Generator().manual_seed(5)
    x = LETTERS.encode("the aaaa cat")
    fixed = torch.tensor([each != "_" for each in "the ____ cat"])
    sampler, labels = ctmc.FirstHitting(temperature=0.7), torch.arange(5) % 3
    parts = [flow.infill(x, fixed, (), each, generator=generator, sampler=sampler) for each in labels.split(3)]
    found = numpy.load(tmp_path / "x.npy")
    assert numpy.array_equal(found, torch.cat(parts).numpy())
    texts = [LETTERS.decode(row) for row in torch.from_numpy(found)]
    assert all((text[:4], text[8:]) == ("the ", " cat") for text in texts)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1::2][:5] == texts
    assert lines[-1].endswith("seed 5, FirstHitting(temperature=0.7)")


@pytest.mark.parametrize(
    ("run", "options", "message"),
    [
        ("letters", ("the cat_",), None),
        ("letters", ("The ___",), "--infill 'The ___': 'T' at position 0 is not in the alphabet of this flow (see"),
        ("letters", ("The ___",), "info`); write 't'."),
        ("letters", ("th3 ___",), "'3' at position 2 is not in the alphabet of this flow (see"),
        (
            "letters",
            ("a very long ____ sentence",),
            "these are 25 tokens, and the samples of this flow have 12; shorten",
        ),
        ("letters", ("twelve chars",), "there are no blanks to fill; mark each by _ (or see --blank)"),
        ("letters", ("the ___", "--blank", "__"), "--blank '__': a blank is marked by one character"),
        ("pairs", ("___",), "this flow has no alphabet for texts; call flow.infill in Python"),
        ("tables", ("___",), "this flow has no alphabet for texts; call flow.infill in Python"),
    ],
)
def test_sentences_that_cannot_be_completed(run, options, message, runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if message is None:
        main(["sample", str(runs / run), "--infill", *options, "-n", "1"])
        assert capsys.readouterr().out.startswith("the cat")
    else:
        assert message in refused(["sample", runs / run, "--infill", *options], capsys)
        assert not list(tmp_path.iterdir())


def scores_of(path):
    with path.open() as lines:
        return [float(row["log_prob"] or "nan") for row in csv.DictReader(lines)]


def bound(run, x, seed=0):
    return cflow.load(run).log_prob(x, generator=torch.Generator().manual_seed(seed)).tolist()


def test_tables_of_tokens_are_scored_by_the_bound(runs, tmp_path, capsys):
    x = drawn(runs / "letters", 70, 1)
    numpy.save(tmp_path / "x.npy", x.numpy().astype(numpy.uint8))
    numpy.savetxt(tmp_path / "x.csv", x.numpy(), fmt="%d.0", delimiter=",")
    for name in ("x.npy", "x.csv"):
        options = ["--seed", "2", "--batch", "100", "-o", str(tmp_path / "s.csv")]
        main(["score", "--draws", "1", str(runs / "letters"), str(tmp_path / name), *options])
        assert scores_of(tmp_path / "s.csv") == pytest.approx(bound(runs / "letters", x, 2))
        said = capsys.readouterr().out
        mean = numpy.mean(bound(runs / "letters", x, 2))
        assert f"70 rows, mean log-probability {mean:.6g} ± " in said
        assert f"nats (bound, 1 draw per row), {-mean / 12 / math.log(2):.4g} bits per token, 0 bad rows" in said


def test_a_class_in_the_last_column_is_the_condition(runs, tmp_path):
    x, labels = drawn(runs / "letters", 9, 1), torch.arange(9) % 3
    numpy.save(tmp_path / "x.npy", torch.cat([x, labels[:, None]], 1).numpy())
    main(["score", "--draws", "1", str(runs / "classes"), str(tmp_path / "x.npy"), "-o", str(tmp_path / "s.csv")])
    flow, generator = cflow.load(runs / "classes"), torch.Generator().manual_seed(0)
    expected = flow.log_prob(x, labels, generator=generator).tolist()
    assert scores_of(tmp_path / "s.csv") == pytest.approx(expected)


def test_the_average_of_draws_is_close_to_the_log_probability(runs, tmp_path):
    numpy.save(tmp_path / "x.npy", torch.stack([ABC.encode(text) for text in CYCLES]).numpy())
    main(["score", str(runs / "cycles"), str(tmp_path / "x.npy"), "--draws", "30", "-o", str(tmp_path / "s.csv")])
    assert scores_of(tmp_path / "s.csv") == pytest.approx([-math.log(3)] * 3, abs=1e-6)  # of the exact denoiser


def test_numbers_that_are_no_tokens_are_bad_rows(runs, tmp_path, capsys):
    (tmp_path / "x.csv").write_text("1,2\n0.5,1\n4,5\n-1,0\nx,1\n3,4\n")
    main(["score", "--draws", "1", str(runs / "pairs"), str(tmp_path / "x.csv"), "-o", str(tmp_path / "s.csv")])
    assert numpy.isfinite(scores_of(tmp_path / "s.csv")).tolist() == [True, False, False, False, False, True]
    captured = capsys.readouterr()
    for part in (
        "line 2: column 0 holds 0.5, not a whole number (0 to 4)",
        "line 3: column 1 holds 5, not a token of this flow (0 to 4)",
        "line 4: column 0 holds -1, not a token of this flow (0 to 4)",
        "line 5: column 0 holds 'x', not a number",
        "not a token of this flow: write whole numbers from 0 to 4",
    ):
        assert part in captured.err
    assert "6 rows" in captured.out
    assert "4 bad rows" in captured.out


def test_lines_of_a_text_are_rows(runs, tmp_path, capsys):
    texts = ["the quick fo", "brown fox ju", "mps over the"]
    content = f"{texts[0]}\n\n{texts[1]}\r\nshort\nThe lazy dog\n{texts[2]}"
    (tmp_path / "x.txt").write_text(content, newline="")
    main(["score", "--draws", "1", str(runs / "letters"), str(tmp_path / "x.txt"), "-o", str(tmp_path / "s.csv")])
    with (tmp_path / "s.csv").open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["line"] for row in rows] == ["1", "3", "4", "5", "6"]
    good = [float(row["log_prob"]) for row in rows if row["log_prob"]]
    assert good == pytest.approx(bound(runs / "letters", torch.stack([LETTERS.encode(text) for text in texts])))
    captured = capsys.readouterr()
    assert "x.txt: line 4: 5 tokens instead of 12" in captured.err
    assert "x.txt: line 5: Characters.encode: 'T' at position 0 is not one of the 27 symbols" in captured.err
    assert "5 rows" in captured.out
    assert "2 bad rows, 1 line without a row" in captured.out


def test_lines_that_are_shorter_than_a_row_end_with_the_end_of_the_alphabet(runs, tmp_path, capsys):
    texts = ["anna", "otto", "maximilianus", "io"]
    (tmp_path / "x.txt").write_text("\n".join([*texts, "maximilianus2"]))
    x = data.padded([NAMES.encode(text) for text in texts], NAMES.end_token, 12)
    for file, rows in (("x.txt", x), ("x.npy", x)):
        if file == "x.npy":
            numpy.save(tmp_path / file, x.numpy())
        main(["score", "--draws", "1", str(runs / "names"), str(tmp_path / file), "-o", str(tmp_path / "s.csv")])
        good = [each for each in scores_of(tmp_path / "s.csv") if not math.isnan(each)]
        expected = bound(runs / "names", rows)
        assert good == pytest.approx(expected)
        captured = capsys.readouterr()
        bits = -sum(expected) / (5 + 5 + 12 + 3) / math.log(2)  # each name and its end, if it has one
        assert f"1 draw per row), {bits:.4g} bits per token" in captured.out
        assert ("line 5: Characters.encode: '2'" in captured.err) == (file == "x.txt")


def test_short_samples_are_lines_without_their_ends(runs, tmp_path):
    main(["sample", str(runs / "names"), "-n", "40", "--seed", "2", "-o", str(tmp_path / "x.txt")])
    texts = [NAMES.decode(row) for row in drawn(runs / "names", 40, 2)]
    assert (tmp_path / "x.txt").read_text() == "\n".join([*texts, ""])
    assert len(set(map(len, texts))) > 2


def test_a_text_with_line_breaks_in_the_alphabet_is_cut_into_rows(runs, tmp_path, capsys):
    text = "ab\n" * 10 + "aa"
    (tmp_path / "x.txt").write_text(text)
    main(["score", "--draws", "1", str(runs / "lines"), str(tmp_path / "x.txt"), "-o", str(tmp_path / "s.csv")])
    expected = bound(runs / "lines", LINES.encode(text)[:24].reshape(2, 12))
    assert scores_of(tmp_path / "s.csv") == pytest.approx(expected)
    assert "2 rows" in (said := capsys.readouterr().out)
    assert "8 tokens after the last row" in said


@pytest.mark.parametrize("run", ["letters", "lines", "names"])
def test_samples_can_be_scored(run, runs, tmp_path, capsys):
    alphabet = cflow.load(runs / run).alphabet
    for num in (1, 30):
        main(["sample", str(runs / run), "-n", str(num), "--seed", "2", "-o", str(tmp_path / "x.txt")])
        main(["score", "--draws", "1", str(runs / run), str(tmp_path / "x.txt"), "-o", str(tmp_path / "s.csv")])
        x = drawn(runs / run, num, 2)
        if alphabet.end_token is not None:
            texts = [alphabet.decode(row) for row in x]
            x = data.padded([alphabet.encode(text) for text in texts if text], alphabet.end_token, 12)
        assert scores_of(tmp_path / "s.csv") == pytest.approx(bound(runs / run, x))
        assert "0 bad rows" in capsys.readouterr().out


def test_lines_of_dashes_in_a_text_are_reported(runs, tmp_path, capsys):
    rule = "-" * 40
    (tmp_path / "x.txt").write_text(f"ab\nabababab\n\n{rule}\nabab\n{rule}\nab-babababab\n{rule}\n\n\nbababababa")
    main(["score", "--draws", "1", str(runs / "lines"), str(tmp_path / "x.txt"), "-o", str(tmp_path / "s.csv")])
    x = torch.stack([LINES.encode(text) for text in ("ab\nabababab\n", "\n\nbababababa")])
    found = scores_of(tmp_path / "s.csv")
    assert [found[0], found[3]] == pytest.approx(bound(runs / "lines", x))
    said = capsys.readouterr().err
    assert "row 1: 4 tokens instead of 12" in said
    assert "row 2: Characters.encode: '-' at position 2" in said
    assert "write 12 tokens in every text between lines of 40 dashes" in said


def test_a_file_that_was_not_named_is_not_replaced(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for command, file in (
        (["sample", runs / "letters"], "samples.txt"),
        (["score", runs / "names", "x"], "scores.csv"),
    ):
        Path(file).write_text("mine")
        assert f"{file} exists; pass --output {file} to replace it" in refused(command, capsys)
        assert Path(file).read_text() == "mine"
    main(["sample", str(runs / "letters"), "-n", "1", "-o", "samples.txt"])
    assert Path("samples.txt").read_text() != "mine"


@pytest.mark.parametrize(
    ("run", "content", "options", "message"),
    [
        ("pairs", "ab\n", (), "this flow has no alphabet for texts; pass a table"),
        ("classes", "ab\n", (), "each row needs its condition, which a text does not have; pass a table of tokens"),
        ("lines", "ab\nac\n" * 10, (), "line 2: Characters.encode: 'c' at position 1 is not one of the 3 symbols"),
        ("lines", "ab\n", (), "the text has 3 tokens, and a row of this flow has 12; pass a longer text"),
        ("letters", "", (), "none of the 0 rows has a score"),
        ("letters", "the", ("--columns", "0"), "--columns: a text has no columns; omit the option, or pass a table"),
        ("letters", "the", ("--id", "0"), "--id: a text has no columns"),
        ("letters", "the", ("--solver", "heun"), "--solver heun: a TokenFlow has no solver; omit the option"),
        ("letters", "the", ("--draws", "0"), "--draws 0: this must be at least 1"),
    ],
)
def test_texts_that_cannot_be_scored(run, content, options, message, runs, tmp_path, capsys):
    (tmp_path / "x.txt").write_text(content)
    arguments = ["score", runs / run, tmp_path / "x.txt", "-o", tmp_path / "s.csv", *options]
    assert message in refused(arguments, capsys)
    assert not (tmp_path / "s.csv").exists()


def test_info_shows_source_path_and_alphabet(runs, capsys):
    main(["info", str(runs / "letters")])
    said = capsys.readouterr().out
    for part in (
        "source         Mask(event_shape=(12,), vocabulary=27)",
        "path           Mixture(schedule=Linear()",
        "sampler        Analytic(steps=64)",
        "alphabet       27 tokens: Characters(symbols='abc",
        "event          (12,), likelihood bound",
    ):
        assert part in said


def test_own_classes_are_imported_first(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    source = "import cflow, torch\n\n@cflow.register('tests.OfAFile')\nclass OfAFile(torch.nn.Module):\n"
    Path("parts_of_a_user.py").write_text(source + inspect.getsource(Same.forward))
    sys.path.insert(0, str(tmp_path))
    module = importlib.import_module("parts_of_a_user")
    vectors = cflow.ContinuousFlow(module.OfAFile(), bases.Normal((2, 5)), path=paths.Linear("logits"))
    cflow.save(vectors.with_transform(OneHot(2, 5)), "model")
    # As in a new process, nothing is known.
    del registry._classes["tests.OfAFile"], sys.modules["parts_of_a_user"]
    sys.path.remove(str(tmp_path))
    options = ["sample", "model", "-n", "2", "--steps", "2", "-o", "x.csv"]
    said = refused(options, capsys)
    assert "'tests.OfAFile' is not a registered class; import the module that defines it" in said
    assert "cflow --import MODULE" in said
    assert "--import no_such_parts: No module named 'no_such_parts'" in refused(
        ["--import", "no_such_parts", *options], capsys
    )
    assert "--import : " in refused(["--import"], capsys)
    main(["--import", "parts_of_a_user", *options])
    assert Path("x.csv").is_file()
