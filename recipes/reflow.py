"""Few steps: straighten a trained image flow, distil it, and measure samples of few steps, in one command.

    python recipes/reflow.py                             # 8x8 digits; trains runs/images-digits first if it is missing
    python recipes/reflow.py --rounds 2 --distill 1 4    # straighten twice; distil to one evaluation and to four
    python recipes/reflow.py --data mnist --root DIR --run runs/images-mnist
    accelerate launch --multi_gpu recipes/reflow.py      # pairs and training on all GPUs of this machine

Each round draws pairs of noise and sample by the flow so far (with guidance, which the next flow then no longer needs)
and trains the next flow on straight lines between the two. The last flow is distilled on its own pairs. A small
classifier, trained here on the real images, judges the samples of each flow after 1, 2, 4, 8 and 32 evaluations of the
network; its features also serve for a Fréchet distance to held-out images. After an interrupt, the same command
continues.

Writes ``round-1/model`` and so on, ``distilled-1/model`` (``cflow sample`` draws from them), ``few-steps.png`` and
``metrics.json`` into one folder.
"""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import images as base
import torch
from common import MAIN, claim, end_run, run_folder, say
from torch import nn

import cflow
from cflow import data, guidance, metrics, plot, solvers, training
from cflow.cli import run_recipe

FEATURES = 32


@dataclass
class Options:
    """Straightens and distils a flow that recipes/images.py has trained."""

    data: Literal["digits", "mnist", "fashion-mnist", "cifar10"] = "digits"
    """The data set of the flow; all but digits are read from --root."""
    root: Path | None = None
    """The folder with the files of the data set. Default: none, for digits."""
    run: Path | None = None
    """The run with the trained flow. Default: runs/images-<data>."""
    out: Path | None = None
    """Where everything is written. Default: runs/reflow-<data>."""
    rounds: int = 1
    """Number of rounds of straightening."""
    pairs: int = 10_000
    """Pairs of noise and sample per round."""
    real: bool = False
    """Also integrate from the training images back to noise, for pairs with real images in every round."""
    guidance: float = 1.3
    """Classifier-free guidance of the first round's pairs; 1 is none."""
    solver_steps: int = 8
    """Steps of Heun's method for each pair."""
    steps: int = 800
    """Training steps of each round and each distillation."""
    distill: tuple[int, ...] = (1,)
    """Numbers of evaluations of the network to distil the last round to."""
    batch_size: int = 128
    """Pairs per training step, on each process."""
    lr: float = 1e-3
    """Peak learning rate (warm-up, then cosine to zero)."""
    evaluations: tuple[int, ...] = (1, 2, 4, 8, 32)
    """Evaluations of the network to measure at."""
    num: int = 1000
    """Samples per measurement."""
    seed: int = 0
    """Seed of the whole run."""


