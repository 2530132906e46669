"""The whole state of a run on disk: damaged, missing, refused, and a disk that is full."""

import json
import resource
import warnings

import pytest
import torch
from drawn_images import make_tree
from safetensors import safe_open
from safetensors.torch import load_file
from stopped_runs import EPOCHS, assert_same_run, contents, random_run, run_until

import vimlearn
from vimlearn import files
from vimlearn.training import read_log, record, train
from vimlearn.training import state as states


def cut(content):
    return content[:-100]


def flip_tensor(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def flip_json(content):
    place = content.index(b'\\"step\\": ') + len(b'\\"step\\": ')
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1:]


@pytest.mark.parametrize("damage", [cut, flip_tensor, flip_json, lambda content: b""])
def test_a_damaged_state_is_known_and_the_one_before_is_taken(tree, whole, tmp_path, damage):
    run_until(5, random_run(tree, tmp_path))
    newest, before = sorted((tmp_path / "states").iterdir(), reverse=True)
    assert (newest.name, before.name) == ("epoch-0002-step-0000002.safetensors", "epoch-0002-step-0000001.safetensors")
    newest.write_bytes(damage(newest.read_bytes()))
    with pytest.warns(UserWarning, match="0002-step-0000002.safetensors is damaged .*taking the one before"):
        train(random_run(tree, tmp_path, resume="auto"))
    assert_same_run(tmp_path, whole)


def test_all_states_damaged_is_an_error_that_changes_nothing(tree, tmp_path):
    train(random_run(tree, tmp_path, epochs=1))
    for path in (tmp_path / "states").iterdir():
        path.write_bytes(flip_tensor(path.read_bytes()))
    log = (tmp_path / "log.csv").read_bytes()
    with warnings.catch_warnings(), pytest.raises(vimlearn.VimlearnError, match=r"all 2 states .* are damaged; start"):
        warnings.simplefilter("ignore")
        train(random_run(tree, tmp_path, epochs=1, resume="auto"))
    assert (tmp_path / "log.csv").read_bytes() == log


def test_epochs_without_a_state_are_not_written_over(tree, tmp_path):
    train(random_run(tree, tmp_path, epochs=1))
    for path in (tmp_path / "states").iterdir():
        path.unlink()
    log = (tmp_path / "log.csv").read_bytes()
    with pytest.raises(vimlearn.VimlearnError, match="holds 1 epochs and no state to go on from"):
        train(random_run(tree, tmp_path, epochs=1, resume="auto"))
    assert (tmp_path / "log.csv").read_bytes() == log


def test_only_the_two_newest_states_stay(tmp_path):
    (tmp_path / "states").mkdir()
    (tmp_path / "states" / "epoch-0001-step-0000001.safetensors.part").write_bytes(b"half")
    places = [(9998, 7), (9999, 3), (10000, 0), (10000, 10_000_000)]
    for epoch, step in places:
        states.write_state(tmp_path, states.State(epoch, step, tensors={"model/a": torch.ones(2)}))
    assert sorted(path.name for path in (tmp_path / "states").iterdir()) == [
        "epoch-10000-step-0000000.safetensors", "epoch-10000-step-10000000.safetensors"]
    assert states.newest_state(tmp_path).step == 10_000_000


def test_a_run_that_died_before_its_first_state_starts_again(tree, whole, tmp_path):
    run_until(1, random_run(tree, tmp_path, save_steps=2))
    assert not (tmp_path / "states").exists()
    train(random_run(tree, tmp_path, resume="auto"))
    assert_same_run(tmp_path, whole)


# The disk

def test_options_are_whole_or_not_there(tree, tmp_path, monkeypatch):
    def half(given, path):
        path.write_text("network:\n  mod")
        raise OSError(28, "No space left on device", str(path))
    with monkeypatch.context() as patch, pytest.raises(vimlearn.VimlearnError, match="cannot write the run to"):
        patch.setattr(record, "write_yaml", half)
        train(random_run(tree, tmp_path))
    assert not (tmp_path / "options.yaml").exists()
    train(random_run(tree, tmp_path, epochs=1, resume="auto"))


