"""The whole network: published sizes, initialisation, tokens, timm's methods, stochastic depth."""

import pytest
import timm
import torch
from helpers import assert_near
from timm.optim import param_groups_layer_decay, param_groups_weight_decay

from vimlearn import VisionMamba

SIZES = {"vim_tiny_patch16_224": 7_148_008, "vim_small_patch16_224": 25_796_584, "vim_base_patch16_224": 97_598_440,
         "vim_tiny_patch16_stride8_224": 7_250_344, "vim_small_patch16_stride8_224": 26_001_256,
         "vim_base_patch16_stride8_224": 98_007_784}


def small(**settings):
    return VisionMamba(**{"img_size": 32, "patch_size": 8, "num_classes": 5, "embed_dim": 32, "depth": 3, **settings})


@pytest.mark.parametrize("name, count", SIZES.items())
def test_registered_networks_have_the_published_count(name, count):
    assert timm.is_model(name)
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == count
    assert len(model.state_dict()) == 415
    assert model.pretrained_cfg["input_size"] == (3, 224, 224) and model.pretrained_cfg["crop_pct"] == 0.875


def test_published_keys_and_shapes():
    with torch.device("meta"):
        state = timm.create_model("vim_tiny_patch16_224").state_dict()
    expected = {"cls_token": (1, 1, 192), "pos_embed": (1, 197, 192), "patch_embed.proj.weight": (192, 3, 16, 16),
                "patch_embed.proj.bias": (192,), "head.weight": (1000, 192), "head.bias": (1000,),
                "norm_f.weight": (192,)}
    mixer = {"A_log": (384, 16), "A_b_log": (384, 16), "D": (384,), "D_b": (384,), "in_proj.weight": (768, 192),
             "out_proj.weight": (192, 384)}
    for suffix in ("", "_b"):
        mixer |= {f"conv1d{suffix}.weight": (384, 1, 4), f"conv1d{suffix}.bias": (384,),
                  f"x_proj{suffix}.weight": (44, 384), f"dt_proj{suffix}.weight": (384, 12),
                  f"dt_proj{suffix}.bias": (384,)}
    for i in range(24):
        expected |= {f"layers.{i}.norm.weight": (192,)} | {f"layers.{i}.mixer.{k}": v for k, v in mixer.items()}
    assert {k: tuple(v.shape) for k, v in state.items()} == expected


def test_initialisation():
    model = VisionMamba(depth=1)
    assert model.patch_embed.proj.weight.std().item() == pytest.approx(0.0410, rel=0.01)
    for name in ("head.weight", "pos_embed", "cls_token"):
        assert model.get_parameter(name).std().item() == pytest.approx(0.02, rel=0.15), name
    # Drawn from a normal that is not cut at two sigma
    assert model.head.weight.abs().max() > 0.06
    assert not model.head.bias.any() and not model.patch_embed.proj.bias.any()


def test_in_a_deep_network_out_proj_starts_smaller():
    assert small(depth=4).layers[0].mixer.out_proj.weight.abs().max() < 64**-0.5 / 2 + 1e-6


def test_is_a_plain_residual_network():
    """The carried pair (branch, residual) is x = x + mixer(norm(x))."""
    model = small().double().eval()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    x = model.embed(images)
    for layer in model.layers:
        x = x + layer.mixer(layer.norm(x)[0])
    x = model.norm_f(x)[0][:, 8]
    assert_near({"logits": model(images)}, {"logits": model.head(x)}, 1e-12)


@pytest.mark.parametrize("class_token, index", [("middle", 8), ("first", 0)])
def test_class_token_has_its_place_and_its_position(class_token, index):
    model = small(class_token=class_token)
    images = torch.randn(1, 3, 32, 32)
    tokens = model.embed(images)[0]
    torch.testing.assert_close(tokens[index], (model.cls_token + model.pos_embed[:, index])[0, 0])
    patches = torch.cat([tokens[:index], tokens[index + 1:]])
    positions = torch.cat([model.pos_embed[0, :index], model.pos_embed[0, index + 1:]])
    torch.testing.assert_close(patches, model.patch_embed(images)[0] + positions)
    assert model.class_token_index == index


