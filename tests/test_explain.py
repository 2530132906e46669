"""Maps of what a Vim looks at: exact where they can be, and the model stays as it was."""

import pytest
import torch
from helpers import scan_inputs
from torch import nn
from torch.profiler import ProfilerActivity, profile
from vimlearn.kernels.layout import Scan

import vimlearn
from vimlearn import VimlearnError, VisionMamba, explain, selective_scan
from vimlearn.explain import hidden

LENGTHS = (1, 2, 31, 32, 33, 70)


def scan_of(l: int, reverse: bool, dtype=torch.float64) -> Scan:
    tensors = scan_inputs(l=l, dtype=dtype, z=False)
    names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
    return Scan(**{name: tensors[name].detach() for name in names}, reverse=reverse)


def output_of(scan: Scan) -> torch.Tensor:
    return selective_scan(scan.u, scan.delta, scan.A, scan.B, scan.C, scan.D, delta_bias=scan.delta_bias,
                          delta_softplus=True, reverse=scan.reverse, backend="loop")


def assert_near(found, expected, rtol=1e-10):
    torch.testing.assert_close(found, expected, rtol=rtol, atol=rtol * expected.abs().max().item())


def vim(**settings) -> VisionMamba:
    torch.manual_seed(3)
    model = VisionMamba(**{"img_size": 12, "patch_size": 4, "num_classes": 5, "embed_dim": 12, "depth": 3, "d_state": 4,
                           "backend": "loop"} | settings).double().eval()
    # Fresh weights are too symmetric: the mixers hardly move anything.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def images_for(model: VisionMamba, count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, *model.patch_embed.img_size, dtype=torch.float64)


# The hidden matrix

@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("l", LENGTHS)
def test_matrix_times_input_is_the_scan(l, reverse):
    scan = scan_of(l, reverse)
    matrix = explain.hidden_matrix(scan, list(range(scan.u.shape[2])))
    assert_near(torch.einsum("betj,bje->bte", matrix, scan.u) + scan.D * scan.u, output_of(scan))
    assert torch.equal(matrix, matrix.triu() if reverse else matrix.tril())


@pytest.mark.parametrize("reverse", [False, True])
def test_a_row_is_the_gradient_of_the_output_at_fixed_steps(reverse):
    scan = scan_of(9, reverse)
    scan = scan._replace(u=scan.u.requires_grad_(), D=None)
    for query in (0, 4, 8):
        (grad,) = torch.autograd.grad(output_of(scan)[:, query].sum(), scan.u)
        assert_near(explain.hidden_row(scan, query), grad)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("l", LENGTHS)
@pytest.mark.parametrize("largest", [1, hidden.LARGEST])
def test_the_mean_over_channels_with_and_without_factors(l, reverse, largest, monkeypatch):
    monkeypatch.setattr(hidden, "LARGEST", largest)
    scan = scan_of(l, reverse)
    matrix = explain.hidden_matrix(scan, list(range(scan.u.shape[2])))
    assert_near(explain.mean_hidden_matrix(scan), matrix.mean(1))
    gain = torch.randn_like(scan.u)
    expected = torch.einsum("betj,bte,bje->btj", matrix, gain, scan.u) / scan.u.shape[2]
    assert_near(explain.mean_hidden_matrix(scan, gain, scan.u), expected)


@pytest.mark.parametrize("backend", ["loop", "parallel", "numba"])
def test_every_backend_gives_the_row(backend):
    for reverse in (False, True):
        scan = scan_of(33, reverse)
        matrix = explain.hidden_matrix(scan, list(range(scan.u.shape[2])))
        assert_near(explain.hidden_row(scan, 20, backend), matrix[:, :, 20].transpose(1, 2))


def test_memory_is_linear_in_the_tokens_for_one_query():
    def allocated(l):
        scan = scan_of(l, False, torch.float32)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
            explain.hidden_row(scan, l - 1)
        return sum(max(event.self_cpu_memory_usage, 0) for event in measured.key_averages())
    allocated(8)
    few, many = allocated(250), allocated(1000)
    assert 0 < many < 4.5 * few