class Reader(nn.Module):
    """A small convolutional classifier: features of an image, and scores of its class."""

    def __init__(self, shape: torch.Size, classes: int):
        super().__init__()
        channels, height, width = shape
        convolve = lambda before, after, stride: (nn.Conv2d(before, after, 3, stride, padding=1), nn.ReLU())
        self.body = nn.Sequential(*convolve(channels, 32, 1), *convolve(32, 64, 2), *convolve(64, 64, 2), nn.Flatten())
        cells = -(-height // 4) * -(-width // 4)
        self.features = nn.Sequential(self.body, nn.Dropout(0.2), nn.Linear(64 * cells, FEATURES))
        self.classify = nn.Sequential(nn.ReLU(), nn.Linear(FEATURES, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classify(self.features(x))


def learn_to_read(images: data.ImageData, seed: int) -> Reader:
    """Trains the classifier that judges samples, on the real training images."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        reader = Reader(images.event_shape, len(images.classes))
        optimizer = torch.optim.AdamW(reader.parameters(), lr=2e-3, weight_decay=1e-2)
        count = len(images.train)
        steps = max(400, 5 * count // 128)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
        for _ in range(steps):
            rows = torch.randint(count, (128,))
            x, labels = images.train[rows].float() / (images.levels - 1), images.train_labels[rows]
            loss = nn.functional.cross_entropy(reader(x), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return reader.eval()


@torch.no_grad()
def features_of(reader: Reader, pixels: torch.Tensor) -> torch.Tensor:
    """Computes the classifier's features of images, in chunks that fit in memory."""
    return torch.cat([reader.features(part) for part in pixels.split(500)])


@torch.no_grad()
def judge(reader: Reader, pixels: torch.Tensor, labels: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Judges samples: the share with the right class, and the distance of their features to those of real images."""
    features = features_of(reader, pixels)
    seen = reader.classify(features).argmax(1)
    return {"accuracy": float((seen == labels).float().mean()), "frechet": metrics.frechet_distance(features, real)}


@torch.no_grad()
def draw(flow, labels: torch.Tensor, solver, guide, seed: int, levels: int) -> torch.Tensor:
    """Draws an image per label as pixels in [0, 1]; the same noise whatever the flow and its solver."""
    device = flow.device
    generator = torch.Generator(device).manual_seed(seed)
    parts = [
        flow.sample((), part.to(device), solver=solver, guidance=guide, generator=generator)
        for part in labels.split(250)
    ]
    return torch.cat(parts).float().cpu() / (levels - 1)


def draw_pairs(flow, images: data.ImageData, options: Options, place: Path, seed: int, guide) -> list[training.Pairs]:
    """Draws pairs of noise and sample by the flow so far; with --real, also of training images and their noise."""
    how = {"solver": solvers.Heun(steps=options.solver_steps), "seed": seed, "progress": MAIN, "shard": 1000}
    sets = [training.generate_pairs(flow, options.pairs, place, guidance=guide, **how)]
    if options.real:  # with guidance their noise would not follow the base
        back = place.with_name(place.name + "-real")
        sets.append(
            training.generate_pairs(
                flow, len(images.train), back, data=images.train, context=images.train_labels, **how
            )
        )
    return sets


def straighten(flow, images: data.ImageData, options: Options, out: Path) -> dict:
    """Returns the flow, its rounds, and the distilled flows, by name."""
    guide = None if options.guidance == 1 else guidance.ClassifierFree(options.guidance)
    how = {
        "steps": options.steps, "batch_size": options.batch_size, "lr": options.lr, "seed": options.seed,
        "schedule": training.Cosine(warmup=options.steps // 20), "ema": training.EMA(decay=0.99), "resume": True,
        "checkpoint_every": max(1, options.steps // 5), "progress": True,
    }  # fmt: skip
    flows, last = {"flow": flow}, flow
    for number in range(1, options.rounds + 1):
        say(f"round {number}: {options.pairs} pairs, then {options.steps} steps of training")
        pairs = draw_pairs(last, images, options, out / f"pairs-{number}", options.seed + number, guide)
        last = training.reflow(last, pairs, out=out / f"round-{number}", **how)
        flows[f"round {number}"], guide = (
            last,
            None,
        )  # the pairs contain guidance, once and for all
    if options.distill:
        number = options.rounds + 1
        say(f"distillation: {options.pairs} pairs, then {options.steps} steps for each of {options.distill}")
        pairs = draw_pairs(last, images, options, out / f"pairs-{number}", options.seed + number, guide)
        for calls in options.distill:
            place = out / f"distilled-{calls}"
            flows[f"distilled {calls}"] = student = training.distill(last, pairs, calls, out=place, **how)
            if MAIN:
                cflow.save(student, place / "model")  # with its solver, which fit does not set
    return flows


def measure(flows: dict, images: data.ImageData, options: Options, out: Path) -> dict:
    """Judges the samples of every flow after few evaluations, and draws the picture."""
    reader = learn_to_read(images, options.seed)
    scaled = lambda x: x.float() / (images.levels - 1)
    real = features_of(reader, scaled(images.test[:5000]))
    held_out = judge(reader, scaled(images.test[:5000]), images.test_labels[:5000], real)["accuracy"]
    train = judge(reader, scaled(images.train[:5000]), images.train_labels[:5000], real)["frechet"]
    report = {"held-out images": {"accuracy": held_out}, "training images": {"frechet": train}}
    guide = None if options.guidance == 1 else guidance.ClassifierFree(options.guidance)
    labels = torch.arange(options.num) % len(images.classes)
    rows, names = [], []
    for name, flow in flows.items():
        methods = {"": solvers.Euler} | ({", UniPC": solvers.UniPC} if name == "flow" else {})
        for suffix, method in methods.items():
            report[name + suffix] = {}
            for calls in [flow.solver.steps] if name.startswith("distilled") else evaluations(options):
                pixels = draw(flow, labels, method(steps=calls), guide if name == "flow" else None, options.seed,
                              images.levels)  # fmt: skip
                report[name + suffix][calls] = judge(reader, pixels, labels, real)
                if not suffix and (calls in (1, 4, max(options.evaluations)) or name.startswith("distilled")):
                    rows.append(pixels[: len(images.classes)])
                    names.append(f"{name}, {calls} evaluation{'s' * (calls > 1)}")
    plot.images(torch.cat(rows), out / "few-steps.png", columns=images.classes, rows=names)
    return report


def evaluations(options: Options) -> list[int]:
    """Lists the numbers of evaluations to measure at, with those of the distilled flows."""
    return sorted({*options.evaluations, *options.distill})


def print_report(report: dict, options: Options) -> None:
    """Prints the quality of few evaluations: accuracy in percent, and the Fréchet distance."""
    counts = evaluations(options)
    print(f"recognised, %, and Fréchet distance of {FEATURES} features to held-out images; {options.num} samples")
    print(f"{'evaluations':16s}" + "".join(f"{calls:>16d}" for calls in counts))
    for name, row in report.items():
        if "images" in name:
            continue
        shown = [row.get(calls) for calls in counts]
        cells = ("" if each is None else f"{100 * each['accuracy']:.1f}  {each['frechet']:7.2f}" for each in shown)
        print(f"{name:16s}" + "".join(f"{cell:>16s}" for cell in cells))
    print(
        f"held-out images: {100 * report['held-out images']['accuracy']:.1f} %; training images: "
        f"{report['training images']['frechet']:.2f}"
    )
    if options.guidance != 1:
        print("the first flow is guided: each evaluation is two passes of the network; for the others it is one")


def main(options: Options) -> None:
    started = time.perf_counter()
    counts = options.pairs, options.steps, options.solver_steps, *options.evaluations, *options.distill
    if options.num <= FEATURES or options.rounds < (not options.distill) or min(counts) < 1 or not options.evaluations:
        raise ValueError(
            f"--num {options.num} --rounds {options.rounds} --distill {options.distill} --evaluations "
            f"{options.evaluations} --pairs {options.pairs} --steps {options.steps}: measure more samples than the "
            f"{FEATURES} features, straighten or distil at least once, and pass at least 1 for all else."
        )
    images = base.read(base.Options(data=options.data, root=options.root))
    run = options.run or run_folder(None, f"images-{options.data}", options.root or options.data)
    out = run_folder(options.out, f"reflow-{options.data}", run)
    if not (run / "model").is_dir():
        if options.data != "digits":
            raise ValueError(
                f"--run {run}: no trained flow there; train it by python recipes/images.py --data {options.data} "
                f"--root DIR, or name another run."
            )
        say(f"{run}: no trained flow there; training it first, as recipes/images.py does")
        base.main(base.Options(out=run, resume=(run / "checkpoints").is_dir()))
        started = time.perf_counter()
    # Pairs are drawn where training will be: each process on its own device.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    flow = cflow.load(run / "model", device=device).eval()
    if flow.context_shape is None:
        raise ValueError(
            f"--run {run}: samples are judged by their class, and this flow has no classes; use cflow reflow."
        )
    claim(out, run)
    flows = straighten(flow, images, options, out)
    if not MAIN:
        return
    report = measure(flows, images, options, out)
    print_report(report, options)
    last = f"distilled-{options.distill[0]}" if options.distill else f"round-{options.rounds}"
    more = f"more samples: cflow sample {out}/{last} --num 64 --output more.png"
    end_run(out, report, started, ["few-steps.png"], more)


if __name__ == "__main__":
    run_recipe(main, Options, "reflow.py")
