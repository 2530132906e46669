"""Time training steps of Vim and DeiT at 224 pixels, and say what the full ImageNet-1K run costs at that rate.

    python benchmarks/training.py

Writes benchmarks/training_cpu.csv, or training_gpu.csv where there is a GPU. A step is forward, backward and AdamW on
random images that are on the device already. DeiT is timm's, with fused attention. Nothing is compiled.
"""

import argparse
from pathlib import Path

import torch

import vimlearn  # noqa: F401  mends torchvision where its operators are missing, before timm is imported
from vimlearn.benchmark import Contestant, contest, environment, write_rows
from vimlearn.benchmark.training_step import run_hours, training_step
from vimlearn.training.memory import keep_freed_memory

PAIRS = {"tiny": ("vim_tiny_patch16_224", "deit_tiny_patch16_224"),
         "small": ("vim_small_patch16_224", "deit_small_patch16_224")}


def measure(options, device: str) -> list[dict]:
    """Run a contest for each size and number format, and return the rows."""
    import timm
    rows = []
    for size in options.sizes:
        vim, deit = PAIRS[size]
        for name in options.precisions:
            steps = [Contestant(model, training_step(timm.create_model(model), options.batch_size, 224,
                                                     getattr(torch, name), device), options.calls)
                     for model in (vim, deit)]
            found = contest(f"training step, batch {options.batch_size}, 224 pixels, {name}", steps, deit,
                            options.rounds)
            for row in found:
                rate = 1e3 * options.batch_size / float(row["median_ms"])
                rows.append({**row, "images_per_second": f"{rate:.4g}", "hours_300_epochs": f"{run_hours(rate):.4g}"})
    return rows


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", nargs="+", choices=PAIRS, default=list(PAIRS) if on_gpu else ["tiny"])
    parser.add_argument("--precisions", nargs="+", choices=["float32", "bfloat16"],
                        default=["float32", "bfloat16"] if on_gpu else ["float32"])
    parser.add_argument("--batch-size", type=int, default=128 if on_gpu else 8, help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=10, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=5 if on_gpu else 1, help="steps in a turn (default: %(default)s)")
    parser.add_argument("--output", type=Path, help="CSV to write")
    options = parser.parse_args()
    # As `vimlearn train` does, for all contestants alike.
    keep_freed_memory()
    output = options.output or Path(__file__).with_name(f"training_{'gpu' if on_gpu else 'cpu'}.csv")
    where = environment("timm", "triton" if on_gpu else "numba")
    rows = [row | where for row in measure(options, "cuda" if on_gpu else "cpu")]
    write_rows(output, rows)
    for row in rows:
        ratio = next(value for key, value in row.items() if key.startswith("times_"))
        print(f"{row['what']:60} {row['contestant']:24} {row['images_per_second']:>7} images/s, {ratio:>5} times DeiT")
        print(f"{'':60} 300 epochs of ImageNet-1K at that rate: {row['hours_300_epochs']} hours")


if __name__ == "__main__":
    main()
