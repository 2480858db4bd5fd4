"""Images by flow matching: from data to pictures, a checkpoint and measured quality, in one command.

    python recipes/images.py                                              # 8x8 digits, a few minutes on two cores
    python recipes/images.py --data mnist --root DIR                      # also fashion-mnist, cifar10
    python recipes/images.py --data folder --root DIR --size 64           # your own pictures; sub-folders are classes
    python recipes/images.py --resume                                     # continues an interrupted run
    accelerate launch --multi_gpu recipes/images.py                       # on all GPUs of this machine

Writes ``model/`` (``cflow sample`` draws from it), ``samples.png``, ``training.png``, ``trajectories.png``,
``metrics.json``, ``history.csv`` and ``checkpoints/`` into one folder. Runs of 2000 steps or more also write
``progress/``: samples drawn at every tenth of the run.
"""

import dataclasses
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from common import MAIN, claim, end_run, run_folder, say, say_resumed

import cflow
from cflow import (
    bases,
    bijections,
    couplings,
    data,
    fields,
    guidance,
    metrics,
    objectives,
    paths,
    plot,
    solvers,
    times,
    training,
)
from cflow.cli import run_recipe

LONG = 2000  # steps, from which on samples are drawn during training


@dataclass
class Options:
    """Trains a flow matching model on images, draws samples from it and measures them."""

    data: Literal["digits", "mnist", "fashion-mnist", "cifar10", "folder"] = "digits"
    """The data set; all but digits are read from --root."""
    root: Path | None = None
    """The folder with the files of the data set. Default: none, for digits."""
    size: tuple[int, ...] = (32,)
    """Side, or height and width, to which the pictures of a folder are cropped and scaled."""
    out: Path | None = None
    """Where everything is written. Default: runs/images-<data>."""
    steps: int | None = None
    """Training steps. Default: 700 for digits, 20,000 for the others."""
    batch_size: int = 128
    """Images per step, on each process."""
    lr: float = 2e-3
    """Peak learning rate (warm-up, then cosine to zero)."""
    width: int | None = None
    """Channels of the U-Net at full resolution. Default: 32 for digits, 64 for the others."""
    condition_dropout: float = 0.1
    """Share of training images whose class is hidden; guidance needs some."""
    guidance: float = 1.3
    """Classifier-free guidance of the samples; 1 is none."""
    solver: Literal["euler", "midpoint", "heun", "rk4"] = "heun"
    """Solver that draws the samples."""
    solver_steps: int = 16
    """Steps of the solver."""
    num: int = 1000
    """Samples to draw and measure."""
    precision: Literal["no", "bf16"] = "no"
    """Mixed precision of the network in training."""
    seed: int = 0
    """Seed of the whole run."""
    resume: bool = False
    """Continue the run in --out."""


def read(options: Options) -> data.ImageData:
    """Reads the images that were asked for."""
    if options.data == "digits":
        if options.root is not None:
            raise ValueError(f"--root {options.root}: the digits come with scikit-learn; pass --data folder too.")
        return data.digits()
    if options.root is None:
        raise ValueError(f"--data {options.data} is read from files: pass --root with the folder that holds them.")
    match options.data:
        case "cifar10":
            return data.cifar10(options.root)
        case "folder":
            if len(options.size) not in (1, 2):
                raise ValueError(f"--size {' '.join(map(str, options.size))}: pass a side, or height and width.")
            return data.image_folder(options.root, (options.size[0], options.size[-1]))
    return data.mnist(options.root)


def build(images: data.ImageData, width: int) -> cflow.ContinuousFlow:
    """Builds the flow: a U-Net on dequantised images in [-1, 1], conditioned on the class."""
    channels, *size = images.event_shape
    classes = len(images.classes) if len(images.classes) > 1 else 0
    attention = () if size == [8, 8] else None  # there, convolutions and the attention in the middle see everything
    field = fields.UNet(channels, size, width=width, multipliers=levels(size), attention=attention, classes=classes)
    flow = cflow.ContinuousFlow(
        field,
        bases.Normal(images.event_shape),
        path=paths.Linear(),
        context_shape=() if classes else None,
    )
    return flow.with_transform(
        bijections.Dequantise(images.event_shape, images.levels), bijections.Rescale(images.event_shape)
    )


