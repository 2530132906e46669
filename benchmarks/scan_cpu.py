"""Time the scan and the smallest Vim on this CPU against their floor and their peers.

    pip install --no-deps -r benchmarks/peers.txt
    python benchmarks/scan_cpu.py

Writes benchmarks/scan_cpu.csv. The sizes are those of Vim-Ti at 224 pixels. What is compared: vimlearn.benchmark
.scan_contest, which `vimlearn bench scan` runs at any sizes.
"""

import argparse
from pathlib import Path

import torch

import vimlearn  # noqa: F401  mends torchvision where its operators are missing, before timm is imported
from vimlearn.benchmark import Contestant, contest, environment, write_rows
from vimlearn.benchmark.scan_contest import scan_contest
from vimlearn.benchmark.summary import plain


def networks(rounds: int) -> list[dict]:
    """Compare Vim-Ti with DeiT-Ti of timm, one image, forward."""
    import timm
    image = torch.randn(1, 3, 224, 224)
    nets = {name: timm.create_model(name).eval() for name in ("vim_tiny_patch16_224", "deit_tiny_patch16_224")}

    def call(net):
        def run():
            with torch.no_grad():
                net(image)
        return run
    return contest("network forward, 1 image of 224 pixels",
                   [Contestant(name, call(net), 3) for name, net in nets.items()], "deit_tiny_patch16_224", rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("scan_cpu.csv"), help="CSV to write")
    options = parser.parse_args()
    where = environment("numba", "timm", "transformers", "mambapy")
    rows = scan_contest(rounds=options.rounds, peers=True) + networks(3 * options.rounds)
    write_rows(options.output, [row | where for row in rows])
    print("\n".join(plain(rows)))


if __name__ == "__main__":
    main()
