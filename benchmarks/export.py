"""Time the network that comes along, and Vim-Ti with --tiny, beside the files that `vimlearn export` writes of it.

    python benchmarks/export.py

Writes benchmarks/export_cpu.csv. The files are written to a folder that is removed again, and are compared with the
network first, as the command does.
"""

import argparse
import tempfile
from pathlib import Path

import vimlearn
from vimlearn.benchmark import environment, write_rows
from vimlearn.cli_export import speed_rows
from vimlearn.export import FORMATS, export_network, trace


def measure(name: str, model: vimlearn.VisionMamba, batches: list[int], rounds: int) -> list[dict]:
    """Export a network and return the rows of a contest for each number of images at a time."""
    program, rows = trace(model), []
    with tempfile.TemporaryDirectory() as folder:
        paths = {form: Path(folder) / f"model.{form}" for form in FORMATS}
        for path in paths.values():
            export_network(model, path, program=program)
        for batch in batches:
            for row in speed_rows(model, paths, batch, rounds):
                rate = f"{1e3 * batch / float(row['median_ms']):.4g}"
                rows.append({**row, "what": name, "images": batch, "images_per_second": rate})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="measure Vim-Ti at 224 pixels too, with random weights")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 32], help="images at a time")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each contestant")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("export_cpu.csv"))
    options = parser.parse_args()
    networks = {"shipped:cifar10": vimlearn.load_model("shipped:cifar10")}
    if options.tiny:
        import timm
        networks["vim_tiny_patch16_224"] = timm.create_model("vim_tiny_patch16_224").eval()
    rows = [row for name, model in networks.items() for row in measure(name, model, options.batches, options.rounds)]
    write_rows(options.output, [{**row, **environment("onnxruntime", "numba")} for row in rows])
    for row in rows:
        print(f"{row['what']:24} {row['images']:3} at a time  {row['contestant']:12} {row['median_ms']:>8} ms  "
              f"{row['images_per_second']:>7} images a second  {row['times_network']} times the network's time")


if __name__ == "__main__":
    main()
