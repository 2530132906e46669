"""The manners of the training engine: losses that are not finite, messages, threads, number formats."""

import copy
import math
import threading

import pytest
import torch
from drawn_images import RANDOM, command_line, make_tree, options, plain
from safetensors.torch import load_file
from stopped_runs import PowerCutError

import vimlearn
from vimlearn import cli
from vimlearn.evaluate import evaluate
from vimlearn.training import Augment, Data, Network, Options, Recipe, Run, read_log, train
from vimlearn.training import trainer as trainers
from vimlearn.training.processes import Processes
from vimlearn.training.trainer import Trainer


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("images") / "tree")


# Losses and gradients that are not finite

def spoil_loss(monkeypatch, bad):
    """Make the loss of the steps (epoch, number) in `bad` infinite, and leave its gradient finite."""
    step = Trainer.step

    def spoiled(self, parts, epoch, number, *rest):
        criterion = self.criterion
        if (epoch, number) in bad:
            self.criterion = lambda *args: criterion(*args) + math.inf
        try:
            return step(self, parts, epoch, number, *rest)
        finally:
            self.criterion = criterion
    monkeypatch.setattr(Trainer, "step", spoiled)


def spoil_gradient(monkeypatch, bad):
    """Leave the loss finite and make one number of the gradient NaN."""
    step, limit = Trainer.step, Processes.limit_gradient
    now = []

    def spoiled(self, parts, epoch, number, *rest):
        now[:] = [(epoch, number)]
        return step(self, parts, epoch, number, *rest)

    def limited(self, largest):
        if now[0] in bad:
            next(self.model.parameters()).grad.view(-1)[0] = math.nan
        return limit(self, largest)
    monkeypatch.setattr(Trainer, "step", spoiled)
    monkeypatch.setattr(Processes, "limit_gradient", limited)


@pytest.mark.parametrize("spoil, what", [(spoil_loss, "the loss is inf"),
                                         (spoil_gradient, "the norm of the gradient is nan")])
@pytest.mark.parametrize("clip_grad", [None, 1.0])
def test_stops_and_keeps_the_batch(tree, tmp_path, monkeypatch, capsys, spoil, what, clip_grad):
    spoil(monkeypatch, {(2, 1)})
    args = command_line(tree, output=tmp_path / "run", accumulate=2, mixup=0.8, clip_grad=clip_grad)
    assert cli.main(args) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"vimlearn: {what} in epoch 2, step 2, at a learning rate of 0.00253; lower --lr, or limit")
    assert err.count("\n") == 1
    [kept] = (tmp_path / "run").glob("nonfinite-*")
    assert f"The batch is in {kept}; {tmp_path / 'run' / 'model.safetensors'} holds epoch 1" in err
    batch = load_file(kept)
    assert sorted(batch) == ["images.0", "images.1", "targets.0", "targets.1"]
    assert batch["images.0"].shape == (4, 3, 16, 16) and batch["targets.1"].shape == (4, 3)
    assert batch["images.0"].isfinite().all()
    # Nothing of it went into the weights on disk.
    assert all(value.isfinite().all() for value in load_file(tmp_path / "run" / "model.safetensors").values())


@pytest.mark.parametrize("spoil", [spoil_loss, spoil_gradient])
def test_skips_and_counts(tree, tmp_path, monkeypatch, spoil):
    weights, step = [], Trainer.step
    with monkeypatch.context() as patch:
        spoil(patch, {(1, 2), (2, 0)})
        spoiled = Trainer.step

        def noted(self, parts, epoch, number, *rest):
            found = spoiled(self, parts, epoch, number, *rest)
            weights.append(copy.deepcopy([self.network.state_dict(), self.average.module.state_dict(),
                                          self.optimizer.state_dict()["state"]]))
            return found
        patch.setattr(Trainer, "step", noted)
        result = train(options(tree, output=str(tmp_path), on_nonfinite="skip", ema=0.9))
    assert Trainer.step is step
    assert [row["skipped"] for row in read_log(tmp_path / "log.csv")] == [1, 1]
    assert all(math.isfinite(row["train_loss"]) and math.isfinite(row["grad_norm"]) for row in result.log)
    for i, unchanged in enumerate((False, True, True, False, False), 1):
        pairs = zip(tensors(weights[i]), tensors(weights[i - 1]), strict=True)
        assert all(torch.equal(one, other) for one, other in pairs) == unchanged, i


def tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    return [leaf for branch in (tree.values() if isinstance(tree, dict) else tree) for leaf in tensors(branch)]


