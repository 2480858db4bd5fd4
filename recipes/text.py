"""Text by a token flow: from a text to new text, held-out bits per character and filled gaps, in one command.

    python recipes/text.py                                      # prose of Python's documentation, by characters
    python recipes/text.py --data book.txt                      # your own text
    python recipes/text.py --data genome.fasta --alphabet ACGTN # sequences
    python recipes/text.py --data names.txt --rows lines        # names, SMILES: each line is a text
    python recipes/text.py --data stdlib --tokens pieces        # Python code, by pieces of words
    python recipes/text.py --baseline ar                        # an autoregressive transformer beside it
    python recipes/text.py --source uniform                     # from random characters in place of hidden ones

A network learns to fill in hidden tokens (or, with another source, to find and correct random ones). A sampler starts
with a row in which all tokens are hidden, and reveals them step by step, in any order. So the same flow completes a
text with gaps. Its likelihood is a lower bound, so bits per character are an upper bound. They are printed next to what
counts of characters, and of pairs of characters, reach. The last tenth of the text is held out for this. The twentieth
before it decides when to stop, and which weights are kept.

``--baseline ar`` trains a transformer of about the same size by the next token, on the same rows, for as many steps.
Its bits are exact. It also judges samples: at several temperatures, the bits per token that it needs for them are
printed next to the entropy of their tokens, since each alone can be made as good as one likes.

Writes ``model/`` (``cflow sample`` draws from it), ``samples.txt``, ``decoding.png``, ``training.png``,
``metrics.json``, ``history.csv`` and ``checkpoints/`` into one folder; with a baseline also ``frontier.png`` and
``ar/``.
"""

import math
import sys
import time
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import text_data
import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed
from text_baseline import Autoregressive

from cflow import ctmc, data, fields, metrics, objectives, plot, training
from cflow.cli import run_recipe

SCHEDULES = {
    "linear": ctmc.Linear(),
    "cosine": ctmc.Cosine(),
    "polynomial": ctmc.Polynomial(),
    "log-linear": ctmc.LogLinear(),
}
TEMPERATURES = (0.6, 0.7, 0.8, 0.9, 1.0, 1.1)
JUDGED = 64  # samples at each of them