def test_with_silent_mixers_the_logit_depends_on_the_class_token_alone():
    model = small().eval()
    with torch.no_grad():
        for layer in model.layers:
            layer.mixer.out_proj.weight.zero_()
    a, b = model(torch.randn(2, 3, 32, 32))
    torch.testing.assert_close(a, b)
    token = model.cls_token + model.pos_embed[:, 8:9]
    torch.testing.assert_close(a, model.head(model.norm_f(token)[0])[0, 0])


@pytest.mark.parametrize("size, patch, stride, grid", [
    (224, 16, None, (14, 14)), (224, 16, 8, (27, 27)), (738, 16, None, (46, 46)), ((30, 50), 8, 5, (5, 9)),
    (8, 8, None, (1, 1)), ((9, 16), 8, None, (1, 2))])
def test_grids(size, patch, stride, grid):
    model = small(img_size=size, patch_size=patch, stride=stride, depth=1)
    assert model.patch_embed.grid_size == grid
    height, width = (size, size) if isinstance(size, int) else size
    assert model(torch.randn(1, 3, height, width)).shape == (1, 5)


def test_pixels_beyond_the_last_patch_are_not_seen():
    model = small(img_size=35).eval()
    images = torch.randn(1, 3, 35, 35)
    other = images.clone()
    other[:, :, 32:] = 9
    other[:, :, :, 32:] = 9
    assert torch.equal(model(images), model(other))


@pytest.mark.parametrize("settings", [
    {}, {"class_token": "first"}, {"class_token": None, "global_pool": "avg"}, {"global_pool": "avg"},
    {"bidirectional": False}, {"norm": "layer"}, {"halve_directions": False}, {"num_classes": 0}, {"d_state": 4},
    {"img_size": (24, 40), "stride": 4}, {"in_chans": 1}], ids=str)
def test_every_parameter_gets_a_gradient(settings):
    model = small(**settings)
    size = model.patch_embed.img_size
    tokens = model.forward_features(torch.randn(2, model.patch_embed.in_chans, *size))
    # All tokens and not the logits alone: a first class token has no past, so its last forward A gets no gradient.
    (tokens.square().sum() + model.forward_head(tokens).square().sum()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), f"{name} has a gradient of zero"


@torch.no_grad()
def test_average_pool_reads_the_patches_only():
    model = small(global_pool="avg").eval()
    tokens = model.forward_features(torch.randn(1, 3, 32, 32))
    patches = torch.cat([tokens[:, :8], tokens[:, 9:]], dim=1)
    torch.testing.assert_close(model.forward_head(tokens, pre_logits=True), patches.mean(1))


def test_stochastic_depth():
    model = small(depth=5, drop_path_rate=0.4)
    assert [layer.drop_path.rate for layer in model.layers] == pytest.approx([0, 0.1, 0.2, 0.3, 0.4])
    drop = model.layers[-1].drop_path.train()
    out = drop(torch.ones(4000, 2, 3))
    # A sample is dropped whole, or scaled up whole
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.6])
    assert (out.amax((1, 2)) == out.amin((1, 2))).all()
    assert out.mean().item() == pytest.approx(1, abs=0.05)
    images = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model.train()(images), model(images))
    assert torch.equal(model.eval()(images), model(images))


@torch.no_grad()
def test_forward_intermediates():
    model = small(img_size=(32, 40)).eval()
    images = torch.randn(2, 3, 32, 40)
    final, maps = model.forward_intermediates(images)
    torch.testing.assert_close(final, model.forward_features(images))
    assert [tuple(m.shape) for m in maps] == [(2, 32, 4, 5)] * 3
    last, = model.forward_intermediates(images, indices=1, norm=True, output_fmt="NLC", intermediates_only=True)
    torch.testing.assert_close(last, model.patch_tokens(final))
    (patches, token), = model.forward_intermediates(images, indices=[0], stop_early=True, return_prefix_tokens=True,
                                                    intermediates_only=True)
    x = model.embed(images)
    x = x + model.layers[0].mixer(model.layers[0].norm(x)[0])
    torch.testing.assert_close(token[:, 0], x[:, model.class_token_index])
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), model.patch_tokens(x))


