"""The bidirectional mixer of a Vim block: one projection in, two scans, one gate, one projection out.

    x, z = split(W_in h)                                     (b, l, e) each
    for each direction:  u = silu(conv(x));  [delta, B, C] = W_x u;  y = scan(u, W_dt delta, A, B, C, D)
    out = W_out ((y_forward + y_backward) / 2 * silu(z))     (b, l, d)

Vim paper, section 3.3 and Algorithm 1. Three things are in the published code and not in Algorithm 1: the D skip, the
division by 2, and the fused maps (x with z; delta with B and C, delta through rank r). The gate is the same in both
directions, so it is applied once, to their sum. Parameter names are those of the published checkpoints.
"""

__all__ = ["BidirectionalMixer"]

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .bidirectional import BIDIRECTIONAL
from .checks import state_dtype
from .conv import CONV
from .direct import mix_directly
from .errors import VimlearnError
from .kernels.layout import Conv, Scan, cast
from .scan import SCAN


class Direction(NamedTuple):
    """The parameters that one direction does not share with the other."""

    conv: nn.Conv1d
    x_proj: nn.Linear
    dt_proj: nn.Linear
    A_log: nn.Parameter
    D: nn.Parameter


class BidirectionalMixer(nn.Module):
    """Mix the tokens of (b, l, d) in both directions and return (b, l, d).

    Arguments
        d_model: width d.
        d_state, d_conv, expand: n, k, and e / d.
        dt_rank: rank r of the step; None means d / 16 rounded up.
        bidirectional: without it there is only the forward scan, and nothing to halve.
        halve_directions: whether the sum of the directions is divided by 2. The released classifiers do, older variants
            do not, and a state dict does not tell.
        depth: number of layers of the network; `out_proj` starts smaller by its square root.
        backend: as in `vimlearn.selective_scan`.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2, dt_rank: int | None = None,
                 bidirectional: bool = True, halve_directions: bool = True, depth: int = 1, backend: str = "auto"):
        super().__init__()
        if min(d_model, d_state, d_conv, expand, depth) < 1:
            raise VimlearnError(f"d_model, d_state, d_conv, expand, depth are {d_model}, {d_state}, {d_conv}, "
                                f"{expand}, {depth}; expected at least 1 each")
        self.d_model, self.d_state, self.d_inner = d_model, d_state, expand * d_model
        self.dt_rank = math.ceil(d_model / 16) if dt_rank is None else dt_rank
        self.bidirectional, self.halve_directions = bidirectional, halve_directions
        self.depth, self.backend = depth, backend
        e, n, r = self.d_inner, self.d_state, self.dt_rank
        self.A_log = nn.Parameter(torch.empty(e, n))
        self.D = nn.Parameter(torch.empty(e))
        if bidirectional:
            self.A_b_log = nn.Parameter(torch.empty(e, n))
            self.D_b = nn.Parameter(torch.empty(e))
        self.in_proj = nn.Linear(d_model, 2 * e, bias=False)
        for suffix in ("", "_b") if bidirectional else ("",):
            self.add_module(f"conv1d{suffix}", nn.Conv1d(e, e, d_conv, groups=e))
            self.add_module(f"x_proj{suffix}", nn.Linear(e, r + 2 * n, bias=False))
            self.add_module(f"dt_proj{suffix}", nn.Linear(r, e))
        self.out_proj = nn.Linear(e, d_model, bias=False)
        self.reset_parameters()

    def directions(self) -> list[Direction]:
        """Return the parameters of the forward direction and, if there is one, of the backward direction."""
        forward = Direction(self.conv1d, self.x_proj, self.dt_proj, self.A_log, self.D)
        if not self.bidirectional:
            return [forward]
        return [forward, Direction(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.A_b_log, self.D_b)]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw fresh parameters as the published code does, its oddities included."""
        for d in self.directions():
            # A = -(1, 2, ..., n) in every channel (S4D-real)
            d.A_log.copy_(torch.arange(1, self.d_state + 1).log().expand_as(d.A_log))
            d.D.fill_(1)
            for layer in (d.conv, d.x_proj, d.dt_proj):
                layer.reset_parameters()
            nn.init.uniform_(d.dt_proj.weight, -self.dt_rank**-0.5, self.dt_rank**-0.5)
            # The backward bias stays 0: the published network zeroes it after the mixer is built.
            d.dt_proj.bias.zero_()
        self.dt_proj.bias.copy_(_inverse_softplus(_random_steps(self.d_inner)))
        self.in_proj.reset_parameters()
        self.out_proj.reset_parameters()
        self.out_proj.weight /= math.sqrt(self.depth)

    def forward(self, h: Tensor) -> Tensor:
        """Return the mixed tokens, (b, l, d), for the normalised tokens h, (b, l, d)."""
        if h.dim() != 3 or h.shape[-1] != self.d_model or 0 in h.shape:
            raise VimlearnError(f"h has shape {tuple(h.shape)}; expected (b, l, d) with d = {self.d_model}, not empty")
        if (mixed := mix_directly(self, h)) is not None:
            return mixed
        scans, z = self.inputs(h)
        if self.bidirectional:
            scan = BIDIRECTIONAL.choose(self.backend, z.device, z.dtype)
            y = scan(*scans, z, True, self.scale)
        else:
            u, delta, A, B, C, D, delta_bias, *_ = scans[0].projected()
            y, _ = SCAN.choose(self.backend, z.device, z.dtype)(u, delta, A, B, C, D, z, delta_bias, True, False)
        return self.out_proj(y)

    @property
    def scale(self) -> float:
        """What the sum of the directions is multiplied by."""
        return 0.5 if self.bidirectional and self.halve_directions else 1.0

    def inputs(self, h: Tensor) -> tuple[list[Scan], Tensor]:
        """Return what the scan of each direction takes, and the gate z (b, l, e), for the normalised tokens h."""
        # (b, l, e) each
        x, z = self.in_proj(h).chunk(2, dim=-1)
        directions = self.directions()
        # The operations without their checks: here the shapes fit by construction.
        convolve = CONV.choose(CONV.backend_or_auto(self.backend, x.device), x.device, x.dtype)
        convs = [Conv(d.conv.weight.squeeze(1), d.conv.bias, reverse=i == 1) for i, d in enumerate(directions)]
        us = convolve(x, convs, True)
        return [self.scan_inputs(u, d, reverse=i == 1) for i, (u, d) in enumerate(zip(us, directions, strict=True))], z

    def scan_inputs(self, u: Tensor, direction: Direction, reverse: bool = False) -> Scan:
        """Return what the scan of one direction takes, for the convolved tokens u, (b, l, e)."""
        _, x_proj, dt_proj, A_log, D = direction
        # (b, l, r), (b, l, n), (b, l, n)
        delta, B, C = x_proj(u).split_with_sizes([self.dt_rank, self.d_state, self.d_state], dim=-1)
        wide = state_dtype(A_log.dtype)
        # The bias goes inside the softplus, in float32.
        return Scan(u, delta, -cast(A_log, wide).exp(), B, C, cast(D, wide), cast(dt_proj.bias, wide),
                    cast(dt_proj.weight, delta.dtype), reverse)


def _random_steps(count: int, low: float = 1e-3, high: float = 1e-1, floor: float = 1e-4) -> Tensor:
    """Return `count` steps, log-uniform between `low` and `high`."""
    u = torch.rand(count)
    return torch.exp(u * (math.log(high) - math.log(low)) + math.log(low)).clamp(min=floor)


def _inverse_softplus(step: Tensor) -> Tensor:
    return step + torch.log(-torch.expm1(-step))