def levels(size: list[int]) -> tuple[int, ...] | None:
    """Returns the channels of the U-Net's levels, in multiples of its width; None where its own choice is right."""
    halvings = 0
    while halvings < 3 and all(side % 2 ** (halvings + 1) == 0 for side in size) and min(size) >= 8 * 2**halvings:
        halvings += 1
    usual = {8: 1, 16: 2, 32: 3, 64: 3}.get(min(size))  # MNIST's 28 pixels are halved twice
    return None if halvings == usual else (1, *(2,) * halvings)


def held_out(images: data.ImageData, flow):
    """Returns up to 2000 held-out images for validation (every tenth of the run), or None where there are none."""
    if not len(images.test):
        return None
    return (images.test[:2000], images.test_labels[:2000]) if flow.context_shape is not None else images.test[:2000]


def draw(flow, labels, options: Options, generator) -> torch.Tensor:
    """Draws one image per label (or as many images, where there are no classes), in chunks that fit in memory."""
    solver = solvers.by_name(options.solver, steps=options.solver_steps)
    if flow.context_shape is None:
        counts = [min(250, len(labels) - start) for start in range(0, len(labels), 250)]
        return torch.cat([flow.sample((count,), solver=solver, generator=generator) for count in counts])
    guide = guidance.ClassifierFree(options.guidance)
    parts = [flow.sample((), part, solver=solver, guidance=guide, generator=generator) for part in labels.split(250)]
    return torch.cat(parts)


