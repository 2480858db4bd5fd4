"""The recipe for text as a user runs it, shortened; what it leaves behind is complete."""

import importlib
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import cflow
from cflow import ctmc, data, fields, metrics, objectives

RECIPE = Path(__file__).parents[2] / "recipes" / "text.py"
SMALL = {"steps": 6, "width": 32, "depth": 2, "batch_size": 8, "length": 16, "evaluations": (2,), "draws": 2}
STORY = "the cat sat on the mat. a dog ran to the cat, and the cat ran up a tree.\n" * 20


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("story.txt").write_text(STORY)
    return importlib.import_module("text")


@pytest.fixture
def texts():
    return importlib.import_module("text_data")


def report_of(folder):
    return json.loads((Path(folder) / "metrics.json").read_text())


def weights(folder):
    return cflow.load(Path(folder) / "model").state_dict()


def equal(one, two):
    return all(torch.equal(one[name], two[name]) for name in one)


def test_the_command_leaves_text_pictures_and_a_model(tmp_path):
    (tmp_path / "story.txt").write_text(STORY)
    options = "--data story.txt --steps 6 --width 32 --depth 2 --batch-size 8 --length 16 --evaluations 2 4"
    command = [sys.executable, str(RECIPE), *options.split(), "--baseline", "ar"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "text-story"
    names = {each.name for each in folder.iterdir()}
    assert names >= {"model", "samples.txt", "decoding.png", "training.png", "frontier.png", "metrics.json", "ar"}
    report = report_of(folder)
    bits = report["bits_per_character"]
    assert set(bits) == {"unigram", "bigram", "flow", "ar"}
    assert bits["bigram"] < bits["unigram"] < math.log2(report["alphabet_size"])
    assert report["bound"] == {"rate": "MinimalJump()", "draws": 8, "rows": 9}
    assert report["sampler"] == {"sampler": "analytic", "steps": 4, "temperature": 1.0}
    for row in report["frontier"].values():
        assert set(row) == {"bits_under_ar", "token_entropy_bits", "distinct_4grams"}
    said = done.stdout
    assert f"flow             {bits['flow']:.3f} ± {report['standard_error']:.3f}  (an upper bound: rate" in said
    assert f"autoregressive   {bits['ar']:.3f} ± {report['standard_error_ar']:.3f}  (exact)" in said
    flow = cflow.load(folder / "model")
    assert flow.alphabet == data.Characters.fit(STORY)
    text = flow.alphabet.decode(flow.sample((), sampler=ctmc.Analytic(steps=2)))
    assert len(text) == 16
    assert set(text) <= set(STORY)
    held = flow.alphabet.encode(STORY[-16 * 9 :]).reshape(9, 16)
    with torch.no_grad():
        nats, _ = flow.log_prob_estimate(held, draws=64, generator=torch.Generator().manual_seed(0))
    # Six steps have hardly changed the network, so the flow knows little more than that there are 20 characters.
    assert bits["flow"] == pytest.approx(float(metrics.bits_per_token(nats, 16).mean()), abs=0.1)
    assert bits["flow"] < math.log2(report["alphabet_size"])


def test_a_run_continues_where_it_stopped(recipe, monkeypatch):
    monkeypatch.setattr(recipe, "JUDGED", 8)
    monkeypatch.setattr(recipe, "TEMPERATURES", (0.8, 1.0))
    options = {**SMALL, "data": "story.txt", "baseline": "ar"}
    recipe.main(recipe.Options(out=Path("whole"), **options))
    shutil.copytree("whole", "parts")
    with pytest.raises(ValueError, match="resume=True"):
        recipe.main(recipe.Options(out=Path("parts"), **options))
    for file in ("model/flow.safetensors", "metrics.json", "samples.txt"):
        Path("parts", file).unlink()
    for folder in ("parts", "parts/ar"):  # the last step of both is lost
        shutil.rmtree(sorted(Path(folder, "checkpoints").iterdir())[-1])
    recipe.main(recipe.Options(out=Path("parts"), resume=True, **options))
    assert equal(weights("whole"), weights("parts"))
    one, two = report_of("whole"), report_of("parts")
    for name in ("bits_per_character", "frontier"):
        assert one[name] == two[name]
    assert Path("whole/samples.txt").read_text() == Path("parts/samples.txt").read_text()


def test_tokens_of_every_integer_dtype_train_the_same_flow(recipe, texts, monkeypatch):
    for dtype in (torch.uint8, torch.int32, torch.int64):
        monkeypatch.setattr(texts, "smallest", lambda tokens, size, dtype=dtype: tokens.to(dtype))
        corpus = texts.read("story.txt", "characters", None, 512, 10**6, SMALL["length"])
        assert corpus.train.dtype == corpus.validation.dtype == dtype
        options = recipe.Options(**SMALL)
        flow = recipe.build(options, corpus)
        recipe.learn(flow, objectives.FlowMatching(), corpus, options, Path(str(dtype)))
    assert equal(weights("torch.uint8"), weights("torch.int32"))
    assert equal(weights("torch.uint8"), weights("torch.int64"))


@pytest.mark.parametrize("source", ["uniform", "marginal"])
def test_random_tokens_in_place_of_hidden_ones(recipe, source, capsys):
    options = {"tokens": "bytes", "schedule": "cosine", "network": "transformer"}
    recipe.main(recipe.Options(data="story.txt", source=source, **options, **SMALL))
    flow = cflow.load(f"runs/text-story-bytes-{source}/model")
    assert (flow.source.states, flow.path.head, flow.path.schedule) == (256, "leave-one-out", ctmc.Cosine())
    assert isinstance(flow.denoiser, fields.TokenDiT)
    assert flow.denoiser.reads_time
    assert "TimeReversal()" in capsys.readouterr().out
    if source == "marginal":
        frequency = STORY[: len(STORY) * 9 // 10].count("t") / (len(STORY) * 9 // 10)
        assert float(flow.source.frequencies[ord("t")]) == pytest.approx(frequency, rel=0.2)


def test_pieces_count_per_character(recipe):
    pytest.importorskip("tokenizers")
    recipe.main(recipe.Options(data="story.txt", tokens="pieces", vocabulary=300, **{**SMALL, "length": 8}))
    report = report_of("runs/text-story-pieces")
    assert report["characters_per_token"] > 1.5
    flow = cflow.load("runs/text-story-pieces/model")
    uniform = math.log2(flow.alphabet.size) / report["characters_per_token"]  # what the network knew at first
    assert 0.5 * uniform < report["bits_per_character"]["flow"] < uniform


def test_sequences_of_a_file_are_not_joined(recipe, texts):
    Path("genome.fasta").write_text(">a\n" + "ACGT" * 30 + "\n>short\nAC\n>b\n" + "GGTTN" * 24 + "\n>c\n" + "TA" * 20)
    corpus = texts.read("genome.fasta", "characters", "ACGTN", 512, 10**6, 10)
    assert corpus.note.startswith("4 of 4 sequences; 1 of 3 texts to learn from have fewer than 10 tokens")
    rows = {corpus.alphabet.decode(row) for row in corpus.train}
    assert all("N" not in row or "A" not in row for row in rows)
    assert {corpus.alphabet.decode(row) for row in corpus.held} == {"ATATATATAT"}
    recipe.main(recipe.Options(data="genome.fasta", alphabet="ACGTN", **{**SMALL, "length": 10}))
    assert cflow.load("runs/text-genome/model").alphabet == data.Characters("ACGTN")


def test_lines_are_rows(recipe, texts, capsys):
    syllables = ["ab", "an", "na", "bo", "no"]
    names = ["".join(each) for n in (2, 3) for each in itertools.product(syllables, repeat=n)]
    Path("names.txt").write_text("\n".join([*names, *names[:9], "", "a name that is longer than all others"]))
    corpus = texts.read("names.txt", "characters", None, 512, 10**6, 6, by_line=True)
    assert corpus.note == "150 different lines of up to 6 characters, in random order; 1 longer ones are not used"
    assert corpus.alphabet == data.Characters("\nabno", end="\n")
    parts = [[corpus.alphabet.decode(row) for row in each] for each in (corpus.train, corpus.validation, corpus.held)]
    assert sorted(itertools.chain(*parts)) == sorted(set(names))
    assert corpus.characters.tolist() == [min(len(name) + 1, 6) for name in parts[2]]
    assert corpus.alphabet.encode("\n".join([*parts[0], ""])).equal(corpus.seen)
    # The bits are those of the names and their ends, from probabilities by hand.
    single = {each: "\n".join([*parts[0], ""]).count(each) + 1 for each in "\nabno"}
    bits = -sum(math.log2(single[each] / sum(single.values())) for name in parts[2] for each in f"{name}\n"[:6])
    assert texts.counted_bits(corpus)["unigram"] == pytest.approx(
        bits / sum(min(len(name) + 1, 6) for name in parts[2])
    )

    Path("names.txt").write_text("\n".join(names))
    recipe.main(recipe.Options(data="names.txt", rows="lines", **{**SMALL, "length": None}))
    report = report_of("runs/text-names-lines")
    flow = cflow.load("runs/text-names-lines/model")
    assert flow.event_shape == (6,)
    bits = report["bits_per_character"]
    assert bits["bigram"] < bits["unigram"]
    assert bits["flow"] < 6 * math.log2(5) / (6 * report["characters_per_token"])  # what a network knows at first
    assert "\\n" not in capsys.readouterr().out  # ends are not shown
    with pytest.raises(ValueError, match="omit --tokens"):
        recipe.main(recipe.Options(data="names.txt", rows="lines", tokens="bytes", **SMALL))
    Path("names.txt").write_text("\n".join(names[:8]))
    with pytest.raises(ValueError, match="8 different lines of at most 4 characters are too few"):
        recipe.main(recipe.Options(data="names.txt", rows="lines", **{**SMALL, "length": None}))


def test_the_reference_is_prose_without_repetitions(texts):
    lines = texts.reference().split("\n")
    assert len(lines) > 500
    assert len(lines) == len(set(lines))
    assert all(line.isascii() and line[-1] in ".:" for line in lines)
    (train,), _, (held,) = texts.split(["\n".join(lines)])
    assert not set(train.split("\n")) & set(held.split("\n"))


def test_the_library_is_bounded(texts):
    code = texts.library(300_000)
    assert 300_000 < len(code) < 1_000_000
    assert "import" in code
    (text,), note = texts.texts("stdlib", 1000)
    assert len(text) == 1000
    assert "1,000" in note


def test_parts_have_no_character_in_common(texts):
    letters = "".join(map(chr, range(40, 100)))
    for pieces in ([letters], [letters[:50], letters[50:52], letters[52:]], list(letters)):
        parts = texts.split(pieces)
        assert [len("".join(part)) for part in parts] == [51, 3, 6]
        assert "".join("".join(part) for part in parts) == letters
        assert all(any(text in piece for piece in pieces) for part in parts for text in part)


def test_counts_predict_as_computed_by_hand(texts):
    """Training text aab: frequencies 3/5 and 2/5 with one more of each; pairs aa and ab, each once."""
    held, seen = torch.tensor([[0, 1]]), torch.tensor([0, 0, 1])
    corpus = texts.Corpus("x", "", data.Characters("ab"), None, None, held, seen, torch.tensor([2]))
    found = texts.counted_bits(corpus)
    assert found["unigram"] == pytest.approx(-(math.log2(3 / 5) + math.log2(2 / 5)) / 2)
    after_a = (1 + 2 * 2 / 5) / (2 + 2)  # two different followers were seen
    assert found["bigram"] == pytest.approx(-(math.log2(3 / 5) + math.log2(after_a)) / 2)


def test_the_baseline_is_a_distribution_and_draws_from_it(generator):
    baseline = importlib.import_module("text_baseline")
    network = fields.TokenDiT(3, 3, 2, width=16, depth=1, heads=2, reads_time=False, causal=True)
    for each in network.parameters():
        torch.nn.init.normal_(each, std=0.3, generator=generator)
    flow = baseline.Autoregressive(network)
    rows = torch.tensor(list(itertools.product(range(2), repeat=3)), dtype=torch.uint8)
    probs = flow.log_prob(rows).exp().detach()
    assert float(probs.sum()) == pytest.approx(1, abs=1e-6)
    assert probs.max() > 1.5 * probs.min()
    count = 4000
    draws = flow.sample((count,), generator=generator)
    frequencies = torch.bincount(draws @ torch.tensor([4, 2, 1]), minlength=8) / count
    assert ((frequencies - probs).abs() < 5 * (probs * (1 - probs) / count).sqrt()).all()
    likeliest = flow.sample((20,), temperature=1e-6, generator=generator)
    assert len(likeliest.unique(dim=0)) == 1


def test_mistakes_are_explained(recipe):
    Path("latin.txt").write_bytes(b"caf\xe9" * 200)
    Path("empty.txt").write_text("")
    for options, error, message in (
        ({"data": "nowhere.txt"}, FileNotFoundError, "no such file; pass a text, or one of reference, stdlib"),
        ({"data": "latin.txt"}, ValueError, "byte 3 is not UTF-8 text; save the file as UTF-8"),
        ({"data": "empty.txt"}, ValueError, "the text is empty"),
        ({"alphabet": "abc"}, ValueError, "'t' at position 0 is not one of the 3 symbols"),
        ({"alphabet": "abc", "tokens": "bytes"}, ValueError, "goes with --tokens characters"),
        ({"length": 1000}, ValueError, "0 for validation and 0 for the test; pass a longer text, or a smaller"),
        ({"width": 40}, ValueError, "pass a multiple of 32"),
        ({"draws": 1}, ValueError, "needs 2 or more"),
        ({"steps": 0}, ValueError, "--steps 0: pass 1 or more"),
        ({"evaluations": (8, 0)}, ValueError, "--evaluations 8 0"),
        ({"temperature": 0.0}, ValueError, "pass a positive number"),
    ):
        with pytest.raises(error, match=message):
            recipe.main(recipe.Options(**{**SMALL, "data": "story.txt", **options}))
    assert not Path("runs").exists()
