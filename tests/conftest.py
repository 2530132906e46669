"""Fixtures for all tests."""

import sys
from pathlib import Path

import pytest
import torch

import vimlearn  # noqa: F401  (before anything imports timm or torchvision)

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory():
    """Fill memory from `torch.empty` with NaN, so that an element nobody wrote is seen."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """A tree of drawn images in train/ and val/, for the tests of one file."""
    from drawn_images import make_tree
    return make_tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def whole(tree, tmp_path_factory):
    """The folder of a run over that tree that nothing stopped, with everything that draws."""
    from drawn_images import RANDOM, options
    from stopped_runs import EPOCHS

    from vimlearn.training import train
    return train(options(tree, epochs=EPOCHS, output=str(tmp_path_factory.mktemp("whole")), **RANDOM)).folder
