"""Wrong answers to the exercises of chapter 05, each rejected with a message that names the mistake."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vimlearn.course.exercise import grade


def counts(**changes):
    right = {"forward": 10, "backward": 7, "both": 16, "two forward": 10}
    return right | {name.replace("_", " "): value for name, value in changes.items()}


def test_patch_reach_names_its_mistakes(rejected):
    assert rejected("patch_reach", counts(forward=9), "'forward'", "itself")
    assert rejected("patch_reach", counts(forward=5), "counted from 0")
    assert rejected("patch_reach", counts(forward=7, backward=10), "backward scan", "token 6")
    assert rejected("patch_reach", counts(backward=6), "'backward'", "itself")
    assert rejected("patch_reach", counts(both=17), "twice")
    assert rejected("patch_reach", counts(two_forward=16), "does not help")
    assert rejected("patch_reach", counts(two_forward=20), "twice as far")
    assert rejected("patch_reach", counts(both=None), "'both'", "None")
    assert rejected("patch_reach", (10, 7, 16, 10), "keep the dict")


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda x, w, eps=1e-5: F.layer_norm(x, w.shape, w, eps=eps), "LayerNorm"),
    (lambda x, w, eps=1e-5: (x - x.mean(-1, True)) / (x.pow(2).mean(-1, True) + eps).sqrt() * w, "mean is subtracted"),
    (lambda x, w, eps=1e-5: x / (x.pow(2).mean(-1, True).sqrt() + eps) * w, "outside"),
    (lambda x, w, eps=1e-5: x / x.pow(2).mean(-1, True).sqrt() * w, "eps is missing"),
    (lambda x, w, eps=1e-5: nn.functional.rms_norm(x, w.shape, w, 1e-5), "default"),
    (lambda x, w, eps=1e-5: nn.functional.rms_norm(x, w.shape, None, eps), "weight is missing"),
    (lambda x, w, eps=1e-5: x * w / (x.norm(dim=-1, keepdim=True).square() + eps).sqrt(), "sum of the squares"),
    (lambda x, w, eps=1e-5: x * w / (x.pow(2).mean(-1, True) + eps), "square root is missing"),
    (lambda x, w, eps=1e-5: x * w / (x.pow(2).mean(1, True) + eps).sqrt(), "over the tokens"),
    (lambda x, w, eps=1e-5: x * w / (x.pow(2).mean() + eps).sqrt(), "each token has its own"),
])
def test_rms_norm_names_its_mistakes(rejected, wrong, word):
    assert rejected("rms_norm", wrong, word)


def test_rms_norm_wants_gradients(rejected):
    assert rejected("rms_norm", lambda x, w, eps=1e-5: w * x / (x.detach().pow(2).mean(-1, True) + eps).sqrt(), "dx")
    right = grade("rms_norm", lambda x, w, eps=1e-5: nn.functional.rms_norm(x, w.shape, w, eps))
    assert right.status == "right", right.message


def library_convolution(x, weight, bias, left, right):
    y = F.conv1d(F.pad(x.transpose(1, 2), (left, right)), weight.unsqueeze(1), bias, groups=len(weight))
    return y.transpose(1, 2)


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda x, w, b: library_convolution(x, w, b, 0, 3), "wrong side"),
    (lambda x, w, b: library_convolution(x, w, b, 1, 2), "centred"),
    (lambda x, w, b: library_convolution(x, w, b, 2, 1), "centred"),
    (lambda x, w, b: library_convolution(x, w.flip(-1), b, 3, 0), "kernel is flipped"),
    (lambda x, w, b: library_convolution(x, w.flip(-1), b, 0, 3), "flipped and the zeros"),
    (lambda x, w, b: library_convolution(x, w, None, 3, 0), "bias is missing"),
    (lambda x, w, b: library_convolution(x, w, 4 * b, 3, 0), "once for each tap"),
    (lambda x, w, b: library_convolution(x, w, b, 4, 0)[:, :-1], "one token too early"),
    (lambda x, w, b: F.silu(library_convolution(x, w, b, 3, 0)), "SiLU"),
    (lambda x, w, b: library_convolution(x, w, b, 3, 3), "shape"),
])
def test_causal_conv_names_its_mistakes(rejected, wrong, word):
    assert rejected("causal_conv", wrong, word)


def test_causal_conv_takes_the_library_and_wants_gradients(rejected):
    right = grade("causal_conv", lambda x, w, b: library_convolution(x, w, b, w.shape[1] - 1, 0))
    assert right.status == "right", right.message
    assert rejected("causal_conv", lambda x, w, b: library_convolution(x, w.detach(), b, w.shape[1] - 1, 0), "dweight")


def maps(order="dBC", step=lambda low, weight, bias: F.softplus(low @ weight.T + bias)):
    """Return an answer to exercise 5.4 that takes the parts in `order` and makes the step by `step`."""
    def answer(u, x_weight, dt_weight, dt_bias):
        r = dt_weight.shape[1]
        sizes = {"d": r, "B": (len(x_weight) - r) // 2, "C": (len(x_weight) - r) // 2}
        cut = dict(zip(order, (u @ x_weight.T).split([sizes[name] for name in order], dim=-1), strict=True))
        return step(cut["d"], dt_weight, dt_bias), cut["B"], cut["C"]
    return answer


@pytest.mark.parametrize(("wrong", "word"), [
    (maps("dCB"), "exchanged"),
    (maps("BCd"), "cut from the front"),
    (maps("BdC"), "cut from the front"),
    (maps("CdB"), "exchanged"),
    (maps(step=lambda low, w, b: F.softplus(low @ w.T) + b), "outside"),
    (maps(step=lambda low, w, b: low @ w.T + b), "softplus is missing"),
    (maps(step=lambda low, w, b: F.softplus(low @ w.T)), "bias is missing"),
    (maps(step=lambda low, w, b: F.softplus(low) @ w.T + b), "too early"),
    (maps(step=lambda low, w, b: torch.exp(low @ w.T + b)), "exp"),
    (maps(step=lambda low, w, b: F.relu(low @ w.T + b)), "ReLU"),
    (lambda u, x_weight, dt_weight, dt_bias: maps()(u, x_weight, dt_weight, dt_bias)[:2], "3 values"),
    (lambda *args: (maps()(*args)[0], maps()(*args)[1], maps()(*args)[1]), "same slice"),
    (lambda u, x_weight, dt_weight, dt_bias: maps()(u, x_weight, dt_weight, dt_bias.detach()), "ddt_bias"),
])
def test_token_maps_names_its_mistakes(rejected, wrong, word):
    assert rejected("token_maps", wrong, word)


@pytest.mark.parametrize(("wrong", "word"), [
    (F.softplus, "softplus itself"),
    (torch.log, "logarithm alone"),
    (lambda step: torch.log(torch.exp(step) + 1), "softplus itself"),
    (lambda step: torch.exp(step) - 1, "take its logarithm"),
    (lambda step: torch.log(1 - torch.exp(-step)), "in front is missing"),
    (lambda step: torch.log(torch.expm1(step)), "overflows"),
    (lambda step: torch.log(torch.exp(step) - 1), "overflows"),
    (lambda step: step + torch.log(1 - torch.exp(-step)), "digits are lost"),
    (lambda step: torch.log(torch.exp(step.double()) - 1), "dtype"),
])
def test_bias_for_step_names_its_mistakes(rejected, wrong, word):
    assert rejected("bias_for_step", wrong, word)


@pytest.mark.parametrize(("wrong", "word"), [
    (lambda f, b, x, z: f(x, z) + b(x.flip(1), z.flip(1)).flip(1), "not halved"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x.flip(1), z).flip(1)), "z is not flipped"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x, z.flip(1)).flip(1)), "x is not flipped"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x.flip(1), z.flip(1))), "not flipped back"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x, z)), "two forward scans"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x, z).flip(1)), "only the result"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x.flip(1), z.flip(1))).flip(1), "forward result is flipped"),
    (lambda f, b, x, z: 0.5 * (b(x, z) + f(x.flip(1), z.flip(1)).flip(1)), "exchanged"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + f(x.flip(1), z.flip(1)).flip(1)), "forward is used"),
    (lambda f, b, x, z: b(x.flip(1), z.flip(1)).flip(1), "backward direction alone"),
    (lambda f, b, x, z: 0.5 * (f(x, z) + b(x.flip(-1), z.flip(-1)).flip(-1)), "channels are flipped"),
])
def test_both_directions_names_its_mistakes(rejected, wrong, word):
    assert rejected("both_directions", wrong, word)


def layer(**changes):
    right = {"in_proj": 589_824, "one direction": 79_104, "out_proj": 294_912, "layer": 1_043_328}
    return right | {name.replace("one_direction", "one direction"): value for name, value in changes.items()}


@pytest.mark.parametrize(("wrong", "word"), [
    (layer(in_proj=384 * 768), "x and z"),
    (layer(in_proj=384 * 1536 + 1536), "no bias"),
    (layer(in_proj=147_456), "Vim-Ti"),
    (layer(one_direction=102 * 768), "missing"),
    (layer(one_direction=(5 + 24 + 16 + 25 + 16 + 1) * 768), "B and C"),
    (layer(one_direction=768 * 768 * 4 + (1 + 56 + 25 + 16 + 1) * 768), "depthwise"),
    (layer(one_direction=2 * 79_104), "both directions"),
    (layer(one_direction=4 * 30_336), "four times"),
    (layer(out_proj=384 * 1536), "gate"),
    (layer(layer=1_043_328 - 384), "norm is missing"),
    (layer(layer=1_043_328 - 79_104), "second direction"),
    (layer(layer=1_043_328 + 384), "no bias"),
    (layer(layer=None), "still None"),
])
def test_small_layer_names_its_mistakes(rejected, wrong, word):
    assert rejected("small_layer", wrong, word)