@dataclass
class Options:
    """Trains a token flow on a text, measures it, and draws new text from it."""

    data: str = "reference"
    """A text file, a FASTA file (.fa, .fasta), or: reference (Python's documentation), stdlib (its library)."""
    tokens: Literal["characters", "bytes", "pieces"] = "characters"
    """What is a token: a character, a byte of UTF-8, or a piece of a word (needs the package tokenizers)."""
    rows: Literal["windows", "lines"] = "windows"
    """What is a row: any part of the text, or one line (one sequence of a FASTA file), which may be short."""
    alphabet: str | None = None
    """The characters of the alphabet, such as ACGTN. Default: those of the text."""
    vocabulary: int = 512
    """Most characters of an alphabet (rarer ones become U+FFFD), or most pieces."""
    max_characters: int = 2_000_000
    """Characters of the text that are used, at most."""
    source: Literal["mask", "uniform", "marginal"] = "mask"
    """Where samples start: hidden tokens, or random ones, equally likely or as frequent as in the text."""
    schedule: Literal["linear", "cosine", "polynomial", "log-linear"] = "linear"
    """How the share of tokens that are revealed depends on time."""
    baseline: Literal["none", "ar"] = "none"
    """Also train an autoregressive transformer of about the same size, and judge samples by it."""
    length: int | None = None
    """Tokens in a row. Default: 64, or those of the longest line."""
    network: Literal["convolutions", "transformer"] = "convolutions"
    """Network of the flow: dilated convolutions learn sooner on short rows, a transformer sees far."""
    width: int = 128
    """Width of the networks, a multiple of 32."""
    depth: int = 10
    """Blocks of convolutions; a transformer has one block for 2.5 of these, which is about the same size."""
    steps: int = 3000
    """Training steps, at most."""
    batch_size: int = 16
    """Rows per step, on each process."""
    lr: float = 2e-3
    """Peak learning rate (warm-up, then cosine to zero)."""
    evaluations: tuple[int, ...] = (8, 32, 128)
    """Steps of the samplers that draw samples; each is at most one evaluation of the network."""
    temperature: float = 1.0
    """Temperature of the samples; below 1, likely tokens become more frequent."""
    draws: int = 8
    """Draws of the bound for each held-out row, two or more."""
    out: Path | None = None
    """Where everything is written. Default: runs/text, or runs/text-<data> for other data and tokens."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def check(options: Options) -> None:
    """Raises for options that cannot be used, before anything is read."""
    if options.width < 32 or options.width % 32:
        raise ValueError(f"--width {options.width}: a head has 32 numbers; pass a multiple of 32, such as 128.")
    for name in ("length", "depth", "steps", "batch_size", "max_characters"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise ValueError(f"--{name.replace('_', '-')} {getattr(options, name)}: pass 1 or more.")
    if options.draws < 2:
        raise ValueError(f"--draws {options.draws}: a standard error needs 2 or more.")
    if not options.evaluations or min(options.evaluations) < 1:
        raise ValueError(f"--evaluations {' '.join(map(str, options.evaluations))}: pass numbers of 1 or more.")
    if options.temperature <= 0:
        raise ValueError(f"--temperature {options.temperature}: pass a positive number, such as 0.9.")


# Learning


def network(options: Options, states: int, vocabulary: int) -> torch.nn.Module:
    """Builds the network of the flow. How many tokens are hidden tells the time; other sources need to read it."""
    torch.manual_seed(options.seed)  # its initial weights; everything else has its own generators
    reads_time = options.source != "mask"
    if options.network == "transformer":
        return transformer(options, states, vocabulary, reads_time=reads_time)
    # Together the blocks see the whole row, and each of its tokens first through near ones.
    dilations = [2**k for k in range(10) if k == 0 or 2**k <= options.length / 8]
    return fields.TokenConv(
        options.length,
        states,
        vocabulary,
        width=options.width,
        depth=options.depth,
        kernel=3,
        dilations=dilations,
        reads_time=reads_time,
    )


def transformer(options: Options, states: int, vocabulary: int, **settings) -> fields.TokenDiT:
    """Builds a transformer with about as many parameters as the convolutions: one block for 2.5 of theirs."""
    return fields.TokenDiT(
        options.length,
        states,
        vocabulary,
        width=options.width,
        depth=max(1, round(options.depth / 2.5)),
        heads=options.width // 32,
        **settings,
    )


def autoregressive(options: Options, vocabulary: int) -> Autoregressive:
    """Builds the baseline."""
    torch.manual_seed(options.seed)
    return Autoregressive(transformer(options, vocabulary + 1, vocabulary, reads_time=False, causal=True))


def build(options: Options, corpus: text_data.Corpus) -> ctmc.TokenFlow:
    """Builds the flow, with the alphabet that turns its samples into text."""
    size = corpus.alphabet.size
    match options.source:
        case "mask":
            source = ctmc.Mask(options.length, size)
        case "uniform":
            source = ctmc.Uniform(options.length, size)
        case "marginal":
            rows = corpus.train if options.rows == "lines" else data.windows(corpus.seen, options.length)
            source = ctmc.Marginal.fit(rows, size)
    # With random tokens, the network need not learn again what the token at its own place tells.
    head = "denoiser" if options.source == "mask" else "leave-one-out"
    path = ctmc.Mixture(SCHEDULES[options.schedule], head=head)
    return ctmc.TokenFlow(network(options, source.states, size), source, path=path, alphabet=corpus.alphabet)


def learn(flow, objective, corpus: text_data.Corpus, options: Options, out: Path) -> training.Run:
    """Trains flow or baseline: the same rows, steps and learning rates."""
    return training.fit(
        flow,
        objective,
        corpus.train,
        steps=options.steps,
        batch_size=min(options.batch_size, len(corpus.train)),
        lr=options.lr,
        schedule=training.Cosine(warmup=min(200, options.steps // 5)),
        ema=training.EMA(decay=0.995),
        validation=corpus.validation[:256],
        validate_every=max(1, options.steps // 20),
        patience=6,
        checkpoint_every=max(1, options.steps // 10),
        seed=options.seed,
        out=out,
        save_model=isinstance(flow, ctmc.TokenFlow),
        resume=options.resume,
        progress=True,
    )


def millions(flow) -> str:
    """Returns the number of parameters."""
    return f"{sum(each.numel() for each in flow.parameters()) / 1e6:.2f} M"


# Measuring


def in_batches(function, rows: torch.Tensor) -> torch.Tensor:
    """Computes a function of rows in portions that fit in memory."""
    return torch.cat([function(part) for part in rows.split(256)])


def bits(nats: torch.Tensor, corpus: text_data.Corpus) -> metrics.Estimate:
    """Returns bits per character of rows from their log-probabilities, with the standard error over rows.

    Both are those of a ratio: the bits of all rows by their characters. Padding costs bits, and has no characters.
    """
    each, characters = -nats.double() / math.log(2), corpus.characters.double()
    value = float(each.sum() / characters.sum())
    spread = float((each - value * characters).std()) / float(characters.mean())
    return metrics.Estimate(value, spread / math.sqrt(len(each)))


def held_out(flow, corpus: text_data.Corpus, options: Options) -> metrics.Estimate:
    """Computes the bound of the flow on the held-out rows, in bits per character."""
    generator = torch.Generator(flow.device).manual_seed(options.seed + 1)
    with torch.no_grad():
        bound = lambda rows: flow.log_prob_estimate(rows, draws=options.draws, generator=generator)[0]
        return bits(in_batches(bound, corpus.held).cpu(), corpus)


def judged(x: torch.Tensor, judge: Autoregressive, corpus: text_data.Corpus) -> dict[str, float]:
    """Measures samples: bits per token under the judge, and the entropy of their tokens, which belong together."""
    with torch.no_grad():
        nats = in_batches(judge.log_prob, x).double()
    return {
        "bits_under_ar": float(metrics.bits_per_token(nats, x.shape[1]).mean()),
        "token_entropy_bits": float(metrics.token_entropy(x, corpus.alphabet.size).mean()) / math.log(2),
        "distinct_4grams": metrics.distinct_ngrams(x, min(4, x.shape[1])),
    }


def frontier(flow, judge: Autoregressive, corpus: text_data.Corpus, options: Options, generator) -> dict:
    """Judges samples at several temperatures, as many steps as tokens; those of the baseline; and held-out rows."""
    steps = options.length
    rows = {"held-out text": corpus.held[:JUDGED].long()}
    for temperature in TEMPERATURES:
        sampler = ctmc.Analytic(steps=steps, temperature=temperature)
        rows[f"flow, temperature {temperature}"] = flow.sample((JUDGED,), sampler=sampler, generator=generator)
    for temperature in (0.8, 1.0):
        name = f"ar, temperature {temperature}"
        rows[name] = judge.sample((JUDGED,), temperature=temperature, generator=generator)
    return {name: judged(each, judge, corpus) for name, each in rows.items()}


def draw_frontier(table: dict, file: Path) -> None:
    """Draws bits under the baseline against token entropy: samples should be where the text is."""
    figure = plot.new_figure(5.2, 4.0)
    axis = figure.subplots()
    # Labels of the two are on different sides of their points, as the curves may be close to each other.
    for kind, colour, side in (("flow", plot.BLUE, (4, -9)), ("ar", plot.ORANGE, (-15, 5))):
        rows = {name.split()[-1]: row for name, row in table.items() if name.startswith(kind)}
        x, y = ([row[key] for row in rows.values()] for key in ("token_entropy_bits", "bits_under_ar"))
        axis.plot(x, y, "o-", color=colour, label="flow" if kind == "flow" else "autoregressive", ms=4, lw=1)
        for label, *at in zip(rows, x, y):
            axis.annotate(label, at, xytext=side, textcoords="offset points", fontsize=7, color=colour)
    text = table["held-out text"]
    axis.plot(text["token_entropy_bits"], text["bits_under_ar"], "k*", ms=11, label="held-out text")
    axis.set_xlabel("entropy of the tokens of a row, bits", fontsize=9)
    axis.set_ylabel("bits per token under the autoregressive model", fontsize=9)
    axis.set_title("temperature: likely or varied", fontsize=10)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.2, lw=0.6)
    axis.legend(fontsize=8, frameon=False)
    axis.spines[["top", "right"]].set_visible(False)
    plot.finish(figure, file)


# Showing


def line(alphabet: data.Alphabet, row: torch.Tensor) -> str:
    """Returns a row of tokens as one line that every terminal shows: line breaks as \\n, other controls as ?."""
    text = alphabet.shown(row.cpu()).replace("\n", "\\n")
    text = "".join("?" if unicodedata.category(each) in ("Cc", "Cs") else each for each in text)
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "replace").decode(encoding)


def filled(flow, row: torch.Tensor, generator, temperature: float, sampler=None) -> tuple[str, list[str]]:
    """Hides the middle third of a text, and completes it three times: the text with blanks, and the completions."""
    length = int(data.lengths(row[None], flow.alphabet.end_token))
    fixed = torch.ones(len(row), dtype=torch.bool)
    fixed[length // 3 : 2 * length // 3] = False
    steps = max(1, int((~fixed).sum()))
    sampler = ctmc.Analytic(steps=steps, temperature=temperature) if sampler is None else sampler
    found = flow.infill(row.long(), fixed, (3,), sampler=sampler, generator=generator)
    question = torch.where(fixed, row.long(), flow.alphabet.size)
    return line(flow.alphabet, question), [line(flow.alphabet, each) for each in found]


def decoded(flow, options: Options, file: Path) -> list[str]:
    """Draws one sample, writes the picture of its states, and returns some of them as text."""
    generator = torch.Generator(flow.device).manual_seed(options.seed + 2)
    steps = min(24, options.length)
    times, states = flow.trajectory(
        (1,), sampler=ctmc.Analytic(steps=steps, temperature=options.temperature), generator=generator
    )
    states, alphabet = states[:, 0].cpu(), flow.alphabet
    mask = alphabet.size if options.source == "mask" else None
    symbols = [alphabet.decode([token]) for token in range(alphabet.size)]
    # A cell has room for one character, and the usual fonts have those of ASCII.
    symbols = [each if len(each) == 1 and each.isascii() and each.isprintable() else "\u00b7" for each in symbols]
    plot.tokens(states, file, times=times, mask=mask, symbols=symbols if options.tokens != "pieces" else None)
    shown = range(0, steps + 1, max(1, steps // 6))
    return [f"t = {float(times[k]):.2f}  {line(alphabet, states[k])}" for k in shown]


def main(options: Options) -> None:
    started = time.perf_counter()
    check(options)
    corpus = text_data.read(
        options.data,
        options.tokens,
        options.alphabet,
        options.vocabulary,
        options.max_characters,
        options.length,
        by_line=options.rows == "lines",
    )
    options = replace(options, length=corpus.held.shape[1])
    place = options.data if options.data in text_data.WORDS else Path(options.data)
    parts = ["text", *([corpus.name] if corpus.name != "reference" else [])]
    usual = {"tokens": "characters", "rows": "windows", "source": "mask"}
    parts += [getattr(options, name) for name, value in usual.items() if getattr(options, name) != value]
    out = run_folder(options.out, "-".join(parts), place, options.resume)
    alphabet, length = corpus.alphabet, options.length
    say(f"{corpus.name}: {corpus.note}")
    say(
        f"{len(corpus.seen):,} tokens to learn from, {corpus.held.numel():,} held out ({len(corpus.held)} rows of "
        f"{length}); {alphabet.size} different tokens"
    )
    flow = build(options, corpus)
    say(f"{options.network}: {millions(flow)} parameters; writing to {out}/")
    claim(out, place)
    run = learn(flow, objectives.FlowMatching(), corpus, options, out)
    if options.resume:
        say_resumed(run)
    say(f"trained {run.steps} steps in {run.seconds:.0f} s; the weights of step {run.best_step} are kept")
    judge = None
    if options.baseline == "ar":
        judge = autoregressive(options, alphabet.size)
        say(f"training the baseline, an autoregressive transformer: {millions(judge)} parameters")
        say(f"its loss is in nats for a row of {length} tokens; that of the flow was the mean of one hidden token")
        second = learn(judge, objectives.MaximumLikelihood(), corpus, options, out / "ar")
        say(f"trained {second.steps} steps in {second.seconds:.0f} s; the weights of step {second.best_step} are kept")
    if not MAIN:
        return
    plot.training(run, out / "training.png", title="loss: cross-entropy of all tokens, nats")

    flow.eval()
    rate = f"{flow.path.default_rate!r}"
    counts = text_data.counted_bits(corpus)
    found = held_out(flow, corpus, options)
    report = {
        "data": options.data,
        "tokens": options.tokens,
        "rows": options.rows,
        "alphabet_size": alphabet.size,
        "characters_per_token": float(corpus.characters.double().mean()) / length,
        "steps": run.steps,
        "training_seconds": run.seconds,
        "bits_per_character": {**counts, "flow": found.value},
        "standard_error": found.standard_error,
        "bound": {"rate": rate, "draws": options.draws, "rows": len(corpus.held)},
        "sampler": {"sampler": "analytic", "steps": max(options.evaluations), "temperature": options.temperature},
    }
    say("bits per character of the held-out text; less is better")
    for name, value in counts.items():
        say(f"  {name:16s} {value:.3f}")
    error = f"± {found.standard_error:.3f}"
    say(f"  {'flow':16s} {found.value:.3f} {error}  (an upper bound: rate {rate}, {options.draws} draws for each row)")
    if judge is not None:
        judge.eval()
        with torch.no_grad():
            exact = bits(in_batches(judge.log_prob, corpus.held).cpu(), corpus)
        report["bits_per_character"]["ar"], report["standard_error_ar"] = exact.value, exact.standard_error
        say(f"  {'autoregressive':16s} {exact.value:.3f} ± {exact.standard_error:.3f}  (exact)")

    generator = torch.Generator(flow.device).manual_seed(options.seed + 1)
    written = []

    def tell(text: str, shown: bool = True) -> None:
        written.append(text)
        if shown:
            say(text)

    for steps in options.evaluations:
        sampler = ctmc.Analytic(steps=steps, temperature=options.temperature)
        tell(f"samples, {steps} evaluations of the network at most, temperature {options.temperature:g}")
        for k, row in enumerate(flow.sample((8,), sampler=sampler, generator=generator)):
            tell(f"  {line(alphabet, row)}", shown=k < 3)
    if judge is not None:
        tell(f"samples of the autoregressive transformer, temperature {options.temperature:g}")
        for k, row in enumerate(judge.sample((8,), temperature=options.temperature, generator=generator)):
            tell(f"  {line(alphabet, row)}", shown=k < 3)
    question, answers = filled(flow, corpus.held[len(corpus.held) // 2], generator, options.temperature)
    tell("a held-out row with its middle hidden, and three completions")
    for each in (question, *answers):
        tell(f"  {each}")
    tell("one sample on its way")
    for each in decoded(flow, options, out / "decoding.png"):
        tell(f"  {each}")
    (out / "samples.txt").write_text("\n".join(written) + "\n", encoding="utf-8")

    files = ["samples.txt", "decoding.png", "training.png"]
    if judge is not None:
        report["frontier"] = table = frontier(flow, judge, corpus, options, generator)
        draw_frontier(table, out / "frontier.png")
        files.insert(2, "frontier.png")
        say(f"{JUDGED} rows each: bits per token under the autoregressive model, entropy of the tokens of a row, and")
        say("the share of different ones among sequences of 4. Good samples have all three near those of the text")
        say(f"  {'':24s}" + "".join(f" {head:>8s}" for head in ("bits", "entropy", "4-grams")))
        for name, row in table.items():
            say(f"  {name:24s}" + "".join(f" {value:8.3f}" for value in row.values()))
    then = [f"more text: cflow sample {out} --num 4 --sampler analytic --steps 64 --output more.txt"]
    if options.data == "reference" and options.tokens == "characters":
        then.append(f'fill gaps: cflow sample {out} --infill "The ________ statement is used to ______ the name."')
    end_run(out, report, started, files, *then)


if __name__ == "__main__":
    run_recipe(main, Options, "text.py")
