"""Time the scan and the smallest Vim on this CPU against their floor and their peers.

    pip install -r benchmarks/peers.txt
    python benchmarks/scan_cpu.py

Writes benchmarks/scan_cpu.csv. The sizes are those of Vim-Ti at 224 pixels: 8 sequences of 197 tokens, 384 channels, 16
states. Every contestant computes the same function of the same tensors: softplus(delta + bias), the scan, the skip D u
and the gate silu(z).
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F

import vimlearn
from vimlearn.benchmark import Contestant, contest, environment, write_rows
from vimlearn.benchmark.scan_floor import scan_floor

B, L, E, N = 8, 197, 384, 16


def tensors() -> dict[str, torch.Tensor]:
    """Return inputs as a fresh Vim-Ti has them: A = -(1, ..., n), steps of about 0.05."""
    torch.manual_seed(0)
    u, z, delta = torch.randn(B, L, E), torch.randn(B, L, E), torch.randn(B, L, E)
    A = -torch.arange(1, N + 1.0).repeat(E, 1)
    return {"u": u, "delta": delta, "A": A, "B": torch.randn(B, L, N), "C": torch.randn(B, L, N),
            "D": torch.ones(E), "z": z, "delta_bias": torch.full((E,), -3.0)}


def mambapy_scan(u, delta, A, B, C, D, z, delta_bias):
    """The selective scan around mambapy's parallel scan, the way its own Mamba block calls it."""
    from mambapy.pscan import pscan
    step = F.softplus(delta + delta_bias)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), (step * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def transformers_scan(u, delta, A, B, C, D, z, delta_bias):
    """The scan of transformers on its default path; it wants channels before tokens."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    return mamba_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def ours(backend):
    def scan(**x):
        return vimlearn.selective_scan(**x, delta_softplus=True, backend=backend)
    return scan


def forward(function, x):
    def call():
        with torch.no_grad():
            function(**x)
    return call


def forward_and_backward(function, x):
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}

    def call():
        for leaf in leaves.values():
            leaf.grad = None
        y = function(**leaves)
        y.backward(torch.ones_like(y))
    return call


def agree(x) -> None:
    """Raise unless all contestants give the same numbers: a benchmark of wrong results means nothing."""
    expected = ours("loop")(**x)
    across = {k: v.transpose(1, 2) if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    found = {"numba": ours("numba")(**x), "mambapy": mambapy_scan(**x)}
    found["transformers"] = transformers_scan(**across)
    for name, y in found.items():
        y = y[0] if isinstance(y, tuple) else y
        y = y if y.shape == expected.shape else y.transpose(1, 2)
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def measure(rounds: int) -> list[dict]:
    """Run all contests and return their rows."""
    x = tensors()
    agree(x)
    across = {k: v.transpose(1, 2).contiguous() if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    size = f"{B} x {L} tokens, {E} channels, {N} states"
    rows = contest(f"scan forward, {size}", [
        Contestant("numba", forward(ours("numba"), x), 10),
        Contestant("floor", lambda: scan_floor(B, L, E, N), 10),
        Contestant("parallel", forward(ours("parallel"), x)),
        Contestant("loop", forward(ours("loop"), x)),
        Contestant("transformers", forward(transformers_scan, across)),
        Contestant("mambapy", forward(mambapy_scan, x)),
    ], "numba", rounds)
    rows += contest(f"scan forward and backward, {size}", [
        Contestant("numba", forward_and_backward(ours("numba"), x), 5),
        Contestant("parallel", forward_and_backward(ours("parallel"), x)),
        Contestant("loop", forward_and_backward(ours("loop"), x)),
        Contestant("mambapy", forward_and_backward(mambapy_scan, x)),
    ], "numba", max(rounds // 2, 3))
    return rows + models(rounds)


def models(rounds: int) -> list[dict]:
    """Vim-Ti against DeiT-Ti of timm, which uses fused attention, for one image of 224 pixels."""
    import timm
    image = torch.randn(1, 3, 224, 224)
    nets = {name: timm.create_model(name).eval() for name in ("vim_tiny_patch16_224", "deit_tiny_patch16_224")}

    def call(net):
        def run():
            with torch.no_grad():
                net(image)
        return run
    return contest("network forward, 1 image of 224 pixels",
                   [Contestant(name, call(net), 3) for name, net in nets.items()], "deit_tiny_patch16_224", 3 * rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each contestant (default: %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("scan_cpu.csv"), help="CSV to write")
    options = parser.parse_args()
    where = environment("numba", "timm", "transformers", "mambapy")
    rows = [row | where for row in measure(options.rounds)]
    write_rows(options.output, rows)
    for row in rows:
        ratio = next(f"{value} times {key[6:]}" for key, value in row.items() if key.startswith("times_"))
        print(f"{row['what']:70} {row['contestant']:22} {row['median_ms']:>8} ms, {ratio}")


if __name__ == "__main__":
    main()