def sheets(images: data.ImageData, options: Options, steps: int, out: Path):
    """Makes the function that ``fit`` calls after every step: at each tenth of the run it draws a few samples.

    They come from the raw weights of this step, from the same noise each time, in few solver steps. They have a
    generator of their own, so training is the same with and without them.
    """
    every, classes = max(1, steps // 10), max(1, len(images.classes))
    quick = dataclasses.replace(options, solver_steps=4)

    def look(step: int, flow, row) -> None:
        if step % every or step == steps:
            return
        device = next(flow.parameters()).device
        labels = torch.arange(2 * min(classes, 10), device=device) % min(classes, 10)
        flow.eval()
        samples = draw(flow, labels, quick, torch.Generator(device).manual_seed(options.seed + 1))
        flow.train()
        pixels = samples.cpu().float() / (images.levels - 1)
        plot.images(pixels, out / "progress" / f"step-{step:06d}.png", columns=min(classes, 10))

    return look


def measure(samples, labels, images: data.ImageData) -> dict:
    """Compares samples with held-out images: are they recognised, are they copies, are they equally distributed."""
    flat = lambda x: x.flatten(1).float() / (images.levels - 1)
    real, held, drawn = flat(images.train), flat(images.test), flat(samples)
    report = {"samples": len(drawn)}
    if len(images.classes) > 1:
        from sklearn.svm import SVC

        judge = SVC(gamma="scale", C=10.0).fit(real[:10_000].numpy(), images.train_labels[:10_000].numpy())
        report["recognised"] = float(judge.score(drawn.numpy(), labels.numpy()))
        report["recognised_held_out"] = float(judge.score(held[:5000].numpy(), images.test_labels[:5000].numpy()))
    nearest = [float(metrics.nearest_distances(each[:2000], real)[0].median()) for each in (drawn, held)]
    report["nearest_train_image_median"], report["nearest_train_image_median_held_out"] = nearest
    report["nearest_ratio"] = nearest[0] / nearest[1]
    size = min(len(drawn), len(real), 5000)  # the empirical distance depends on it: the same for both
    distances = [metrics.energy_distance(each[:size], held[:5000], empirical=True) for each in (drawn, real)]
    for name, estimate in zip(("samples", "train"), distances):
        report[f"energy_distance_{name}"] = estimate.value
        report[f"energy_distance_{name}_standard_error"] = estimate.standard_error
    report["energy_ratio"] = distances[0].value / distances[1].value
    return report


def main(options: Options) -> None:
    started = time.perf_counter()
    images = read(options)
    small = options.data == "digits"
    steps = (700 if small else 20_000) if options.steps is None else options.steps
    width = (32 if small else 64) if options.width is None else options.width
    name = options.root.resolve().name if options.data == "folder" else options.data
    out = run_folder(options.out, f"images-{name}", options.root or options.data, options.resume)
    say(f"{name}: {images}")

    torch.manual_seed(options.seed)  # the network's initial weights; everything else has its own generators
    flow = build(images, width)
    if levels(list(images.event_shape[1:])) == (1,) and min(images.event_shape[1:]) > 8:
        say("the network keeps full resolution, as a side is odd: slow; --size with multiples of 8 is much faster")
    say(f"network: {sum(each.numel() for each in flow.parameters()) / 1e6:.2f} M parameters; writing to {out}/")
    objective = objectives.FlowMatching(
        coupling=couplings.Independent(),
        times=times.Stratified(times.Uniform()),
        condition_dropout=options.condition_dropout if len(images.classes) > 1 else 0.0,
    )
    claim(out, options.root or options.data)
    run = training.fit(
        flow,
        objective,
        (images.train, images.train_labels) if flow.context_shape is not None else images.train,
        steps=steps,
        batch_size=min(options.batch_size, len(images.train)),
        lr=options.lr,
        schedule=training.Cosine(warmup=100),
        ema=training.EMA(decay=0.99 if small else 0.9995),
        precision=options.precision,
        validation=held_out(images, flow),
        validate_every=max(1, steps // 10),
        checkpoint_every=max(1, steps // 10),
        seed=options.seed,
        out=out,
        resume=options.resume,
        progress=True,
        callbacks=(sheets(images, options, steps, out),) if MAIN and steps >= LONG else (),
    )
    if options.resume:
        say_resumed(run)
    say(f"trained {run.steps} steps in {run.seconds:.0f} s")
    if not MAIN:
        return
    plot.training(run, out / "training.png", title="loss: mean squared error of the velocity")

    flow = flow.eval()
    generator = torch.Generator(device=next(flow.parameters()).device).manual_seed(options.seed + 1)
    device = generator.device
    classes = max(1, len(images.classes))
    labels = torch.arange(options.num, device=device) % classes
    say(f"drawing {options.num} samples: {options.solver}, {options.solver_steps} steps")
    samples = draw(flow, labels, options, generator).cpu()
    grid = samples[: 10 * classes] if 5 <= classes <= 10 else samples[:100]
    pixels = lambda x: x.float() / (images.levels - 1)
    heads = images.classes if 5 <= classes <= 10 else 10
    plot.images(pixels(grid), out / "samples.png", columns=heads if len(grid) >= classes else 10)

    rows = labels[: min(max(classes, 4), 10)]
    noise = flow.base.sample((len(rows),), generator=generator)
    context = None if flow.context_shape is None else rows
    solver = solvers.by_name(options.solver, steps=options.solver_steps)
    guide = None if context is None else guidance.ClassifierFree(options.guidance)
    frames = flow.trajectory(noise, context, times=9, solver=solver, guidance=guide).cpu()
    names = [images.classes[label] for label in rows.tolist()] if images.classes else None
    columns = torch.linspace(0, 1, len(frames))
    plot.image_trajectories(pixels(frames), out / "trajectories.png", times=columns, rows=names)

    if len(images.test) >= 4:
        say("measuring: are samples recognised, are they copies of training images, are they as varied as real ones")
        report = measure(samples, labels.cpu(), images)
    else:
        say("measuring nothing: there are too few held-out images to compare with")
        report = {"samples": len(samples)}
    report |= {
        "classes": list(images.classes),
        "steps": run.steps,
        "training_seconds": run.seconds,
        "sampler": {"solver": options.solver, "steps": options.solver_steps},
        "guidance": options.guidance,
    }
    for name, value in report.items():
        print(f"  {name:44s} {value:.4g}" if isinstance(value, float) else f"  {name:44s} {value}")
    more = f"cflow sample {out} --num 64 --output more.png" + (f" --label {classes - 1}" if classes > 1 else "")
    end_run(out, report, started, ["samples.png", "trajectories.png", "training.png"], f"more samples: {more}")


if __name__ == "__main__":
    run_recipe(main, Options, "images.py")
