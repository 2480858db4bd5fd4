"""Token flows on text: held-out bits per character after equal time, samplers, toys with exact answers.

    CFLOW_DATA=FOLDER OMP_NUM_THREADS=1 peers/bin/python tests/benchmarks/tokens.py                 # all parts
    CFLOW_DATA=FOLDER OMP_NUM_THREADS=1 python tests/benchmarks/tokens.py --parts bits --texts tinyshakespeare

FOLDER holds ``text/tinyshakespeare.txt`` and ``text/enwiki206_text8style.txt``. Parts:

``bits``: the same transformer (width 64, depth 4, rows of 256 characters, batches of 8), trained by each objective for
the same processor time with one torch thread, so that other work on the machine does not count; what differs is how
many steps that is. All have the same optimizer, rate and seed. The last tenth of each text is held out. Models are kept
in ``--out`` for the parts that follow.

``samplers``: samples of the models of mask and uniform sources and of continuous flows, judged by the autoregressive
model of the same text. Bits per character are those of the judge; entropy is that of single characters minus that of
the held-out text, in nats; a sampler that repeats itself has few bits, low entropy and few distinct 4-grams. Three
seeds of draws.

``variance``: standard deviation of the bound per network call: independent uniform times (with a mask source the weight
is then 1 / t), numbers of noisy tokens, complementary pairs.

``toys``: laws of a few tokens with exact denoisers, beside their theory.

Cells are computed one by one and kept; it may be stopped and run again. ``--seconds 3600`` is a longer run,
``--seconds 10 --out runs/trial`` a trial. ``tokens_speed.py`` is the time of sampling outside the network.
"""

import argparse
import os
from pathlib import Path

import cells

PARTS = ("bits", "samplers", "variance", "toys")
NAMES = (
    "autoregressive",
    "mask",
    "uniform",
    "flow_matching mask",
    "flow_matching mask KL",
    "flow_matching uniform",
    "uniform denoiser",
    "mask cosine",
    "one-hot",
    "dirichlet",
)
TEXTS = ("tinyshakespeare", "enwiki206")
KINDS = ("mask", "uniform", "one-hot", "dirichlet")


def bits_cell(text, name, *, folder, seconds, batch, out):
    """Trains one model and tests it on held-out rows."""
    import tokens_models as models

    if name not in models.MAKERS:
        raise SystemExit(f"{name}: its library is not here; run with the peers' Python.")
    windows, held, alphabet = models.text(text, folder)
    module, loss, scores = models.build(name, alphabet.size)
    steps, history = models.train(module, loss, windows, seconds, batch)
    models.save(module, models.kept(Path(out), text, name))
    parameters = sum(each.numel() for each in module.parameters())
    return {
        "bits": models.tested(scores, held[: models.FEWER.get(name)]),
        "steps": steps,
        "history": history,
        "parameters": parameters,
    }


def show_bits(out, texts):
    print(f"\n{'held-out bits per character':28s}" + "".join(f"{text:>48s}" for text in texts))
    for name in NAMES:
        line = ""
        for text in texts:
            cell = cells.read(out, text, name)
            found = "-"
            if cell is not None:
                pairs = [f"{key} {mean:.3f}±{error:.3f}" for key, (mean, error) in cell["bits"].items()]
                found = ", ".join(pairs) + f" ({cell['steps']})"
            line += f"{found:>48s}"
        print(f"{name:28s}{line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--data", default=os.environ.get("CFLOW_DATA"), help="Default: $CFLOW_DATA")
    parser.add_argument("--texts", nargs="+", choices=TEXTS, default=list(TEXTS))
    parser.add_argument("--models", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--seconds", type=float, default=300.0, help="of processor time for each model")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--calls", nargs="+", type=int, default=[8, 16, 32, 64, 128, 256, 512, 1024])
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--samplers", nargs="+", help="Default: all")
    parser.add_argument("--rows", type=int, default=64, help="samples of each seed")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/tokens"))
    parser.add_argument("--table", action="store_true", help="print what is there, compute nothing")
    asked = parser.parse_args()
    if asked.data is None and set(asked.parts) != {"toys"}:
        parser.error("pass --data FOLDER, or set CFLOW_DATA")
    if "bits" in asked.parts:
        if not asked.table:
            settings = {"folder": asked.data, "seconds": asked.seconds, "batch": asked.batch, "out": str(asked.out)}
            jobs = [(text, name) for text in asked.texts for name in asked.models]
            cells.run(bits_cell, jobs, asked.out, settings, asked.processes)
        show_bits(asked.out, asked.texts)
    if "toys" in asked.parts and not asked.table:
        import tokens_toys

        tokens_toys.show()
    if {"samplers", "variance"} & set(asked.parts):
        import tokens_samplers as samplers

        text, out = asked.texts[0], asked.out / "samplers"
        if "variance" in asked.parts and not asked.table:
            for kind in (each for each in ("mask", "uniform") if each in asked.kinds):
                samplers.variance(asked.out, text, asked.data, kind)
        if "samplers" in asked.parts:
            names = asked.samplers or list(samplers.SAMPLERS)
            if not asked.table:
                settings = {"folder": asked.data, "rows": asked.rows, "out": str(out), "models_of": str(asked.out)}
                jobs = samplers.jobs(text, asked.calls, asked.kinds, names)
                cells.run(samplers.draw, jobs, out, settings, asked.processes)
            samplers.table(out, asked.out, text, asked.calls, asked.kinds, names, asked.data, asked.rows)


if __name__ == "__main__":
    main()
