"""Time the maps of vimlearn.explain on this CPU, with the forward pass of the network as yardstick.

    python benchmarks/explain.py

Writes benchmarks/explain_cpu.csv: Vim-Ti with fresh weights, all 24 layers, the class token as query, one image.
"""

import argparse
from pathlib import Path

import vimlearn  # noqa: F401  (before anything imports timm)
from vimlearn.benchmark import environment, write_rows
from vimlearn.benchmark.explaining import measure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[224, 448], help="pixels (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("explain_cpu.csv"), help="CSV to write")
    options = parser.parse_args()
    where = environment("numba", "timm")
    rows = [row | where for row in measure(options.sizes, options.rounds)]
    write_rows(options.output, rows)
    for row in rows:
        print(f"{row['what']:60} {row['contestant']:18} {row['median_ms']:>8} ms, {row['times_forward']} times forward")


if __name__ == "__main__":
    main()
