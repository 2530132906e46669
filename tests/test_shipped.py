"""The networks that come along: found, checked, loaded under one name everywhere, and described truthfully."""

from pathlib import Path

import pytest
import torch

import vimlearn
from vimlearn import VimlearnError, shipped
from vimlearn.download import KNOWN_SHA256, fetch
from vimlearn.training.networks import build
from vimlearn.training.options import Network

ROOT = Path(__file__).parents[1]
CARD = ROOT / "data" / "checkpoints" / "README.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An installation of its own, whose files a test may spoil."""
    path = tmp_path / "weights"
    path.mkdir()
    for name in shipped.SHIPPED.values():
        (path / name).write_bytes((ROOT / "data" / "checkpoints" / name).read_bytes())
    monkeypatch.setattr(shipped, "files", lambda package: path)
    return path


@pytest.mark.parametrize("name", shipped.SHIPPED)
def test_a_shipped_network_loads_in_evaluation_mode(name):
    model = vimlearn.load_model(f"shipped:{name}")
    assert not model.training
    state = model.state_dict()
    fresh = vimlearn.VisionMamba(**model.config)
    assert not torch.equal(fresh.head.weight, state["head.weight"])
    report = vimlearn.load_checkpoint(fresh, f"shipped:{name}")
    assert sorted(report.loaded) == sorted(state)
    assert all(torch.equal(value, state[key]) for key, value in fresh.state_dict().items())


def test_the_classes_are_named_in_the_order_of_the_logits():
    names = vimlearn.class_names("shipped:cifar10")
    assert names == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert len(names) == vimlearn.load_model("shipped:cifar10").num_classes


def test_a_file_without_names_of_classes(tmp_path):
    for notes in ({}, {"classes": "["}, {"classes": "[]"}):
        path = vimlearn.save_checkpoint(vimlearn.VisionMamba(16, 8, embed_dim=16, depth=1), tmp_path / "x", notes)
        with pytest.raises(VimlearnError, match="does not name its classes; expected a file as vimlearn train writes"):
            vimlearn.class_names(path)


def test_a_run_can_start_from_it_with_other_classes():
    start = vimlearn.load_model("shipped:cifar10")
    network = Network(weights="shipped:cifar10", patch_size=4, stride=None, embed_dim=96, depth=6, d_state=8)
    model = build(network, img_size=(32, 32), in_chans=3, num_classes=3)
    assert model.num_classes == 3
    assert torch.equal(model.layers[5].mixer.A_log, start.layers[5].mixer.A_log)


def test_a_damaged_file_is_refused(folder):
    path = folder / shipped.SHIPPED["cifar10"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(VimlearnError, match="it is damaged or was replaced"):
        fetch("shipped:cifar10")
    assert path.is_file()


def test_a_missing_file_is_named(folder):
    (folder / shipped.SHIPPED["cifar10"]).unlink()
    with pytest.raises(VimlearnError, match="missing, which comes along with vimlearn; install vimlearn again"):
        vimlearn.load_model("shipped:cifar10")


def test_an_unknown_name_is_answered_with_those_there_are():
    with pytest.raises(VimlearnError, match=r"'cifar' comes along, did you mean 'cifar10'\?; expected one of"):
        vimlearn.load_model("shipped:cifar")


def test_every_shipped_file_has_a_name_and_a_hash():
    assert {path.name for path in CARD.parent.glob("*.safetensors")} == set(shipped.SHIPPED.values())
    assert set(shipped.SHIPPED.values()) <= set(KNOWN_SHA256)
    assert shipped.DEFAULT.removeprefix(shipped.MARK) in shipped.SHIPPED
