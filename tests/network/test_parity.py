"""Held to the published implementation: numbers computed with it, in fixtures/official_parity."""

import hashlib
import json
from pathlib import Path

import pytest
import torch
from helpers import assert_near
from safetensors.torch import load_file

from vimlearn import VisionMamba, selective_scan
from vimlearn.scan import SCAN

FOLDER = Path(__file__).parent.parent / "fixtures" / "official_parity"
NETWORKS = sorted(p.parent.name for p in FOLDER.glob("*/config.json"))
CASES = json.loads((FOLDER / "selective_scan" / "cases.json").read_text())
BACKENDS = [name for name in SCAN.available(torch.device("cpu")) if name != "export"]
CHANNEL_FIRST = ("u", "delta", "B", "C", "z", "dout", "out", "grad.u", "grad.delta", "grad.B", "grad.C", "grad.z")


def test_the_fixtures_are_the_ones_that_were_computed():
    files = json.loads((FOLDER / "MANIFEST.json").read_text())["files"]
    assert len(files) >= 14
    for name, facts in files.items():
        assert hashlib.sha256((FOLDER / name).read_bytes()).hexdigest() == facts["sha256"], name


def network(name, dtype, backend):
    c = json.loads((FOLDER / name / "config.json").read_text())["config"]
    token = ("middle" if c["use_middle_cls_token"] else "first") if c["if_cls_token"] else None
    model = VisionMamba(img_size=c["img_size"], patch_size=c["patch_size"], stride=c["stride"], in_chans=c["channels"],
                        num_classes=c["num_classes"], embed_dim=c["embed_dim"], depth=c["depth"], d_state=c["d_state"],
                        class_token=token, global_pool="token" if token else "avg", norm_eps=c["norm_epsilon"],
                        norm="rms" if c["rms_norm"] else "layer", halve_directions=c["if_divide_out"], backend=backend)
    model.load_state_dict(load_file(FOLDER / name / "weights.safetensors"))
    return model.to(dtype).eval(), load_file(FOLDER / name / "io.safetensors")


@pytest.mark.parametrize("backend", ["auto", *BACKENDS])
@pytest.mark.parametrize("dtype, suffix, limit", [(torch.float32, "", 1e-5), (torch.float64, "_f64", 1e-9)])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_network(name, dtype, suffix, limit, backend):
    model, io = network(name, dtype, backend)
    tokens = model.forward_features(io["images"].to(dtype))
    found = {"features": model.forward_head(tokens, pre_logits=True), "logits": model.forward_head(tokens)}
    assert_near(found, {key: io[key + suffix] for key in found}, limit)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_tokens_and_mixers(name, dtype, backend):
    """The stored intermediates are float64 results rounded to float32, so float32 is the limit for both dtypes."""
    model, io = network(name, dtype, backend)
    stored = {k.removeprefix("intermediate."): v for k, v in io.items() if k.startswith("intermediate.")}
    found = {"tokens": model.embed(io["images"].to(dtype))}
    for i, layer in enumerate(model.layers):
        layer.mixer.register_forward_hook(
            lambda _, inputs, output, i=i: found.update({f"mixer_in.{i}": inputs[0], f"mixer_out.{i}": output}))
    model(io["images"].to(dtype))
    assert_near({k: found[k] for k in stored}, stored, 1e-5 if dtype == torch.float32 else 1e-6)
    # Each mixer on its own, fed the stored input
    for i, layer in enumerate(model.layers):
        out = layer.mixer(stored[f"mixer_in.{i}"].to(dtype))
        assert_near({"out": out}, {"out": stored[f"mixer_out.{i}"]}, 1e-5)


def channel_last(tensors, dtype):
    """Turn (b, channels, l) into (b, l, channels)."""
    return {k: (v.transpose(1, 2) if k in CHANNEL_FIRST else v).to(dtype) for k, v in tensors.items()}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("case", CASES)
def test_scan(case, dtype, backend):
    facts = CASES[case]
    stored = load_file(FOLDER / "selective_scan" / facts["file"])
    inputs = {k: v.requires_grad_() for k, v in channel_last(stored, dtype).items()
              if k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")}
    expected = channel_last(stored, torch.float64)
    out, last = selective_scan(**inputs, delta_softplus=facts["delta_softplus"], return_last_state=True,
                               backend=backend)
    out.backward(expected["dout"].to(dtype))
    exact = 1e-8 if facts["wide_delta"] else 1e-9
    value_limit, gradient_limit = (1e-5, 1e-4) if dtype == torch.float32 else (exact, exact)
    assert_near({"out": out, "last_state": last}, {k: expected[k] for k in ("out", "last_state")}, value_limit)
    gradients = {f"grad.{k}": v.grad for k, v in inputs.items()}
    assert_near(gradients, {k: expected[k] for k in gradients}, gradient_limit)