def test_long_steps_forget_and_short_ones_remember():
    """Steps at which a state falls out of the range of its numbers at once, and those at which nothing is lost."""
    for bias in (30.0, -30.0):
        scan = scan_of(40, False, torch.float32)
        scan = scan._replace(delta_bias=torch.full_like(scan.delta_bias, bias))
        exact = Scan(*(x.double() if isinstance(x, torch.Tensor) else x for x in scan))
        matrix = explain.hidden_matrix(exact, list(range(scan.u.shape[2]))).mean(1)
        assert_near(explain.mean_hidden_matrix(scan).double(), matrix, rtol=1e-5)
        assert_near(explain.hidden_row(scan, 30).double().mean(-1), matrix[:, 30], rtol=1e-5)


def test_long_sequences_in_float32_stay_exact():
    scan = scan_of(700, False, torch.float32)
    exact = scan_of(700, False)
    assert_near(explain.mean_hidden_matrix(scan).double(), explain.mean_hidden_matrix(exact), rtol=1e-4)
    assert_near(explain.hidden_row(scan, 699).double(), explain.hidden_row(exact, 699), rtol=1e-4)


def test_bfloat16_is_computed_in_float32():
    scan = scan_of(20, False, torch.bfloat16)
    row = explain.hidden_row(scan, 19)
    assert row.dtype == explain.steps(scan).dtype == torch.float32
    wide = Scan(*(x.float() if isinstance(x, torch.Tensor) else x for x in scan))
    assert_near(row, explain.hidden_row(wide, 19), rtol=1e-6)


# Records

@pytest.mark.parametrize("settings", [{}, {"halve_directions": False}, {"bidirectional": False},
                                      {"class_token": None, "global_pool": "avg"}, {"class_token": "first"},
                                      {"img_size": (8, 16)}])
def test_a_record_rebuilds_the_output_of_the_mixer(settings):
    model = vim(**settings)
    images, outputs = images_for(model), {}
    for i, layer in enumerate(model.layers):
        layer.mixer.register_forward_hook(lambda module, args, out, i=i: outputs.__setitem__(i, out))
    for one in explain.record(model, images):
        channels = list(range(one.z.shape[2]))
        y = sum(torch.einsum("betj,bje->bte", explain.hidden_matrix(scan, channels), scan.u) + scan.D * scan.u
                for scan in one.scans)
        gated = one.scale * y * nn.functional.silu(one.z)
        assert_near(model.layers[one.layer].mixer.out_proj(gated), outputs[one.layer])


def test_gradients_are_those_of_the_logit():
    model = vim()
    images, eps = images_for(model), 1e-6
    classes = torch.tensor([3, 1])
    (one,) = explain.record(model, images, [1], classes)
    direction = torch.randn_like(one.z)

    def logits(amount):
        hook = model.layers[1].mixer.out_proj.register_forward_pre_hook(lambda m, args: (args[0] + amount * direction,))
        with torch.no_grad():
            found = model(images).gather(1, classes[:, None]).sum()
        hook.remove()
        return found

    assert_near((logits(eps) - logits(-eps)) / (2 * eps), (one.grad * direction).sum(), rtol=1e-6)
    assert_near(one.grad_y, one.grad * 0.5 * nn.functional.silu(one.z))
    top = model(images).argmax(1)
    assert_near(explain.record(model, images, [1], "top")[0].grad, explain.record(model, images, [1], top)[0].grad)


def test_a_record_says_which_layer_it_is_and_holds_no_graph():
    model = vim()
    (one,) = explain.record(model, images_for(model), [-1], target=0)
    assert one.layer == 2
    assert not any(x.requires_grad for scan in one.scans for x in (*scan, one.z, one.grad)
                   if isinstance(x, torch.Tensor))


def test_the_model_stays_as_it_was():
    model = vim().train()
    model.requires_grad_(False)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    explain.attribution(model, images_for(model))
    with pytest.raises(VimlearnError):
        explain.record(model, images_for(model), target=7)
    with pytest.raises(VimlearnError):
        explain.record(model, torch.zeros(1, 3, 5, 5, dtype=torch.float64))
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in model.modules())
    assert not any("inputs" in vars(module) for module in model.modules())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in model.parameters())
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


# Maps

def mean_matrices(model, images):
    return [sum(explain.hidden_matrix(scan, list(range(one.z.shape[2]))).mean(1) for scan in one.scans)
            for one in explain.record(model, images)]


