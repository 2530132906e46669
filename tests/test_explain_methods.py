"""The register of methods: one signature for all, and maps where the patches or pixels are."""

import pytest
import torch
from test_explain import assert_near, images_for, vim
from torch import nn

from vimlearn import VimlearnError, explain

ANY = [{}, {"class_token": "first"}, {"bidirectional": False}, {"img_size": (8, 20)}, {"stride": 2},
       {"class_token": None, "global_pool": "avg"}]


@pytest.mark.parametrize("settings", ANY)
@pytest.mark.parametrize("name", explain.METHODS)
def test_every_method_gives_a_map_of_each_image(name, settings):
    model, method = vim(**settings), explain.METHODS[name]
    images = images_for(model)
    query = {"query": (1, 2)} if "query" in method.options else {}
    found = explain.explain(model, images, name, **query)
    assert found.shape == (2, *(model.patch_embed.img_size if method.of_pixels else model.patch_embed.grid_size))
    assert found.isfinite().all() and not found.requires_grad
    assert method.signed or (found >= 0).all()
    if "layer" in method.options:
        every = explain.explain(model, images, name, layer="all", **query)
        assert every.shape == (3, *found.shape)
        assert_near(every[1], explain.explain(model, images, name, layer=-2, **query))


def test_the_images_of_a_batch_are_apart():
    model = vim()
    images = images_for(model)
    for name in explain.METHODS:
        assert_near(explain.explain(model, images[1:], name)[0], explain.explain(model, images, name)[1])


def test_options_reach_the_method():
    model = vim()
    images = images_for(model)
    grid = lambda tokens: explain.on_grid(model, tokens)  # noqa: E731
    for name, options, expected in [
        ("hidden", {"layer": 1, "query": (2, 0), "direction": "forward"},
         grid(explain.hidden_attention(model, images, 1, 7, "forward"))),
        ("hidden", {"query": "class"}, grid(explain.hidden_attention(model, images))),
        ("rollout", {"query": (0, 1)}, grid(explain.rollout(model, images, 1))),
        ("attribution", {"target": 2, "query": 0}, grid(explain.attribution(model, images, 2, 0))),
        ("delta", {"layer": 0, "direction": "backward"}, grid(explain.delta_maps(model, images, 0, "backward"))),
        ("input-gradient", {"target": 3}, explain.input_gradient(model, images, 3)),
        ("integrated-gradients", {"target": 3}, explain.integrated_gradients(model, images, 3)),
        ("grad-cam", {"target": 3}, explain.grad_cam(model, images, 1, 3)),
        ("receptive-field", {"layer": 0, "query": (0, 0)}, explain.receptive_fields(model, images, 0, 0)),
    ]:
        assert_near(explain.explain(model, images, name, **options), expected)


@pytest.mark.parametrize("settings, tokens", [({}, [0, 3, 5, 9]), ({"class_token": "first"}, [1, 4, 5, 9]),
                                              ({"class_token": None, "global_pool": "avg"}, [0, 3, 4, 8])])
def test_a_query_by_row_and_column(settings, tokens):
    model = vim(**settings)
    places = [(0, 0), (1, 0), (1, 1), (2, 2)]
    assert [explain.query_token(model, place) for place in places] == tokens


@pytest.mark.parametrize("options, message", [
    ({"method": "hiden"}, "unknown method 'hiden', did you mean 'hidden'?; expected one of hidden, rollout, attr"),
    ({"method": "delta", "query": 3}, "delta takes no query; it takes layer, direction"),
    ({"method": "rollout", "layer": 0}, "rollout takes no layer; it takes query"),
    ({"layer": 3}, "there is no layer 3; expected 0 to 2, or -3 to -1 from the end"),
    ({"layer": "each"}, "unknown layer 'each'; expected a number, or 'all'"),
    ({"query": 10}, "there is no token 10; expected 0 to 9"),
    ({"query": (0, 3)}, "there is no patch in row 0, column 3; expected rows 0 to 2 and columns 0 to 2"),
    ({"query": "cls"}, "unknown query 'cls'; expected the number of a token, (row, column) or 'class'"),
    ({"method": "grad-cam", "target": 5}, "there is no class 5; expected 0 to 4"),
])
def test_bad_options_are_said(options, message):
    model = vim()
    with pytest.raises(VimlearnError) as error:
        explain.explain(model, images_for(model), **options)
    assert message in str(error.value)


@pytest.mark.parametrize("method", explain.METHODS)
def test_a_model_that_is_no_vim(method):
    with pytest.raises(VimlearnError, match=r"the model is a Conv2d; expected a vimlearn.VisionMamba"):
        explain.explain(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8), method)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize(("dtype", "backend", "limit"), [(torch.float64, "loop", 1e-8), (torch.float32, "auto", 1e-3)])
@pytest.mark.parametrize("name", explain.METHODS)
def test_a_gpu_gives_the_maps_of_the_cpu(name, dtype, backend, limit, monkeypatch):
    """In float32, as people have it, the Triton kernels compute them, for one image in the form for few sequences."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = vim(backend="loop").to(dtype)
    images = images_for(model, count=1).to(dtype)
    expected = explain.explain(model, images, name)
    on_gpu = vim(backend=backend).to(dtype).cuda()
    found = explain.explain(on_gpu, images.cuda(), name)
    assert found.is_cuda
    assert_near(found.cpu(), expected, limit)
