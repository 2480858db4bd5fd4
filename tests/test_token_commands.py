"""The commands on flows over tokens: text that is drawn, completed and scored."""

import numpy
import pytest
import torch

import cflow
from cflow.cli import main
from cflow.data import Bytes, Characters, read_table
from cflow.flow import BaseFlow

LETTERS = Characters("abcdefghijklmnopqrstuvwxyz ")
LINES = Characters("ab\n")


@cflow.register("tests.Vocabulary")
class Vocabulary(torch.nn.Module):
    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary = vocabulary


@cflow.register("tests.Tokens")
class Tokens(BaseFlow):
    """Draws tokens with equal probabilities."""

    likelihood = "bound"
    options = {"sample": ("sampler",)}

    def __init__(self, shape, source, alphabet=None):
        super().__init__(shape)
        self.shape, self.source, self.alphabet = shape, source, alphabet

    def _sample(self, count, context, generator, sampler=None):
        return torch.randint(self.source.vocabulary, (count, *self.event_shape), generator=generator)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for name, alphabet in (("letters", LETTERS), ("lines", LINES), ("bytes", Bytes())):
        cflow.save(Tokens(12, Vocabulary(alphabet.size), alphabet), folder / name / "model")
    cflow.save(Tokens(2, Vocabulary(5)), folder / "pairs")
    cflow.save(Tokens((1, 4, 4), Vocabulary(2)), folder / "pictures")
    cflow.save(Tokens((3, 4), Vocabulary(27), LETTERS), folder / "tables")
    return folder


def drawn(run, num, seed):
    return cflow.load(run).sample((num,), generator=torch.Generator().manual_seed(seed))


def test_samples_are_text_by_default_and_a_few_are_printed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for num, printed in ((3, True), (9, False)):
        main(["sample", str(runs / "letters"), "-n", str(num), "--seed", "3"])
        lines = (tmp_path / "samples.txt").read_text().split("\n")
        texts = [LETTERS.decode(row) for row in drawn(runs / "letters", num, 3)]
        assert lines == [*texts, ""]
        said = capsys.readouterr().out
        assert said.startswith(
            "\n".join([*texts, ""]) if printed else f"samples.txt: {num} samples, shape (12,), seed 3"
        )
        assert f"samples.txt: {num} samples" in said


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


def test_what_would_control_a_terminal_is_not_printed(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["sample", str(runs / "bytes"), "-n", "8", "--seed", "0"])
    text, said = (tmp_path / "samples.txt").open(newline="").read(), capsys.readouterr().out
    control = {chr(code) for code in (*range(32), 127)} - {"\n", "\t"}
    assert control & set(text)  # the file has what was drawn
    assert not control & set(said)


@pytest.mark.parametrize(
    ("run", "output", "message"),
    [
        ("pairs", "x.png", "--output x.png: tokens of shape (2,) have no picture; choose .npy, .npz, .csv."),
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
    monkeypatch.setattr(Tokens, "_sample", lambda *args, **options: pytest.fail("samples were drawn"))
    with pytest.raises(SystemExit) as stop:
        main(["sample", str(runs / run), "-o", output])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_tokens_of_images_have_pictures(runs, tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(cflow.plot, "images", lambda pixels, path, columns: shown.update(pixels=pixels))
    main(["sample", str(runs / "pictures"), "-n", "6", "--seed", "1", "-o", str(tmp_path / "x.png")])
    assert torch.equal(shown["pixels"], drawn(runs / "pictures", 6, 1).float())  # of two tokens: black and white