def test_a_full_disk_is_one_line_and_loses_nothing(tree, whole, tmp_path):
    """A real limit on the size of files stands for the full disk; the first to pass it is the state in epoch 2."""
    limits, before = resource.getrlimit(resource.RLIMIT_FSIZE), {}

    def fill(row):
        before.update(contents(tmp_path))
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(vimlearn.VimlearnError, match=r"cannot write .*File too large.*holds epoch 1") as error:
            train(random_run(tree, tmp_path, tensorboard=True), on_epoch=fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "\n" not in str(error.value)
    assert before and contents(tmp_path) == before
    train(random_run(tree, tmp_path, tensorboard=True, resume="auto"))
    assert_same_run(tmp_path, whole)


def test_a_full_disk_between_states_leaves_no_half_file(tmp_path, monkeypatch):
    def full(tensors, path, strings):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    states.write_state(tmp_path, states.State(1, 1, tensors={"a": torch.ones(1)}))
    before = contents(tmp_path)
    monkeypatch.setattr(files, "save_file", full)
    for step in (1, 2):
        with pytest.raises(vimlearn.VimlearnError, match=r"cannot write .*No space left .*earlier .* is untouched"):
            states.write_state(tmp_path, states.State(1, step, tensors={"a": torch.zeros(1)}))
        assert contents(tmp_path) == before


def test_curves_that_cannot_be_written_are_one_line(tree, tmp_path):
    (tmp_path / "tensorboard").write_text("a file")
    with pytest.raises(vimlearn.VimlearnError, match=r"cannot write .*tensorboard.*--no-tensorboard; .*holds epoch 1"):
        train(random_run(tree, tmp_path, tensorboard=True))
    assert len(read_log(tmp_path / "log.csv")) == 1


# What may change between the parts of a run

@pytest.mark.parametrize("name, value", [
    ("lr", 1e-4), ("seed", 1), ("batch_size", 4), ("epochs", 4), ("embed_dim", 32), ("flip", 0.1), ("img_size", 24),
    ("ema", None), ("precision", "bfloat16"), ("num_classes", 3), ("crop_pct", 0.9)])
def test_other_options_are_named_and_refused(tree, whole, name, value):
    before = contents(whole)
    with pytest.raises(vimlearn.VimlearnError, match=rf"the run in .* has {name} .* and now it is {value!r}; resume"):
        train(random_run(tree, whole, resume="auto", **{name: value}))
    assert contents(whole) == before


def test_where_and_how_may_change(tree, whole, tmp_path):
    run_until(5, random_run(tree, tmp_path / "here"))
    moved = (tmp_path / "here").rename(tmp_path / "there")
    train(random_run(tree, moved, resume="auto", save_steps=7, workers=1, max_unreadable=3, tensorboard=True,
                     on_nonfinite="skip", device="auto" if not torch.cuda.is_available() else "cpu"))
    assert_same_run(moved, whole)


def test_threads_change_rounding_alone(tree, whole, tmp_path):
    run_until(5, random_run(tree, tmp_path))
    train(random_run(tree, tmp_path, resume="auto", threads=2))
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path, whole))
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4, msg=lambda m, name=name: f"{name}: {m}")


def test_other_data_is_refused(tmp_path):
    tree = make_tree(tmp_path / "tree")
    train(random_run(tree, tmp_path / "run", epochs=1))
    gone = tree / "train" / "bee" / "3.png"
    gone.unlink()
    with pytest.raises(vimlearn.VimlearnError, match="began with 24 images to train on and now there are 23"):
        train(random_run(tree, tmp_path / "run", epochs=1, resume="auto"))


def test_states_of_earlier_versions_can_be_resumed(tree, whole, tmp_path):
    run_until(5, random_run(tree, tmp_path))
    state = states.newest_state(tmp_path)
    assert state.extra.pop("data") == {"images to train on": 24, "classes": 3}
    states.write_state(tmp_path, state)
    train(random_run(tree, tmp_path, resume="auto"))
    assert_same_run(tmp_path, whole)


def test_a_state_says_in_plain_json_where_the_run_is(whole):
    newest = sorted((whole / "states").iterdir())[-1]
    with safe_open(newest, framework="pt") as file:
        told = json.loads(file.metadata()["state"])
    assert (told["epoch"], told["step"], len(told["rows"])) == (EPOCHS + 1, 0, EPOCHS)
