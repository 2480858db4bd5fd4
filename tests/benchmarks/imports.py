"""How long ``import cflow`` takes once torch is imported (medians over fresh processes), and what else it imports.

python tests/benchmarks/imports.py --rounds 9
"""

import argparse
import statistics
import subprocess
import sys

CODE = """
import sys, time
import torch
before, start = set(sys.modules), time.perf_counter()
import cflow
seconds = time.perf_counter() - start
new = {name.split(".")[0] for name in set(sys.modules) - before} - {"cflow", "torch"} - sys.stdlib_module_names
print(seconds, len([name for name in sys.modules if name.startswith("cflow")]), *sorted(new))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9, help="fresh processes; default: 9")
    rounds = parser.parse_args().rounds
    lines = [
        subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout.split()
        for _ in range(rounds + 1)
    ][1:]  # the first one reads the files from disk
    seconds = sorted(float(line[0]) for line in lines)
    print(
        f"import cflow after torch: median {statistics.median(seconds):.2f} s, {seconds[0]:.2f} to {seconds[-1]:.2f} s"
    )
    print(f"{lines[0][1]} modules of cflow; others: {', '.join(lines[0][2:]) or 'none'}")


if __name__ == "__main__":
    main()
