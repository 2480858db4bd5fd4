"""Everything that a GPU is needed for, in one command of at most five minutes.

    python tests/benchmarks/gpu.py

The most telling parts come first, each in a process of its own (what breaks one leaves the others whole), and each
saves its figures as it ends: the command may be stopped and run again. Without a GPU it says what it would run.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent))

import cells
from gpu_parts import PARTS

TESTS = ("tests/discrete/test_spline_kernel.py", "tests/solvers/capture")
LIMIT = 90  # seconds that one part may take


def settings():
    """Says what the figures were measured on."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"
    return {"device": name, "torch": torch.__version__}


def show(name, result):
    """Prints the figures of a part, one line each."""
    print(f"\n{name}: {PARTS[name].__doc__.splitlines()[0]}" if name in PARTS else f"\n{name}")
    for case, row in result.items():
        if case != "settings":
            print(f"  {case}: {shown(row)}", flush=True)


def shown(value):
    if isinstance(value, dict):
        return "; ".join(f"{name} {shown(each)}" for name, each in value.items())
    if isinstance(value, list):
        return " ".join(map(shown, value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def compute(name, out):
    """Computes one part in this process, and writes it."""
    cells.write(out, (name,), PARTS[name]("cuda", False), settings())


def drive(names, out, seconds, start=subprocess.run, tests=True):
    """Runs the parts that are missing, each in a process of its own, while there is time; gives those that failed."""
    ends, failed = time.monotonic() + seconds, []
    out.mkdir(parents=True, exist_ok=True)
    for name in names:
        left = min(LIMIT, ends - time.monotonic())
        if cells.read(out, name) is None:
            if left <= 0:
                print(f"\n{name}: no time was left; run the command again.")
                failed.append(name)
                continue
            try:
                done = start([sys.executable, __file__, "--part", name, "--out", str(out)], timeout=left)
            except subprocess.TimeoutExpired:
                print(f"\n{name}: stopped after {left:.0f} s.")
                failed.append(name)
                continue
            if done.returncode:
                print(f"\n{name}: failed, exit {done.returncode}.")
                failed.append(name)
                continue
        show(name, cells.read(out, name))
    left = ends - time.monotonic()
    if tests and left > 10:
        environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "--durations=0", "-p", "no:cacheprovider", *TESTS]
        print("\ntests of what is for a GPU alone", flush=True)
        try:
            root = Path(__file__).parents[2]
            failed += ["tests"] * bool(start(command, timeout=left, cwd=root, env=environment).returncode)
        except subprocess.TimeoutExpired:
            print(f"tests: stopped after {left:.0f} s.")
            failed.append("tests")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--out", type=Path, default=Path("runs/gpu"), help="a folder for the figures, one file per part"
    )
    parser.add_argument("--seconds", type=float, default=280, help="the time for all")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS), help="these parts alone")
    parser.add_argument("--part", choices=list(PARTS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        compute(options.part, options.out)
        return
    if not torch.cuda.is_available():
        print("No GPU is here. With one, this would run, in this order:")
        for name in options.parts:
            print(f"  {name}: {PARTS[name].__doc__.splitlines()[0]}")
        print(f"  tests: {' '.join(TESTS)}")
        return
    print(" ".join(f"{name} {value}" for name, value in settings().items()), flush=True)
    failed = drive(options.parts, options.out, options.seconds)
    if failed:
        sys.exit(f"failed or missing: {', '.join(failed)}")


if __name__ == "__main__":
    main()