@pytest.mark.parametrize("settings", [{}, {"class_token": "first"}, {"bidirectional": False}])
def test_hidden_attention_is_a_row_of_the_mean_matrix(settings):
    model = vim(**settings)
    images = images_for(model)
    expected = mean_matrices(model, images)
    assert_near(explain.hidden_attention(model, images, layer=1), expected[1][:, model.class_token_index])
    assert_near(explain.hidden_attention(model, images, layer=-1, query=2), expected[2][:, 2])
    assert_near(explain.hidden_attentions(model, images, [2, 0]),
                torch.stack([expected[i][:, model.class_token_index] for i in (2, 0)]))


def test_the_directions_of_hidden_attention_add_up():
    model = vim()
    images, at = images_for(model), 4
    parts = {name: explain.hidden_attention(model, images, query=at, direction=name)
             for name in ("both", "forward", "backward")}
    assert_near(parts["forward"] + parts["backward"], parts["both"])
    assert parts["forward"][:, at + 1:].eq(0).all() and parts["forward"][:, :at + 1].ne(0).all()
    assert parts["backward"][:, :at].eq(0).all() and parts["backward"][:, at:].ne(0).all()


def test_rollout_is_the_product_over_the_layers():
    model = vim()
    images = images_for(model)
    product = torch.eye(model.num_tokens, dtype=torch.float64)
    for matrix in mean_matrices(model, images)[1:]:
        positive = matrix.clamp(min=0)
        product = (torch.eye(model.num_tokens) + positive / positive.sum(-1, keepdim=True)) @ product
    assert_near(explain.rollout(model, images, first_layer=1), product[:, model.class_token_index])


def test_attribution_is_the_product_of_gradient_times_matrix():
    model = vim()
    images = images_for(model)
    product = torch.eye(model.num_tokens, dtype=torch.float64)
    for one in explain.record(model, images, target=2):
        total = 0
        for scan in one.scans:
            matrix = explain.hidden_matrix(scan, list(range(one.z.shape[2])))
            total = total + torch.einsum("betj,bte,bje->betj", matrix, one.grad_y, scan.u).mean(1)
        product = (torch.eye(model.num_tokens) + total.clamp(min=0)) @ product
    assert_near(explain.attribution(model, images, target=2), product[:, model.class_token_index])


def test_delta_maps_are_the_steps():
    model = vim()
    images = images_for(model)
    (one,) = explain.record(model, images, [0])
    forward, backward = (nn.functional.softplus(scan.delta @ scan.delta_weight.T + scan.delta_bias).mean(-1)
                         for scan in one.scans)
    assert_near(explain.delta_maps(model, images, 0), (forward + backward) / 2)
    assert_near(explain.delta_maps(model, images, 0, "backward"), backward)


@pytest.mark.parametrize("settings, at", [({}, 4), ({"class_token": "first"}, 0),
                                          ({"class_token": None, "global_pool": "avg"}, None),
                                          ({"img_size": (8, 16)}, 4)])
def test_on_the_grid_the_class_token_is_left_out(settings, at):
    model = vim(**settings)
    rows, columns = model.patch_embed.grid_size
    tokens = torch.arange(model.num_tokens, dtype=torch.float64).expand(2, 1, -1)
    grid = explain.on_grid(model, tokens)
    assert grid.shape == (2, 1, rows, columns)
    assert grid[1, 0].flatten().tolist() == [t for t in range(model.num_tokens) if t != at]


# Gradients

def test_input_gradient_is_the_gradient():
    model = vim()
    images = images_for(model).requires_grad_()
    (grad,) = torch.autograd.grad(model(images)[:, 3].sum(), images)
    assert_near(explain.input_gradient(model, images, 3), grad.abs().sum(1))