def test_gives_up_after_many_skips_in_a_row_also_across_epochs_and_stops(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(trainers, "MOST_SKIPPED", 5)
    spoil_loss(monkeypatch, {(1, 1), (1, 2), (2, 0), (2, 2), (3, 0), (3, 1), (3, 2), (4, 0)})
    message = r"loss is inf in epoch 4, step 1, .*, 5 steps in a row; lower"
    run = {"epochs": 6, "on_nonfinite": "skip"}
    with pytest.raises(vimlearn.VimlearnError, match=message):
        train(options(tree, **run))

    def stop(row):
        # After the fourth of the five
        if row["epoch"] == 3:
            raise PowerCutError
    with pytest.raises(PowerCutError):
        train(options(tree, **run, output=str(tmp_path)), on_epoch=stop)
    with pytest.raises(vimlearn.VimlearnError, match=message):
        train(options(tree, **run, output=str(tmp_path), resume="auto"))


def test_an_epoch_without_a_step_has_no_loss(tree, tmp_path, monkeypatch):
    spoil_loss(monkeypatch, {(1, 0), (1, 1), (1, 2)})
    result = train(options(tree, epochs=2, on_nonfinite="skip", output=str(tmp_path)))
    for rows in (result.log, read_log(tmp_path / "log.csv")):
        assert math.isnan(rows[0]["train_loss"]) and math.isfinite(rows[1]["train_loss"])
    assert plain(train(options(tree, on_nonfinite="skip", output=str(tmp_path), resume="auto")).log)[1] == plain(
        result.log)[1]


def test_the_average_follows_the_weights(tree, monkeypatch):
    """After each step: 0.9 of what it was and 0.1 of the weights."""
    step, wrong = Trainer.step, []

    def checked(self, *args):
        before = copy.deepcopy(self.average.module.state_dict())
        found = step(self, *args)
        for name, value in self.average.module.state_dict().items():
            by_hand = 0.9 * before[name] + 0.1 * self.network.state_dict()[name]
            wrong.extend([] if torch.allclose(value, by_hand, atol=1e-6) else [name])
        return found
    monkeypatch.setattr(Trainer, "step", checked)
    train(options(tree, ema=0.9))
    assert not wrong


# Manners

def test_quiet_is_quiet_and_otherwise_each_message_is_a_line(tree, capsys):
    train(options(tree))
    assert capsys.readouterr() == ("", "")
    train(options(tree, quiet=False))
    out, err = capsys.readouterr()
    assert out == f"{tree}: 24 images to train on, 9 held out, 3 classes\n" and "48/48" in err


def test_trains_in_another_thread(tree, whole_log):
    found = []
    thread = threading.Thread(target=lambda: found.append(plain(train(options(tree, workers=1, **RANDOM)).log)))
    thread.start()
    thread.join()
    assert found == [whole_log]


@pytest.fixture(scope="module")
def whole_log(tree):
    return plain(train(options(tree, **RANDOM)).log)


def test_threads_are_put_back_after_an_error(tree):
    before = torch.get_num_threads()
    for broken in ({"dataset": "nowhere"}, {"embed_dim": 15, "model": "deit"}, {"lr": 1e30, "epochs": 3}):
        with pytest.raises(vimlearn.VimlearnError):
            train(options(**{"dataset": tree, "threads": before + 1, **broken}))
        assert torch.get_num_threads() == before


def test_two_runs_at_a_time_do_not_share_a_folder(tree, tmp_path, monkeypatch):
    """Both look for a free number before either takes it."""
    monkeypatch.chdir(tmp_path)
    ready, mkdir, folders = threading.Barrier(2), trainers.Path.mkdir, []

    def together(self, *args, **kwargs):
        if self.name == "tree-1" and not kwargs:
            ready.wait(10)
        return mkdir(self, *args, **kwargs)
    monkeypatch.setattr("pathlib.Path.mkdir", together)

    def run():
        folders.append(trainers.RunFolder(options(tree, output="auto")).path.name)
    running = [threading.Thread(target=run) for _ in range(2)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    assert sorted(folders) == ["tree-1", "tree-2"]


def test_names_with_brackets_are_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tree = make_tree(tmp_path / "set[1]")
    assert train(options(tree, output="auto", epochs=1)).folder.as_posix() == "runs/set[1]-1"
    again = train(options(tree, output="auto", epochs=1, resume="auto"))
    assert again.folder.as_posix() == "runs/set[1]-1"


# Number formats

def digit_run(precision):
    return Options(Network(stride=None, depth=1, embed_dim=32, d_state=2, backend="parallel"), Data(batch_size=32),
                   Augment(shift=0), Recipe(epochs=2, lr=1e-2, warmup_epochs=0, precision=precision),
                   Run(output=None, quiet=True, device="cpu"))


def test_bfloat16_trains_as_well_as_float32_and_stays_finite(monkeypatch):
    norms, limit, kinds = [], Processes.limit_gradient, []

    def noted(self, largest):
        norms.append(limit(self, largest))
        return norms[-1]
    monkeypatch.setattr(Processes, "limit_gradient", noted)
    exact = train(digit_run("float32"))
    forward = Processes.forward

    def watched(self, images):
        with torch.no_grad():
            kinds.append(torch.is_autocast_enabled("cpu"))
        return forward(self, images)
    monkeypatch.setattr(Processes, "forward", watched)
    rough = train(digit_run("bfloat16"))
    again = train(digit_run("float32"))
    assert len(norms) == 3 * 2 * (1198 // 32) and all(map(math.isfinite, norms))
    assert all(value.isfinite().all() for value in rough.model.parameters())
    assert exact.heldout.accuracy > 0.85 and abs(rough.heldout.accuracy - exact.heldout.accuracy) < 0.05
    # Another number format: not the same numbers. Afterwards the first one again: the same.
    assert rough.log[0]["train_loss"] != exact.log[0]["train_loss"]
    assert plain(again.log) == plain(exact.log)


def test_the_network_that_comes_back_computes_in_its_own_format():
    """What the log says of the held-out part is what `vimlearn eval` will say of the file."""
    from vimlearn.data import digits
    result = train(digit_run("bfloat16"))
    assert "forward" not in vars(result.model)
    plainly = vimlearn.VisionMamba(**result.model.config)
    plainly.load_state_dict(result.model.state_dict())
    assert torch.equal(evaluate(plainly, digits()[1]).logits, result.heldout.logits)
