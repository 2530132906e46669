"""Checks of chapter 05: the parts of the Vim block, two directions, and its parameters on paper."""

import torch
import torch.nn.functional as F
from torch import Tensor

from vimlearn.conv import causal_conv1d
from vimlearn.course.exercise import Wrong, call, exercise, gradients, match, parts
from vimlearn.norm import add_rms_norm


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _entries(answer: object, *keys: str) -> list:
    """Return the answer's values for `keys`, or raise Wrong if it is no dict with these keys."""
    if not isinstance(answer, dict) or set(answer) != set(keys):
        raise Wrong(f"keep the dict of the cell above, with the keys {', '.join(map(repr, keys))}")
    missing = [key for key in keys if answer[key] is None]
    if missing:
        raise Wrong(f"{missing[0]!r} is still None; give a number")
    return [answer[key] for key in keys]


@exercise("5.1", "Who reaches patch 9?")
def patch_reach(answer):
    """Count the tokens of a 4 x 4 grid that reach token 9."""
    forward, backward, both, two = _entries(answer, "forward", "backward", "both", "two forward")
    match(forward, 10, name="'forward'", mistakes={
        "'forward' leaves out the token itself: tokens 0 to 9 are ten": 9,
        "7 is what a backward scan reaches, or what reaches token 6: row 2, column 1 is token 2 · 4 + 1 = 9": 7,
        "row and column are counted from 0: row 2, column 1 is token 2 · 4 + 1": 5,
        "'forward' counts the patches above and to the left; the scan reads rows, so all of the rows above reach it": 6,
        "in a forward scan later tokens do not reach token 9": 16,
    })
    match(backward, 7, name="'backward'", mistakes={
        "'backward' leaves out the token itself: tokens 9 to 15 are seven": 6,
        "'backward' counts the tokens before patch 9; a backward scan starts at token 15 and comes down to 9": 10,
        "in a backward scan earlier tokens do not reach token 9": 16,
    })
    match(both, 16, name="'both'", mistakes={
        "'both' counts token 9 twice: it is in the forward and in the backward set": 17,
        "'both' leaves out the token itself": 15,
    })
    match(two, 10, name="'two forward'", mistakes={
        "a second forward scan does not help: it reads outputs 0 to 9, which hold nothing of tokens 10 to 15": 16,
        "two scans do not reach twice as far: the second reads outputs 0 to 9, which know tokens 0 to 9 only": 20,
        "'two forward' leaves out the token itself": 9,
    })
    return "10 forward, 7 backward, 16 together, and depth alone does not help a forward scan."