def test_integrated_gradients_add_up_to_the_difference_of_logits():
    model = vim()
    images = images_for(model)
    found = explain.integrated_gradients(model, images, 3, points=100).sum((1, 2))
    with torch.no_grad():
        assert_near(found, (model(images) - model(torch.zeros_like(images)))[:, 3], rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
def test_grad_cam_weights_the_tokens_behind_a_layer(layer):
    model = vim()
    images, kept = images_for(model).requires_grad_(), []
    model.layers[layer + 1].norm.register_forward_pre_hook(lambda module, args: kept.append(args))
    logits = model(images)
    h, residual = kept[0]
    (grad,) = torch.autograd.grad(logits.max(1).values.sum(), h)
    weights = model.patch_tokens(grad).mean(1, keepdim=True)
    expected = (weights * model.patch_tokens(h + residual)).sum(-1).clamp(min=0).unflatten(1, (3, 3))
    assert expected.max() > 0
    assert_near(explain.grad_cam(model, images, layer), expected.detach())


# Reach

def test_a_forward_network_sees_only_what_came_before():
    images = images_for(vim())
    both, forward = vim(), vim(bidirectional=False)
    field = explain.receptive_field(forward, images, layer=1, token=5)
    assert_near(field.sum(), torch.tensor(1.0, dtype=torch.float64))
    # Token 5 is patch 4, in the middle of the 3 x 3; behind the class token come patches 4 and on.
    seen = field.unfold(0, 4, 4).unfold(1, 4, 4).sum((2, 3)).flatten()
    assert (seen[:5] > 0).all() and (seen[5:] == 0).all()
    assert (explain.receptive_field(both, images, layer=1) > 0).all()


@pytest.mark.parametrize("settings, token", [({}, 5), ({"class_token": "first"}, 5),
                                             ({"class_token": None, "global_pool": "avg"}, 4)])
def test_the_field_is_asked_of_the_patch_in_the_middle(settings, token):
    model = vim(**settings)
    images = images_for(model)
    assert torch.equal(explain.receptive_field(model, images), explain.receptive_field(model, images, token=token))


def test_states_reach_as_far_as_their_step_and_decay_say():
    model = vim(depth=1)
    with torch.no_grad():
        for direction in model.layers[0].mixer.directions():
            direction.dt_proj.weight.zero_()
            direction.dt_proj.bias.fill_(torch.tensor(0.1).expm1().log())
            direction.A_log.copy_(torch.arange(1, 5).log().expand_as(direction.A_log))
    assert_near(explain.reach(model, images_for(model)), torch.full((1, 2, 24), 10, dtype=torch.float64), rtol=1e-6)


# Bad input

@pytest.mark.parametrize("call, message", [
    (lambda m, x: explain.record(nn.Linear(2, 2), x), "the model is a Linear; expected a vimlearn.VisionMamba"),
    (lambda m, x: explain.hidden_attention(m, x, layer=3), "there is no layer 3; expected 0 to 2, or -3 to -1"),
    (lambda m, x: explain.grad_cam(m, x, layer=-4), "there is no layer -4"),
    (lambda m, x: explain.hidden_attention(m, x, query=10), "there is no token 10; expected 0 to 9"),
    (lambda m, x: explain.hidden_attention(m, x, direction="up"), "unknown direction 'up'; expected one of both, forw"),
    (lambda m, x: explain.attribution(m, x, target=5), "there is no class 5; expected 0 to 4"),
    (lambda m, x: explain.attribution(m, x, target=-1), "there is no class -1; expected 0 to 4"),
    (lambda m, x: explain.input_gradient(m, x, target="best"), "unknown target 'best'; expected the number of a class"),
    (lambda m, x: explain.hidden_matrix(explain.record(m, x)[0].scans[0], [24]), "no channel 24; expected 0 to 23"),
    (lambda m, x: explain.hidden_row(explain.record(m, x)[0].scans[0], -1), "there is no token -1; expected 0 to 9"),
    (lambda m, x: explain.record(m, x)[0].grad_y, "the record holds no gradient; pass `target` to `record`"),
    (lambda m, x: explain.on_grid(m, torch.zeros(9)), "there are 9 numbers; expected one for each of 10 tokens"),
])
def test_bad_input_is_said(call, message):
    model = vim()
    with pytest.raises(VimlearnError) as error:
        call(model, images_for(model))
    assert message in str(error.value)


def test_models_without_a_class_token_or_a_backward_direction():
    model = vim(class_token=None, global_pool="avg")
    with pytest.raises(VimlearnError, match="no class token; name the token that is asked about, query=0 to 8"):
        explain.rollout(model, images_for(model))
    assert explain.rollout(model, images_for(model), query=3).shape == (2, 9)
    with pytest.raises(VimlearnError, match="the model scans forward only"):
        explain.delta_maps(vim(bidirectional=False), images_for(model), direction="backward")


def test_the_shipped_network_can_be_asked():
    model = vimlearn.load_model("shipped:cifar10")
    images = torch.randn(1, 3, 32, 32)
    grid = explain.on_grid(model, explain.attribution(model, images))
    assert grid.shape == (1, 8, 8) and grid.isfinite().all() and grid.max() > 0
