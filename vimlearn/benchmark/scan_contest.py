"""The scan alone, on the CPU: the kernel against its floor, the PyTorch backends, and other packages.

Every contestant computes the same function of the same tensors: softplus(delta + bias), the scan, the skip D u and the
gate silu(z). The floor does the exponentials and multiply-adds alone.
"""

__all__ = ["Sizes", "agree", "scan_contest", "tensors"]

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import VimlearnError
from ..kernels.numba_rows import LANES
from ..scan import selective_scan
from .contest import Contestant, contest
from .scan_floor import scan_floor

PER_TOKEN = ("u", "delta", "B", "C", "z")


class Sizes(NamedTuple):
    """b sequences of l tokens, e channels, n states. The defaults are those of Vim-Ti at 224 pixels."""

    b: int = 8
    l: int = 197
    e: int = 384
    n: int = 16

    def __str__(self) -> str:
        return f"{self.b} x {self.l} tokens, {self.e} channels, {self.n} states"


DEFAULT = Sizes()


def scan_contest(sizes: Sizes = DEFAULT, rounds: int = 15, peers: bool = False) -> list[dict]:
    """Let the contestants take turns, forward and then with gradients, and return their rows, as `contest` does.

    peers: whether transformers and mambapy take part. Raises VimlearnError where sizes do not fit the floor or the
    peers are not installed.
    """
    if min(sizes) < 1 or sizes.e % LANES or sizes.n % 4:
        raise VimlearnError(f"the scan has {sizes}; expected at least 1 of each, channels in multiples of {LANES} and "
                            "states in multiples of 4, as the floor counts them")
    x = tensors(sizes)
    scans = {name: (_ours(name), x) for name in ("numba", "parallel", "loop")}
    if peers:
        _check_peers()
        scans |= {"transformers": (_transformers, _channels_first(x)), "mambapy": (_mambapy, x)}
    agree(scans)
    rows = contest(f"scan forward, {sizes}", [
        Contestant("floor", lambda: scan_floor(*sizes), 10),
        *(Contestant(name, _forward(*scan), 10 if name == "numba" else 1) for name, scan in scans.items())],
        "numba", rounds)
    # The scan of transformers is compared forward only.
    return rows + contest(f"scan forward and backward, {sizes}", [
        Contestant(name, _forward_and_backward(*scan), 5 if name == "numba" else 1)
        for name, scan in scans.items() if name != "transformers"],
        "numba", max(rounds // 2, 3))


def tensors(sizes: Sizes) -> dict[str, Tensor]:
    """Return inputs as a fresh Vim has them: A = -(1, ..., n), steps of about 0.05."""
    b, l, e, n = sizes
    torch.manual_seed(0)
    u, z, delta = torch.randn(b, l, e), torch.randn(b, l, e), torch.randn(b, l, e)
    A = -torch.arange(1, n + 1.0).repeat(e, 1)
    return {"u": u, "delta": delta, "A": A, "B": torch.randn(b, l, n), "C": torch.randn(b, l, n),
            "D": torch.ones(e), "z": z, "delta_bias": torch.full((e,), -3.0)}


def agree(scans: dict[str, tuple[Callable, dict]]) -> None:
    """Raise AssertionError unless all contestants give the same numbers: a benchmark of wrong results means nothing."""
    loop, x = scans["loop"]
    expected = loop(**x)
    for name, (scan, inputs) in scans.items():
        y = scan(**inputs)
        y = y[0] if isinstance(y, tuple) else y
        y = y if y.shape == expected.shape else y.transpose(1, 2)
        torch.testing.assert_close(y, expected, rtol=1e-3, atol=1e-3, msg=lambda m, name=name: f"{name}: {m}")


def _channels_first(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return {k: v.transpose(1, 2).contiguous() if k in PER_TOKEN else v for k, v in x.items()}


def _ours(backend: str) -> Callable:
    def scan(**x):
        return selective_scan(**x, delta_softplus=True, backend=backend)
    return scan


def _mambapy(u, delta, A, B, C, D, z, delta_bias):
    """The selective scan around mambapy's parallel scan, the way its own Mamba block calls it."""
    from mambapy.pscan import pscan
    step = F.softplus(delta + delta_bias)
    states = pscan(torch.exp(step.unsqueeze(-1) * A), (step * u).unsqueeze(-1) * B.unsqueeze(2))
    return ((states @ C.unsqueeze(-1)).squeeze(3) + D * u) * F.silu(z)


def _transformers(u, delta, A, B, C, D, z, delta_bias):
    """The scan of transformers on its default path; it wants channels before tokens."""
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan
    return mamba_selective_scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus=True)


def _check_peers() -> None:
    try:
        import mambapy.pscan  # noqa: F401
        import transformers.models.mamba.modeling_mamba  # noqa: F401
    except ImportError as error:
        raise VimlearnError(f"the peers are not installed ({error}); run pip install --no-deps -r "
                            "benchmarks/peers.txt, or leave out --peers") from error


def _forward(function: Callable, x: dict[str, Tensor]) -> Callable[[], None]:
    def call():
        with torch.no_grad():
            function(**x)
    return call


def _forward_and_backward(function: Callable, x: dict[str, Tensor]) -> Callable[[], None]:
    leaves = {k: v.clone().requires_grad_() for k, v in x.items()}

    def call():
        for leaf in leaves.values():
            leaf.grad = None
        y = function(**leaves)
        y.backward(torch.ones_like(y))
    return call