@exercise("5.2", "RMSNorm")
def rms_norm(answer):
    """Check x / sqrt(mean(x²) + eps) w, for one token and for a batch, with its gradients."""
    def reference(x, weight, eps):
        return add_rms_norm(x, None, weight, eps, backend="loop")[0]

    one = torch.tensor([[[1.0, -1.0, 5.0, 3.0]]], dtype=torch.float64)
    # The batch first: one token with weights of 1 makes mistakes look like a factor.
    for x, weight, eps in ((_randn(2, 5, 3), _randn(3, seed=1), 0.2), (one, torch.ones(4, dtype=torch.float64), 0.3)):
        mean_square, centred = x.square().mean(-1, keepdim=True), x - x.mean(-1, keepdim=True)
        match(call(answer, x, weight, eps), reference(x, weight, eps), name="y", mistakes={
            "the mean is subtracted: that is LayerNorm; RMSNorm leaves it in":
                weight * centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt(),
            "the mean is subtracted before the division; RMSNorm leaves it in":
                weight * centred / (mean_square + eps).sqrt(),
            "x is divided by its standard deviation, which subtracts the mean; RMSNorm leaves it in":
                weight * x / (centred.square().mean(-1, keepdim=True) + eps).sqrt(),
            "x is divided by std, which subtracts the mean and divides by one less; take the root of the mean square":
                weight * x / (x.std(-1, keepdim=True) + eps),
            "x is divided by var, which subtracts the mean and divides by one less; take the mean square":
                weight * x / (x.var(-1, keepdim=True) + eps).sqrt(),
            "the weight is used as 1 + weight; it is a factor": (1 + weight) * x / (mean_square + eps).sqrt(),
            "eps stands outside the root; add it to the mean square, under the root":
                weight * x / (mean_square.sqrt() + eps),
            "eps is missing: add it to the mean square": weight * x / mean_square.sqrt(),
            "eps has its default value; use the one that is passed in": weight * x / (mean_square + 1e-5).sqrt(),
            "the weight is missing": x / (mean_square + eps).sqrt(),
            "the sum of the squares is used; take their mean over the channels":
                weight * x / (x.square().sum(-1, keepdim=True) + eps).sqrt(),
            "the square root is missing": weight * x / (mean_square + eps),
            "the mean is taken over the tokens; take it over the channels of each token, dim=-1":
                weight * x / (x.square().mean(1, keepdim=True) + eps).sqrt(),
            "one mean is taken over everything; each token has its own, over dim=-1":
                weight * x / (x.square().mean() + eps).sqrt(),
            "the mean of x is squared; take the mean of the squares":
                weight * x / (x.mean(-1, keepdim=True).square() + eps).sqrt(),
        })
    x, weight = _randn(2, 5, 3), _randn(3, seed=1)
    match(gradients(answer, x, weight, 0.2), gradients(reference, x, weight, 0.2), name=("dx", "dweight"))
    return "each token is divided by its own root mean square, eps under the root."


def _shifted_sum(x: Tensor, weight: Tensor, bias: Tensor, before: int) -> Tensor:
    """Return the convolution with `before` zeros in front of the tokens and the rest of the k - 1 behind them."""
    k = weight.shape[1]
    padded = F.pad(x, (0, 0, before, k - 1 - before))
    return sum(padded[:, j:j + x.shape[1]] * weight[:, j] for j in range(k)) + bias


@exercise("5.3", "Causal convolution")
def causal_conv(answer):
    """Check the depthwise convolution for one channel and for a batch, with its gradients."""
    small = [torch.tensor(value, dtype=torch.float64) for value in
             ([[[1.0], [2.0], [3.0], [4.0], [5.0]]], [[0.1, 0.2, 0.3, 0.4]], [0.25])]
    for x, weight, bias in (small, (_randn(2, 5, 2), _randn(2, 3, seed=1), _randn(2, seed=2)),
                            (_randn(2, 7, 3), _randn(3, 4, seed=1), _randn(3, seed=2))):
        k = weight.shape[1]
        future = "the zeros are on the wrong side: outputs see later tokens; put k - 1 zeros before the first token"
        centred = ("the window is centred, with {} of the {} zeros in front: outputs see later tokens; all belong in "
                   "front")
        right = causal_conv1d(x, weight, bias, backend="loop")
        match(call(answer, x, weight, bias), right, name="y", mistakes={
            future: _shifted_sum(x, weight, bias, before=0),
            **{centred.format(i, k - 1): _shifted_sum(x, weight, bias, before=i) for i in range(1, k - 1)},
            "it wraps round: roll brings the last tokens to the front; put zeros there":
                sum(x.roll(k - 1 - j, 1) * weight[:, j] for j in range(k)) + bias,
            "the kernel is flipped: the last tap weight[:, -1] stands at the token itself":
                causal_conv1d(x, weight.flip(1), bias, backend="loop"),
            "the kernel is flipped and the zeros are on the wrong side":
                _shifted_sum(x, weight.flip(1), bias, before=0),
            "the window starts one token too early: y[t] must hold x[t] itself, with the last tap":
                _shifted_sum(F.pad(x, (0, 0, 1, 0))[:, :-1], weight, bias, before=k - 1),
            "the bias is missing": right - bias,
            "the bias is added once for each tap; add it once": right + (k - 1) * bias,
            "this is SiLU of the answer; here the convolution alone is wanted": F.silu(right),
        })
    match(gradients(answer, x, weight, bias), gradients(lambda *args: causal_conv1d(*args, backend="loop"), x, weight,
                                                        bias), name=("dx", "dweight", "dbias"))
    return "the last tap stands at the token itself, and nothing of the future comes in."


