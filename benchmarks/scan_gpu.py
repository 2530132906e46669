"""Time the Triton scan on a GPU against its floor, the PyTorch backends and mamba_ssm.

    python benchmarks/scan_gpu.py

Writes benchmarks/scan_gpu.csv. The floor is the larger of bytes over the measured bandwidth and exponentials over their
measured rate. mamba_ssm takes part where it can be imported. For both directions it runs twice, the second time over
flipped copies, with the gate each time: the way of the published Vim. `--dry-run` does everything once on the CPU, with
tiny sizes and without the floor, to see that the script works.
"""

import argparse
from pathlib import Path

import torch

import vimlearn
from vimlearn.benchmark import Contestant, contest, environment, write_rows

# (b, l, e, n): Vim-Ti at 224 pixels in a large batch, and at 1248 pixels, 6,085 tokens, in two.
SIZES = [(128, 197, 384, 16), (16, 6085, 384, 16), (1, 6085, 384, 16)]
SMALL = [(1, 20, 64, 16)]


def tensors(size, dtype, device) -> dict[str, torch.Tensor]:
    """Return the inputs of both directions; those of the backward direction end in _b."""
    b, l, e, n = size
    torch.manual_seed(0)
    result = {"z": torch.randn(b, l, e, dtype=dtype, device=device)}
    for suffix in ("", "_b"):
        for name, last in (("u", e), ("delta", e), ("B", n), ("C", n)):
            result[name + suffix] = torch.randn(b, l, last, dtype=dtype, device=device)
        result["A" + suffix] = -torch.arange(1, n + 1.0, device=device).repeat(e, 1)
        result["D" + suffix] = torch.ones(e, device=device)
        result["delta_bias" + suffix] = torch.full((e,), -3.0, device=device)
    return result


def one(x, suffix=""):
    return {name: x[name + suffix] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")}


def ours_one(backend):
    def scan(x):
        return vimlearn.selective_scan(**one(x), z=x["z"], delta_softplus=True, backend=backend)
    return scan


def ours_both(backend):
    def scan(x):
        return vimlearn.bidirectional_scan(vimlearn.Scan(**one(x)), vimlearn.Scan(**one(x, "_b")), x["z"],
                                           delta_softplus=True, scale=0.5, backend=backend)
    return scan


def peer_one(x, suffix="", flip=False):
    """mamba_ssm's CUDA scan; it wants channels before tokens."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def across(tensor):
        return (tensor.flip(1) if flip else tensor).transpose(1, 2).contiguous()
    t = one(x, suffix)
    y = selective_scan_fn(across(t["u"]), across(t["delta"]), t["A"], across(t["B"]), across(t["C"]), t["D"],
                          z=across(x["z"]), delta_bias=t["delta_bias"], delta_softplus=True)
    y = y.transpose(1, 2)
    return y.flip(1) if flip else y


def peer_both(x):
    return (peer_one(x) + peer_one(x, "_b", flip=True)) / 2


def call(function, x, backward):
    if not backward:
        def run():
            with torch.no_grad():
                function(x)
        return run
    leaves = {name: value.clone().requires_grad_() for name, value in x.items()}

    def run():
        for leaf in leaves.values():
            leaf.grad = None
        y = function(leaves)
        y.backward(torch.ones_like(y))
    return run


def measure(options, ceilings) -> list[dict]:
    """Run all contests and return their rows."""
    ours, device = ("numba", "cpu") if options.dry_run else ("triton", "cuda")
    rows = []
    for size in SMALL if options.dry_run else SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            x = tensors(size, dtype, device)
            for directions, mine, peer in ((1, ours_one, peer_one), (2, ours_both, peer_both)):
                fields = [(ours, mine(ours))]
                if size[0] * size[1] < 40_000:
                    fields.append(("parallel", mine("parallel")))
                if options.mamba_ssm:
                    fields.append(("mamba_ssm", peer))
                check(fields, x)
                for backward in (False, True):
                    title = f"{directions} direction(s), {'forward and backward' if backward else 'forward'}, " \
                            f"{'b {} l {} e {} n {}'.format(*size)}, {str(dtype)[6:]}"
                    found = contest(title, [Contestant(name, call(f, x, backward), options.calls)
                                            for name, f in fields], ours, options.rounds)
                    if ceilings and not backward:
                        found = [row | floor_columns(row, size, dtype, directions, ceilings) for row in found]
                    rows += found
    return rows


def check(fields, x) -> None:
    """Raise unless all contestants agree: a benchmark of wrong results means nothing."""
    with torch.no_grad():
        results = [(name, function(x).float()) for name, function in fields]
    for name, y in results[1:]:
        torch.testing.assert_close(y, results[0][1], rtol=5e-2, atol=5e-2, msg=lambda m, name=name: f"{name}: {m}")


def floor_columns(row, size, dtype, directions, ceilings) -> dict:
    from vimlearn.benchmark.gpu_ceilings import scan_floor_seconds
    floor = 1e3 * scan_floor_seconds(*size, dtype.itemsize, directions, *ceilings)
    return {"floor_ms": f"{floor:.4g}", "part_of_floor": f"{floor / float(row['median_ms']):.3f}"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=20, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--calls", type=int, default=10, help="calls in a turn (default: %(default)s)")
    parser.add_argument("--dry-run", action="store_true", help="run everything once on the CPU, with tiny sizes")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("scan_gpu.csv"), help="CSV to write")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU here; with --dry-run the script runs on the CPU")
    try:
        import mamba_ssm  # noqa: F401
        options.mamba_ssm = not options.dry_run
    except ImportError:
        print("mamba_ssm cannot be imported, so it takes no part")
        options.mamba_ssm = False
    ceilings = None
    if options.dry_run:
        options.rounds, options.calls = 1, 1
    else:
        from vimlearn.benchmark.gpu_ceilings import bandwidth, exponentials
        ceilings = bandwidth(), exponentials()
        print(f"measured: {ceilings[0] / 1e12:.2f} TB/s, {ceilings[1] / 1e12:.2f} tera-exponentials/s")
    where = environment("triton", "mamba_ssm")
    rows = [row | where for row in measure(options, ceilings)]
    for row in rows:
        print({key: value for key, value in row.items() if key not in where})
    if not options.dry_run:
        write_rows(options.output, rows)


if __name__ == "__main__":
    main()
