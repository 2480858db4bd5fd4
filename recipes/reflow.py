"""Few steps: straighten a trained image flow, distil it, and see what few steps are worth, in one command.

    python recipes/reflow.py                             # 8x8 digits; trains runs/images-digits first if it is missing
    python recipes/reflow.py --rounds 2 --distill 1 4    # straighten twice; distil to one evaluation and to four
    python recipes/reflow.py --data mnist --root DIR --run runs/images-mnist
    accelerate launch --multi_gpu recipes/reflow.py      # pairs and training on all GPUs of this machine

Each round carries noise to samples by the flow so far (guidance included, once and for all) and trains the next flow on
straight lines between the two; the last one is distilled on pairs of its own. A small classifier, trained here on the
real images, reads the samples of every flow after 1, 2, 4, 8 and 32 evaluations of the network, and lends its features
to a Fréchet distance to held-out images. Interrupted, the same command goes on.

Leaves ``round-1/model`` and so on, ``distilled-1/model`` (``cflow sample`` draws from them), ``few-steps.png``
and ``metrics.json`` in one folder.
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
    """Which images the flow draws; all but digits are read from --root."""
    root: Path | None = None
    """The folder with the files of the data set."""
    run: Path | None = None
    """The trained flow; runs/images-<data> unless given."""
    out: Path | None = None
    """Where everything is written; runs/reflow-<data> unless given."""
    rounds: int = 1
    """How often to straighten."""
    pairs: int = 10_000
    """Pairs of noise and sample per round."""
    real: bool = False
    """Also carry the training images back to noise: pairs with a true half, in every round."""
    guidance: float = 1.3
    """Classifier-free guidance of the first round's pairs; 1 is none."""
    solver_steps: int = 8
    """Steps of Heun's method that carry a pair."""
    steps: int = 800
    """Training steps of each round and each distillation."""
    distill: tuple[int, ...] = (1,)
    """Numbers of evaluations to distil the last round to."""
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
    """A small convolutional classifier: features of an image, and what they say of its class."""

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
    """Computes what the classifier sees in images, in portions that fit in memory."""
    return torch.cat([reader.features(part) for part in pixels.split(500)])


@torch.no_grad()
def judge(reader: Reader, pixels: torch.Tensor, labels: torch.Tensor, real: torch.Tensor) -> dict[str, float]:
    """Reads samples: the share whose class is seen, and the distance of their features to those of real images."""
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


def carry(flow, images: data.ImageData, options: Options, place: Path, seed: int, guide) -> list[training.Pairs]:
    """Joins noise and samples by the flow so far; with --real, training images and their noise too."""
    how = {"solver": solvers.Heun(steps=options.solver_steps), "seed": seed, "progress": MAIN, "shard": 1000}
    sets = [training.generate_pairs(flow, options.pairs, place, guidance=guide, **how)]
    if options.real:  # guidance would carry them to noise that is not the base's
        back = place.with_name(place.name + "-real")
        sets.append(
            training.generate_pairs(
                flow, len(images.train), back, data=images.train, context=images.train_labels, **how
            )
        )
    return sets


def straighten(flow, images: data.ImageData, options: Options, out: Path) -> dict:
    """Gives the flow, its rounds, and what the last one is distilled to."""
    guide = None if options.guidance == 1 else guidance.ClassifierFree(options.guidance)
    how = {
        "steps": options.steps, "batch_size": options.batch_size, "lr": options.lr, "seed": options.seed,
        "schedule": training.Cosine(warmup=options.steps // 20), "ema": training.EMA(decay=0.99), "resume": True,
        "checkpoint_every": max(1, options.steps // 5), "progress": True,
    }  # fmt: skip
    flows, last = {"flow": flow}, flow
    for number in range(1, options.rounds + 1):
        say(f"round {number}: {options.pairs} pairs, then {options.steps} steps of training")
        pairs = carry(last, images, options, out / f"pairs-{number}", options.seed + number, guide)
        last = training.reflow(last, pairs, out=out / f"round-{number}", **how)
        flows[f"round {number}"], guide = last, None  # guidance is in the pairs: what learns from them needs none
    if options.distill:
        number = options.rounds + 1
        say(f"distillation: {options.pairs} pairs, then {options.steps} steps for each of {options.distill}")
        pairs = carry(last, images, options, out / f"pairs-{number}", options.seed + number, guide)
        for calls in options.distill:
            place = out / f"distilled-{calls}"
            flows[f"distilled {calls}"] = student = training.distill(last, pairs, calls, out=place, **how)
            if MAIN:
                cflow.save(student, place / "model")  # with its solver, which training did not know of
    return flows


def measure(flows: dict, images: data.ImageData, options: Options, out: Path) -> dict:
    """Reads what every flow draws with few evaluations, prints the table and draws the picture."""
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
    """Lists the numbers of evaluations to measure at; those that are distilled to are among them."""
    return sorted({*options.evaluations, *options.distill})


def print_report(report: dict, options: Options) -> None:
    """Prints the quality of few evaluations: accuracy in percent, and the Fréchet distance."""
    counts = evaluations(options)
    print(f"read as their label, %, and Fréchet distance of {FEATURES} features; {options.num} samples")
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
        print("the first flow is guided: every evaluation is two passes of its network, and one of the others'")


def main(options: Options) -> None:
    began = time.perf_counter()
    counts = options.pairs, options.steps, options.solver_steps, *options.evaluations, *options.distill
    if options.num <= FEATURES or options.rounds < (not options.distill) or min(counts) < 1 or not options.evaluations:
        raise ValueError(
            f"--num {options.num} --rounds {options.rounds} --distill {options.distill} --evaluations "
            f"{options.evaluations} --pairs {options.pairs} --steps {options.steps}: measure more samples than the "
            f"{FEATURES} features that are compared, straighten or distil at least once, and take at least 1 of "
            f"all else."
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
        began = time.perf_counter()
    # Pairs are carried where training will be: every process on its own device.
    device = f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"
    flow = cflow.load(run / "model", device=device).eval()
    if flow.context_shape is None:
        raise ValueError(f"--run {run}: samples are judged by their labels, and this flow has none; use cflow reflow.")
    claim(out, run)
    flows = straighten(flow, images, options, out)
    if not MAIN:
        return
    report = measure(flows, images, options, out)
    print_report(report, options)
    last = f"distilled-{options.distill[0]}" if options.distill else f"round-{options.rounds}"
    more = f"more samples: cflow sample {out}/{last} --num 64 --output more.png"
    end_run(out, report, began, ["few-steps.png"], more)


if __name__ == "__main__":
    run_recipe(main, Options, "reflow.py")
