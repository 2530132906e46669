"""`torch.compile` and `torch.export` see the scan as one node and give the same numbers and gradients."""

import shutil

import pytest
import torch
from helpers import assert_near
from torch._inductor import config as inductor_config

from vimlearn import VisionMamba

COMPILER = any(shutil.which(name) for name in ("c++", "g++", "clang++"))
NEEDS_COMPILER = pytest.mark.skipif(not COMPILER, reason="no C++ compiler here")
BACKENDS = ["aot_eager", pytest.param("inductor", marks=NEEDS_COMPILER)]


@pytest.fixture
def network():
    return VisionMamba(img_size=16, patch_size=4, num_classes=5, embed_dim=16, depth=1)


def gradients(model, function, images):
    model.zero_grad()
    out = function(images)
    out.square().sum().backward()
    return {"logits": out.detach()} | {n: p.grad.clone() for n, p in model.named_parameters()}


@pytest.fixture(autouse=True)
def no_compiled_code_of_earlier_versions():
    """Inductor's cache on disk does not see that an operator of ours has changed."""
    with inductor_config.patch(force_disable_caches=True):
        yield


@pytest.mark.parametrize("backend", BACKENDS)
def test_compile_values_and_gradients(network, backend):
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    images = torch.randn(2, 3, 16, 16)
    assert_near(gradients(network, compiled, images), gradients(network, network, images), 1e-4)


def test_a_loss_may_be_compiled_without_the_network(network):
    """Its backward pass is traced through a forward pass that was not."""
    images, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 3])
    torch.nn.functional.cross_entropy(network(images), labels).backward()
    expected = {name: p.grad.clone() for name, p in network.named_parameters()}
    network.zero_grad()
    step = torch.compile(lambda logits: torch.nn.functional.cross_entropy(logits, labels).backward(),
                         backend="aot_eager")
    step(network(images))
    assert_near({name: p.grad for name, p in network.named_parameters()}, expected, 1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_trace(network):
    traced = torch.jit.trace(network.eval(), torch.randn(1, 3, 16, 16))
    images = torch.randn(3, 3, 16, 16)
    assert_near({"logits": traced(images)}, {"logits": network(images)}, 1e-5)


def test_compile_with_a_changing_batch(network):
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager", dynamic=True)
    for b in (2, 3, 5):
        images = torch.randn(b, 3, 16, 16)
        assert_near({"logits": compiled(images)}, {"logits": network(images)}, 1e-5)


def test_export(network):
    network.eval()
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(network, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},))
    assert sum("bidirectional_scan_numba" in str(node.target) for node in program.graph.nodes) == 1
    for b in (1, 2, 7):
        images = torch.randn(b, 3, 16, 16)
        assert_near({"logits": program.module()(images)}, {"logits": network(images)}, 1e-5)