@torch.no_grad()
def test_features_only_of_timm():
    f = timm.create_model("vim_tiny_patch16_224", features_only=True, out_indices=(0, 2), depth=4, img_size=(64, 80))
    maps = f(torch.randn(1, 3, 64, 80))
    assert [tuple(m.shape) for m in maps] == [(1, 192, 4, 5)] * 2
    assert f.feature_info.channels() == [192, 192] and f.feature_info.reduction() == [16, 16]


def test_classifier_methods():
    model = small()
    assert model.get_classifier() is model.head
    model.reset_classifier(7)
    images = torch.randn(1, 3, 32, 32)
    assert model(images).shape == (1, 7) and model.num_classes == 7 and model.config["num_classes"] == 7
    model.reset_classifier(0, global_pool="avg")
    assert model(images).shape == (1, 32)


@torch.no_grad()
def test_prune_intermediate_layers():
    model = small().eval()
    images = torch.randn(1, 3, 32, 32)
    expected, = model.forward_intermediates(images, indices=[1], intermediates_only=True)
    model.prune_intermediate_layers([1], prune_norm=True)
    assert len(model.layers) == 2
    torch.testing.assert_close(model.patch_tokens(model.forward_features(images)), expected.flatten(2).transpose(1, 2))


def test_optimiser_groups():
    """Vectors, positions and the class token are not decayed; matrices and A_log are, as in the published recipe."""
    model = small()
    no_decay, decay = param_groups_weight_decay(model, 0.05, no_weight_decay_list=model.no_weight_decay())
    names = {id(p): n for n, p in model.named_parameters()}
    spared = {names[id(p)] for p in no_decay["params"]}
    assert {"pos_embed", "cls_token", "norm_f.weight", "layers.0.mixer.D", "layers.0.mixer.dt_proj.bias"} <= spared
    kept = {names[id(p)] for p in decay["params"]}
    assert {"layers.0.mixer.A_log", "layers.0.mixer.A_b_log", "layers.0.mixer.conv1d.weight", "head.weight"} <= kept
    groups = param_groups_layer_decay(model, layer_decay=0.5)
    scale = {names[id(p)]: g["lr_scale"] for g in groups for p in g["params"]}
    order = [scale[name] for name in ("pos_embed", "layers.0.norm.weight", "layers.2.norm.weight", "head.weight")]
    assert order == sorted(set(order)) and order[-1] == 1


def test_gradient_checkpointing_changes_nothing():
    model = small(drop_path_rate=0.3).train()
    images = torch.randn(2, 3, 32, 32)
    gradients = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        torch.manual_seed(5)
        model(images).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters()})
    assert_near(gradients[1], gradients[0], 1e-6)


@torch.no_grad()
def test_set_input_size():
    model = small().eval()
    class_row = model.pos_embed[:, 8].clone()
    model.set_input_size((40, 32))
    assert model(torch.randn(1, 3, 40, 32)).shape == (1, 5)
    assert model.pos_embed.shape == (1, 21, 32) and model.config["img_size"] == (40, 32)
    torch.testing.assert_close(model.pos_embed[:, 10], class_row)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_bfloat16_stays_near_and_finite(norm):
    model, images = small(norm=norm), torch.randn(2, 3, 32, 32)
    expected = model(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(images)
        out.square().sum().backward()
    assert_near({"logits": out}, {"logits": expected}, 0.05)
    assert all(p.grad.isfinite().all() and p.grad.dtype == torch.float32 for p in model.parameters())
    assert_near({"logits": model.bfloat16()(images.bfloat16())}, {"logits": expected}, 0.05)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")
def test_gpu_equals_cpu():
    model, images = small().double(), torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = model(images)
    assert_near({"logits": model.cuda()(images.cuda()).cpu()}, {"logits": expected}, 1e-9)
