"""Time the Triton scan on a GPU against its floor, the PyTorch backends and mamba_ssm.

    python benchmarks/scan_gpu.py

Writes benchmarks/scan_gpu.csv. The floor is the larger of bytes over the measured bandwidth and exponentials over their
measured rate. A scan in segments computes its exponentials twice, so where they are the floor it reaches half of it at
most: that is so for the two long sizes. B and C are slices of a projection, as in a network.

mamba_ssm takes part where it can be imported. It wants channels before tokens and gets them so. For both directions it
runs twice, the second time over flipped copies, with the gate each time: the way of the published Vim. `--dry-run` does
everything once on the CPU, with tiny sizes and without the floor, to see that the script works.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

import torch

import vimlearn
from vimlearn.benchmark import Contestant, contest, environment, write_rows

# (b, l, e, n): Vim-Ti at 224 pixels in a large batch, and at 1248 pixels, 6,085 tokens, in two.
SIZES = [(128, 197, 384, 16), (16, 6085, 384, 16), (1, 6085, 384, 16)]
SMALL = [(1, 20, 64, 16)]
RANK = 12
PER_TOKEN = ("u", "delta", "B", "C", "z")


def tensors(size, dtype, device) -> dict[str, torch.Tensor]:
    """Return the inputs of both directions; those of the backward direction end in _b."""
    b, l, e, n = size
    torch.manual_seed(0)
    result = {"z": torch.randn(b, l, e, dtype=dtype, device=device)}
    for suffix in ("", "_b"):
        for name in ("u", "delta"):
            result[name + suffix] = torch.randn(b, l, e, dtype=dtype, device=device)
        projected = torch.randn(b, l, RANK + 2 * n, dtype=dtype, device=device)
        result["B" + suffix], result["C" + suffix] = projected[..., RANK:].split(n, -1)
        result["A" + suffix] = -torch.arange(1, n + 1.0, device=device).repeat(e, 1)
        result["D" + suffix] = torch.ones(e, device=device)
        result["delta_bias" + suffix] = torch.full((e,), -3.0, device=device)
    return result


def channels_first(x: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the inputs as mamba_ssm wants them: what has tokens as (b, channels, l)."""
    return {k: v.transpose(1, 2).contiguous() if k.removesuffix("_b") in PER_TOKEN else v for k, v in x.items()}


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
    """mamba_ssm's CUDA scan of inputs with channels first; y (b, e, l)."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    t = one(x, suffix) | {"z": x["z"]}
    if flip:
        t |= {name: t[name].flip(-1) for name in PER_TOKEN}
    y = selective_scan_fn(t["u"], t["delta"], t["A"], t["B"], t["C"], t["D"], z=t["z"], delta_bias=t["delta_bias"],
                          delta_softplus=True)
    return y.flip(-1) if flip else y


def peer_both(x):
    return (peer_one(x) + peer_one(x, "_b", flip=True)) / 2


def call(function, x, backward):
    if not backward:
        def run():
            with torch.no_grad():
                function(x)
        return run
    # No clone: it would lay the slices B and C out anew.
    leaves = {name: value.detach().requires_grad_() for name, value in x.items()}

    def run():
        for leaf in leaves.values():
            leaf.grad = None
        y = function(leaves)
        y.backward(torch.ones_like(y))
    return run


def measure(options, ceilings) -> Iterator[list[dict]]:
    """Run one contest after the other and give its rows."""
    ours, device = ("numba", "cpu") if options.dry_run else ("triton", "cuda")
    for size in SMALL if options.dry_run else SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            x = tensors(size, dtype, device)
            for directions, mine, peer in ((1, ours_one, peer_one), (2, ours_both, peer_both)):
                fields = [(ours, mine(ours), x)]
                if size[0] * size[1] < 40_000:
                    fields.append(("parallel", mine("parallel"), x))
                if options.mamba_ssm:
                    fields.append(("mamba_ssm", peer, channels_first(x)))
                check(fields)
                for backward in (False, True):
                    title = f"{directions} direction(s), {'forward and backward' if backward else 'forward'}, " \
                            f"{'b {} l {} e {} n {}'.format(*size)}, {str(dtype)[6:]}"
                    found = contest(title, [Contestant(name, call(function, given, backward), options.calls)
                                            for name, function, given in fields], ours, options.rounds)
                    if ceilings and not backward:
                        found = [row | floor_columns(row, size, dtype, directions, ceilings) for row in found]
                    yield found


def check(fields) -> None:
    """Raise unless all contestants agree: a benchmark of wrong results means nothing."""
    with torch.no_grad():
        results = [(name, function(x).float()) for name, function, x in fields]
    for name, y in results[1:]:
        y = y.transpose(1, 2) if name == "mamba_ssm" else y
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
    rows = []
    for found in measure(options, ceilings):
        rows += [row | where for row in found]
        print(*found, sep="\n", flush=True)
        # What is measured stays, whatever comes after it.
        if not options.dry_run:
            write_rows(options.output, rows)


if __name__ == "__main__":
    main()