def _token_maps(u: Tensor, x_weight: Tensor, dt_weight: Tensor, dt_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return (step, B, C): the formula of section 7."""
    r = dt_weight.shape[1]
    n = (x_weight.shape[0] - r) // 2
    delta_hat, B, C = F.linear(u, x_weight).split([r, n, n], dim=-1)
    return F.softplus(F.linear(delta_hat, dt_weight, dt_bias)), B, C


def _in_order(expected: dict[str, Tensor], *got: object) -> None:
    """Raise Wrong where all the expected tensors are there, in another order.

    B and C alone, exchanged, are left to the check of B, which says where they lie in x_proj.
    """
    found = [next((name for name, value in expected.items() if isinstance(x, Tensor) and x.shape == value.shape
                   and torch.allclose(x, value)), "") for x in got]
    if sorted(found) == sorted(expected) and found != list(expected) and found[0] != "step":
        raise Wrong(f"the right tensors, but in the order {', '.join(found)}; return {', '.join(expected)}")


@exercise("5.4", "Step, B and C")
def token_maps(answer):
    """Check the split of x_proj and the step, bias inside the softplus, with the gradients."""
    u, dt_weight, dt_bias = _randn(2, 7, 5), _randn(5, 3, seed=1), _randn(5, seed=2)
    x_weight = _randn(11, 5, seed=3)
    step, B, C = _token_maps(u, x_weight, dt_weight, dt_bias)
    got_step, got_B, got_C = parts(call(answer, u, x_weight, dt_weight, dt_bias), "step", "B", "C")
    mapped = F.linear(u, x_weight)
    _in_order({"step": step, "B": B, "C": C}, got_step, got_B, got_C)
    match(got_B, B, name="B", mistakes={
        "B and C are exchanged: B comes first, after the r numbers of the step": C,
        "B is cut from the front; the order is step (r), B (n), C (n)": mapped[..., :4],
        "x_proj is split as C, B, step; the order is step (r), B (n), C (n)": mapped[..., 4:8],
        "r and n are exchanged: r is the number of columns of dt_weight": mapped[..., 4:7],
    })
    match(got_C, C, name="C", mistakes={
        "C is the same slice as B; it is the last n numbers": B,
        "C is cut from the middle; the order is step (r), B (n), C (n)": mapped[..., 4:8],
    })
    low = mapped[..., :3]
    match(got_step, step, name="step", mistakes={
        "the bias is outside the softplus; add it before": F.softplus(F.linear(low, dt_weight)) + dt_bias,
        "the softplus is missing: the step must be positive": F.linear(low, dt_weight, dt_bias),
        "the bias is missing": F.softplus(F.linear(low, dt_weight)),
        "the softplus and the bias are missing": F.linear(low, dt_weight),
        "the softplus comes too early: spread the r numbers with dt_weight and add the bias first":
            F.linear(F.softplus(low), dt_weight, dt_bias),
        "the step is made of the last r numbers; the order is step (r), B (n), C (n)":
            F.softplus(F.linear(mapped[..., -3:], dt_weight, dt_bias)),
        "this is exp and not softplus": F.linear(low, dt_weight, dt_bias).exp(),
        "this is a sigmoid and not softplus": F.linear(low, dt_weight, dt_bias).sigmoid(),
        "this is ReLU and not softplus": F.linear(low, dt_weight, dt_bias).relu(),
    })
    args = (u, x_weight, dt_weight, dt_bias)
    match(gradients(answer, *args), gradients(_token_maps, *args), name=("du", "dx_weight", "ddt_weight", "ddt_bias"))
    return "step, B, C in this order, the bias inside the softplus."


@exercise("5.5", "Inverse softplus")
def bias_for_step(answer):
    """Check step + log(1 - exp(-step)) in float64, then in float32 from 0.0001 to 100."""
    step = torch.tensor([0.37, 0.6931, 1.9, 4.0], dtype=torch.float64)
    match(call(answer, step), step.expm1().log(), name="b", mistakes={
        "this is softplus itself; its inverse is wanted": F.softplus(step),
        "this is the logarithm alone; log(1 + exp(b)) is not exp(b), unless the step is tiny": step.log(),
        "the logarithm is taken of expm1(-step), which is negative; 1 - exp(-step) is -expm1(-step)":
            torch.full_like(step, torch.nan),
        "the sign under the logarithm is wrong: exp(b) = exp(step) - 1": step.exp().log1p(),
        "exp(step) - 1 is exp(b); take its logarithm": step.expm1(),
        "the step in front is missing: step + log(1 - exp(-step))": torch.log(-torch.expm1(-step)),
        "the step in front has the wrong sign: step + log(1 - exp(-step))": torch.log(-torch.expm1(-step)) - step,
    })
    step = torch.tensor([1e-4, 1e-3, 0.02, 0.1, 0.6931, 5.0, 30.0, 100.0])
    got = call(answer, step)
    if isinstance(got, Tensor) and got.shape == step.shape and got[-1].isinf():
        raise Wrong("exp(100) overflows in float32; pull the step out: step + log(1 - exp(-step))")
    if isinstance(got, Tensor) and got.shape == step.shape and got.isnan().any():
        raise Wrong("the result holds NaN in float32 for steps from 0.0001 to 100")
    exact = step.double()
    exact = (exact + torch.log(-torch.expm1(-exact))).float()
    if isinstance(got, Tensor) and got.shape == step.shape and (got - exact)[:2].abs().max() > 1e-5:
        raise Wrong("in float32 digits are lost for small steps; use torch.expm1 in place of exp and minus 1")
    match(got, exact, name="b", rtol=1e-6)
    return "its softplus is the step again, from 0.0001 to 100, in float32."


@exercise("5.6", "Both directions")
def both_directions(answer):
    """Check (forward + flipped backward) / 2 with two gated scans of different memory, and the gradients."""
    def reader(keep):
        def read(x, z):
            # Each channel has a memory of its own, so that flipped channels show.
            s, y, decay = 0, [], keep ** torch.arange(1, x.shape[2] + 1)
            for value in x.unbind(1):
                s = decay * s + value
                y.append(s)
            return torch.stack(y, dim=1) * F.silu(z)
        return read

    def reference(x, z):
        return (forward(x, z) + backward(x.flip(1), z.flip(1)).flip(1)) / 2

    forward, backward = reader(0.9), reader(0.4)
    # The batch of two first: of one, a flip along the batch would not show.
    for x, z in ((_randn(2, 6, 3), _randn(2, 6, 3, seed=1)), (_randn(1, 3, 2), _randn(1, 3, 2, seed=1))):
        y, back = forward(x, z), backward(x.flip(1), z.flip(1))
        match(call(answer, forward, backward, x, z), reference(x, z), name="y", mistakes={
            "the sum is not halved": y + back.flip(1),
            "only the backward result is halved; put the sum in parentheses": y + back.flip(1) / 2,
            "only the forward result is halved; put the sum in parentheses": y / 2 + back.flip(1),
            "nothing is flipped along the tokens, dim=1: these are two forward scans": (y + backward(x, z)) / 2,
            "the backward result is flipped along the batch; flip the tokens, dim=1": (y + back.flip(0)) / 2,
            "z is not flipped: inside backward each token meets the gate of another": lambda y=y, x=x, z=z:
                (y + backward(x.flip(1), z).flip(1)) / 2,
            "x is not flipped: backward reads from the first token": lambda y=y, x=x, z=z:
                (y + backward(x, z.flip(1)).flip(1)) / 2,
            "the backward result is not flipped back": (y + back) / 2,
            "the inputs are not flipped, only the result": (y + backward(x, z).flip(1)) / 2,
            "the forward result is flipped, too; flip back only the backward one": (y + back).flip(1) / 2,
            "the channels are flipped and not the tokens, dim=1": lambda y=y, x=x, z=z:
                (y + backward(x.flip(2), z.flip(2)).flip(2)) / 2,
            "the two directions are exchanged": (backward(x, z) + forward(x.flip(1), z.flip(1)).flip(1)) / 2,
            "forward is used in both directions": (y + forward(x.flip(1), z.flip(1)).flip(1)) / 2,
            "this is the backward direction alone": back.flip(1),
            "x and z are exchanged": (forward(z, x) + backward(z.flip(1), x.flip(1)).flip(1)) / 2,
        })
    match(gradients(lambda x, z: answer(forward, backward, x, z), x, z), gradients(reference, x, z), name=("dx", "dz"))
    return "x and z flipped, the result flipped back, the sum halved."


@exercise("5.7", "A layer of Vim-S on paper")
def small_layer(answer):
    """Count the parameters of one layer with d = 384, n = 16, r = 24, k = 4."""
    projection, direction, out, layer = _entries(answer, "in_proj", "one direction", "out_proj", "layer")
    d, e, n, r, k = 384, 768, 16, 24, 4
    match(projection, 2 * e * d, name="'in_proj'", mistakes={
        "in_proj makes x and z: it has 2e rows, not e": e * d,
        "in_proj has no bias": 2 * e * d + 2 * e,
        "in_proj reads d numbers, not e": 2 * e * e,
        "that is in_proj of Vim-Ti; Vim-S has d = 384": 147_456,
    })
    right = (e * k + e) + (r + 2 * n) * e + (e * r + e) + e * n + e
    match(direction, right, name="'one direction'", mistakes={
        "e numbers are missing in 'one direction': the convolution and dt_proj have a bias each, and D is e": right - e,
        "two of the three vectors of e numbers are missing: bias of the convolution, bias of dt_proj, D": right - 2 * e,
        "the three vectors of e numbers are missing: bias of the convolution, bias of dt_proj, D": right - 3 * e,
        "x_proj makes B and C: r + 2n rows, not r + n": right - n * e,
        "the convolution is depthwise: k numbers a channel, not e times k": right - e * k + e * e * k,
        "r is d / 16 = 24": right - 24 * e,
        "x_proj has no bias": right + r + 2 * n,
        "both directions are counted; this entry is for one": 2 * right,
        "that is a direction of Vim-Ti; Vim-S has e = 768, r = 24": 30_336,
        "four times Vim-Ti is too much: n and k have not doubled": 4 * 30_336,
        "twice Vim-Ti is too little: r doubles as well": 2 * 30_336,
    })
    match(out, d * e, name="'out_proj'", mistakes={
        "out_proj has no bias": d * e + d,
        "out_proj reads e numbers, not 2e: the gate has joined x and z": 2 * d * e,
        "that is out_proj of Vim-Ti; Vim-S has d = 384": 73_728,
    })
    total = projection + 2 * right + out + d
    match(layer, total, name="'layer'", mistakes={
        "the norm is missing: d more": total - d,
        "the second direction is missing": total - right,
        "the second direction and the norm are missing": total - right - d,
        "RMSNorm has a weight and no bias": total + d,
        "four times Vim-Ti is too much: n and k have not doubled": 4 * 282_048,
        "that is the whole stack of 24 layers; count one": 24 * total,
    })
    return "1,043,328: two shared projections, two directions, one norm."
