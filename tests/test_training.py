"""Training: options, their file, the loop and what it leaves on disk."""

import csv
import dataclasses
import math

import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from timm.utils import random_seed

import vimlearn
from vimlearn import data as vimlearn_data
from vimlearn.data import ImageSet, digits
from vimlearn.evaluate import evaluate
from vimlearn.training import Augment, Data, Network, Options, Recipe, Run, read_log, train
from vimlearn.training.networks import NOT_OF_THE_NETWORK
from vimlearn.training.options import GROUPS, known_options, read_yaml, write_yaml
from vimlearn.training.trainer import Trainer
from vimlearn.training.transforms import RandomShift

TIMINGS = ("seconds", "images_per_second")


@pytest.fixture(autouse=True)
def small_set(monkeypatch):
    """A set called `few`: 40 digits to train on, 30 held out."""
    def few():
        return tuple(ImageSet(part.images[:count], part.labels[:count], part.classes, part.index[:count])
                     for part, count in zip(digits(), (40, 30), strict=True))
    monkeypatch.setitem(vimlearn_data.DATASETS, "few", few)


def tiny(**changes) -> Options:
    """Return options for a run of well under a second; `changes` go to the group that knows them."""
    settings = {"dataset": "few", "batch_size": 16, "patch_size": 4, "stride": None, "embed_dim": 16, "depth": 2,
                "d_state": 2, "epochs": 2, "drop_path_rate": 0.2, "output": None, "quiet": True, **changes}
    homes = known_options()
    return Options(**{name: group(**{key: value for key, value in settings.items() if homes[key] == name})
                      for name, group in GROUPS.items()})


def without_timings(log):
    return [{name: value for name, value in row.items() if name not in TIMINGS} for row in log]


# The loop

def test_a_short_run_beats_chance_clearly():
    options = Options(Network(stride=None, depth=1, embed_dim=32, d_state=2), Data(batch_size=32), Augment(shift=0),
                      Recipe(epochs=1, lr=1e-2, warmup_epochs=0), Run(output=None, quiet=True))
    # Chance is 0.1; this reaches about 0.86.
    assert train(options).heldout.accuracy > 0.6


def test_same_seed_same_log_and_weights_another_seed_another():
    first, again, other = (train(tiny(seed=seed)) for seed in (3, 3, 4))
    assert without_timings(first.log) == without_timings(again.log)
    for name, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[name]), name
    assert without_timings(first.log)[0] != without_timings(other.log)[0]


def test_draws_of_others_do_not_change_order_and_shifts():
    def disturb(row):
        random_seed(row["epoch"])
    quiet = train(tiny(drop_path_rate=0.0))
    assert without_timings(train(tiny(drop_path_rate=0.0), on_epoch=disturb).log) == without_timings(quiet.log)


def test_rows_say_what_happened():
    seen = []
    result = train(tiny(epochs=3), on_epoch=seen.append)
    assert seen == result.log and [row["epoch"] for row in seen] == [1, 2, 3]
    again = evaluate(result.model, digits_few()[1])
    assert (again.accuracy, again.loss) == (seen[-1]["heldout_accuracy"], pytest.approx(seen[-1]["heldout_loss"]))
    assert result.heldout.accuracy == again.accuracy and not result.model.training


def digits_few():
    return vimlearn_data.load_dataset("few")


def test_training_loss_is_the_mean_over_images():
    """With a learning rate near 0 and no augmentation, one epoch sees one fixed network: its loss is known."""
    options = tiny(epochs=1, lr=1e-12, min_lr=0.0, warmup_lr=1e-12, warmup_epochs=0, smoothing=0.1, shift=0,
                   drop_path_rate=0.0, weight_decay=0.0, batch_size=20)
    row, training = train(options).log[0], digits_few()[0]
    model = Trainer(options).network
    by_hand = torch.nn.functional.cross_entropy(model(training.images), training.labels, label_smoothing=0.1).item()
    assert row["train_loss"] == pytest.approx(by_hand, rel=1e-5)
    assert row["train_accuracy"] == pytest.approx(evaluate(model, training).accuracy)


def test_learning_rate_warms_up_and_falls_along_a_cosine():
    rates = [row["lr"] for row in train(tiny(epochs=6, lr=1e-3, min_lr=1e-5, warmup_lr=1e-4, warmup_epochs=3)).log]
    warm = [1e-4 + i * (1e-3 - 1e-4) / 3 for i in range(3)]
    fall = [1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * i / 6)) / 2 for i in range(3, 6)]
    assert rates == pytest.approx(warm + fall, rel=1e-6)


def test_vectors_positions_and_class_token_do_not_decay():
    trainer = Trainer(tiny(weight_decay=0.3))
    decay = {id(p): group["weight_decay"] for group in trainer.optimizer.param_groups for p in group["params"]}
    for name, parameter in trainer.network.named_parameters():
        free = parameter.dim() <= 1 or name in ("pos_embed", "cls_token")
        assert decay[id(parameter)] == (0 if free else 0.3), name


def test_gradient_is_limited_on_request():
    def longest(clip):
        trainer, norms = Trainer(tiny(clip_grad=clip)), []
        step = trainer.processes.step
        trainer.processes.step = lambda: (norms.append(gradient_norm(trainer.network)), step())
        told = trainer.step([next(trainer.batches.epoch(1))], 1, 0)["grad_norm"]
        return told, *norms
    told, used = longest(None)
    assert told == pytest.approx(used) and told > 0.02
    assert longest(0.01) == (pytest.approx(told), pytest.approx(0.01, rel=1e-3))


def gradient_norm(network):
    return torch.cat([p.grad.flatten() for p in network.parameters()]).norm().item()


def test_every_network_setting_arrives():
    network = Network(patch_size=3, stride=2, embed_dim=24, depth=3, d_state=5, class_token=None, global_pool="avg",
                      norm="layer", bidirectional=False, drop_path_rate=0.25, backend="loop")
    config = Trainer(Options(network=network)).network.config
    for name, value in dataclasses.asdict(network).items():
        assert name in NOT_OF_THE_NETWORK or config[name] == value, name
    assert (config["img_size"], config["in_chans"], config["num_classes"]) == ((8, 8), 1, 10)


def test_threads_are_set_for_the_run_alone():
    before = torch.get_num_threads()
    seen = []
    for threads in (before + 1, None):
        train(tiny(epochs=1, threads=threads), on_epoch=lambda row: seen.append(torch.get_num_threads()))
    assert seen == [before + 1, before] and torch.get_num_threads() == before


# Augmentation

def test_shift_moves_whole_images_and_fills_with_paper():
    image = torch.rand(2, 5, 6) + 0.5
    stage = torch.nn.functional.pad(image, [2] * 4)
    found = set()
    random_seed(0)
    for _ in range(200):
        moved = RandomShift(2)(image)
        fits = [(y, x) for y in range(5) for x in range(5) if torch.equal(moved, stage[:, y:y + 5, x:x + 6])]
        assert len(fits) == 1
        found.update(fits)
    # All 25 shifts occur.
    assert len(found) == 25
    assert torch.equal(RandomShift(0)(image), image)


@pytest.mark.parametrize("largest", [8, -1])
def test_shift_that_hides_the_image_is_refused(largest):
    with pytest.raises(vimlearn.VimlearnError, match=f"shift is {largest}.*expected (0 to 7|at least 0)"):
        Trainer(tiny(shift=largest))


# The folder of a run

def test_run_leaves_log_options_and_weights(tmp_path):
    options = tiny(output=str(tmp_path / "deep" / "run"))
    result = train(options)
    assert result.folder == tmp_path / "deep" / "run"
    assert sorted(path.name for path in result.folder.iterdir()) == [
        "log.csv", "model.safetensors", "options.yaml", "states", "tensorboard"]
    assert read_yaml(result.folder / "options.yaml") == options
    rows = read_log(result.folder / "log.csv")
    assert [list(row) for row in rows] == [list(row) for row in result.log]
    for row, told in zip(rows, result.log, strict=True):
        assert row.pop("ema_accuracy") is None is told["ema_accuracy"]
        for name, value in row.items():
            assert value == pytest.approx(told[name], rel=1e-5, abs=0.06 if name in TIMINGS else 1e-6), name
    curves = EventAccumulator(str(result.folder / "tensorboard")).Reload().Scalars("heldout_accuracy")
    assert [(point.step, point.value) for point in curves] == [
        (row["epoch"], pytest.approx(row["heldout_accuracy"])) for row in result.log]
    restored = vimlearn.checkpoint.load_model(result.folder / "model.safetensors")
    assert torch.equal(evaluate(restored, digits_few()[1]).logits, result.heldout.logits)


def test_crash_keeps_the_rows_and_weights_so_far(tmp_path):
    def crash(row):
        if row["epoch"] == 2:
            raise RuntimeError("power cut")
    with pytest.raises(RuntimeError, match="power cut"):
        train(tiny(epochs=4, output=str(tmp_path / "run")), on_epoch=crash)
    assert [row["epoch"] for row in read_log(tmp_path / "run" / "log.csv")] == [1, 2]
    assert (tmp_path / "run" / "model.safetensors").is_file()


def test_an_earlier_run_is_never_overwritten(tmp_path):
    options = tiny(epochs=1, output=str(tmp_path))
    train(options)
    before = contents(tmp_path)
    with pytest.raises(vimlearn.VimlearnError, match=r"already holds a run .* choose another --output"):
        train(options)
    assert contents(tmp_path) == before


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_output_auto_takes_the_next_free_number(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert [train(tiny(epochs=1, output="auto")).folder.as_posix() for _ in range(2)] == ["runs/few-1", "runs/few-2"]


def test_output_none_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert train(tiny(epochs=1)).folder is None
    assert not list(tmp_path.iterdir())


def test_output_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(vimlearn.VimlearnError, match=r"cannot write the run to .*file.*choose another --output"):
        train(tiny(output=str(tmp_path / "file" / "run")))
    assert (tmp_path / "file").read_text() == "mine"


def test_log_that_cannot_grow_stops_the_run(tmp_path):
    def remove(row):
        (tmp_path / "log.csv").unlink()
        (tmp_path / "log.csv").mkdir()
    with pytest.raises(vimlearn.VimlearnError, match=r"cannot write .*log.csv.*holds epoch 1"):
        train(tiny(output=str(tmp_path)), on_epoch=remove)


@pytest.mark.parametrize("text", ["epoch,lr\n1,2\n", "epoch,lr,train_loss\n1,x,\n"])
def test_file_that_is_no_log_is_refused(tmp_path, text):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(vimlearn.VimlearnError, match="is no log of a run"):
        read_log(tmp_path / "log.csv")
    with pytest.raises(vimlearn.VimlearnError, match="cannot read"):
        read_log(tmp_path / "missing.csv")


# Options

def test_each_option_has_one_group_and_a_text():
    names = [option.name for group in GROUPS.values() for option in dataclasses.fields(group)]
    assert len(names) == len(set(names)) == len(known_options())
    assert [option.name for option in dataclasses.fields(Options)] == list(GROUPS)


@pytest.mark.parametrize("options", [
    Options(), Options(Network(stride=1, class_token=None, global_pool="avg"), augment=Augment(shift=0),
                       recipe=Recipe(clip_grad=1.0), run=Run(output=None, seed=7))])
def test_file_gives_back_what_was_written(tmp_path, options):
    write_yaml(options, tmp_path / "options.yaml")
    assert read_yaml(tmp_path / "options.yaml") == options
    assert list(yaml.safe_load((tmp_path / "options.yaml").read_text())) == list(GROUPS)


def test_file_may_leave_out_and_write_numbers_plainly(tmp_path):
    (tmp_path / "o.yaml").write_text("recipe:\n  lr: 1e-3\n  weight_decay: 1\n  clip_grad:\n")
    assert read_yaml(tmp_path / "o.yaml") == Options(recipe=Recipe(lr=1e-3, weight_decay=1.0, clip_grad=None))


@pytest.mark.parametrize("text, message", [
    ("recipe:\n  learning_rate: 1\n", "unknown key 'learning_rate' under recipe; expected one of epochs, lr"),
    ("recipe:\n  epoch: 1\n", "unknown key 'epoch' under recipe, did you mean 'epochs'"),
    ("recipes:\n  epochs: 1\n", "unknown key 'recipes', did you mean 'recipe'"),
    ("lr: 0.1\n", "unknown key 'lr'; it belongs under 'recipe:'"),
    ("network:\n  lr: 0.1\n", "unknown key 'lr' under network; it belongs under 'recipe:'"),
    ("recipe:\n  epochs: many\n", "recipe.epochs is 'many', text; expected int"),
    ("recipe:\n  epochs: 1.5\n", "recipe.epochs is 1.5, one float; expected int"),
    ("recipe:\n  epochs: true\n", "recipe.epochs is True, true or false; expected int"),
    ("recipe:\n  lr: true\n", "recipe.lr is True, true or false; expected float"),
    ("recipe:\n  lr: [1]\n", r"recipe.lr is \[1\], a list; expected float"),
    ("recipe:\n  lr:\n", "recipe.lr is None, nothing; expected float"),
    ("recipe:\n  clip_grad: much\n", "recipe.clip_grad is 'much', text; expected float, null"),
    ("network:\n  bidirectional: 1\n", "network.bidirectional is 1, one int; expected bool"),
    ("network:\n  class_token: last\n", "network.class_token is 'last', text; expected middle, first, null"),
    ("data:\n  dataset: 3\n", "data.dataset is 3, one int; expected str"),
    ("recipe:\n  lr: .nan\n", "lr is nan; expected a finite number"),
    ("recipe: 3\n", "recipe holds one int; expected a mapping of options"),
    ("- recipe\n", "holds a list; expected a mapping with the keys network, data, augment, recipe, run"),
    ("", "holds nothing; expected a mapping"),
    ("recipe: {epochs: 1\n", "is no plain YAML"),
    ("recipe: !!python/object/apply:os.system ['touch owned']\n", "is no plain YAML"),
])
def test_bad_file_is_refused(tmp_path, monkeypatch, text, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(text)
    with pytest.raises(vimlearn.VimlearnError, match=message) as caught:
        read_yaml("bad.yaml")
    assert "bad.yaml" in str(caught.value) or "nan" in text
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "owned").exists()


def test_missing_and_unreadable_files_are_refused(tmp_path):
    with pytest.raises(vimlearn.VimlearnError, match=r"cannot read .*expected a YAML file"):
        read_yaml(tmp_path / "missing.yaml")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(vimlearn.VimlearnError, match="no text in UTF-8"):
        read_yaml(tmp_path / "bytes.yaml")


@pytest.mark.parametrize("group, changes, message", [
    (Recipe, {"epochs": 0}, "epochs is 0; expected at least 1"),
    (Recipe, {"epochs": "3"}, "epochs is '3', text; expected int"),
    (Recipe, {"lr": "1e-3"}, "lr is '1e-3', text; expected a number"),
    (Recipe, {"lr": 0.0}, "lr is 0.0; expected more than 0"),
    (Recipe, {"lr": math.inf}, "lr is inf; expected a finite number"),
    (Recipe, {"smoothing": 1.0}, "smoothing is 1.0; expected less than 1"),
    (Recipe, {"clip_grad": 0.0}, "clip_grad is 0.0; expected more than 0"),
    (Data, {"batch_size": 0}, "batch_size is 0; expected at least 1"),
    (Run, {"seed": -1}, "seed is -1; expected at least 0"),
    (Run, {"seed": 2**32}, "seed is 4294967296; expected less than 4294967296"),
    (Run, {"device": "gpu"}, "device is 'gpu', text; expected auto, cpu, cuda"),
    (Network, {"class_token": "midle"}, "class_token is 'midle', text; expected middle, first, null"),
])
def test_values_that_make_no_sense_are_refused(group, changes, message):
    name = next(name for name, known in GROUPS.items() if known is group)
    with pytest.raises(vimlearn.VimlearnError, match=message):
        Options(**{name: group(**changes)})


def test_group_of_the_wrong_kind_is_refused():
    with pytest.raises(vimlearn.VimlearnError, match=r"recipe is a mapping; expected Recipe\(...\)"):
        Options(recipe={"lr": 1})


@pytest.mark.parametrize("changes, message", [
    ({"model": "vin"}, "unknown model 'vin', did you mean 'vim'"),
    ({"dataset": "fw"}, "unknown dataset 'fw', did you mean 'few'"),
    ({"patch_size": 9}, "img_size .* is smaller than one patch of 9"),
    ({"class_token": None}, "expected global_pool='avg'"),
    ({"backend": "paralel"}, "unknown backend 'paralel', did you mean 'parallel'"),
    ({"drop_path_rate": 1.0}, "drop_path_rate is 1.0"),
])
def test_network_or_data_that_do_not_fit_leave_no_folder(tmp_path, changes, message):
    with pytest.raises(vimlearn.VimlearnError, match=message):
        train(tiny(output=str(tmp_path / "run"), **changes))
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_missing_gpu_is_said():
    with pytest.raises(vimlearn.VimlearnError, match="device is cuda and PyTorch sees no GPU"):
        train(tiny(device="cuda"))


def test_log_is_plain_csv(tmp_path):
    train(tiny(epochs=1, output=str(tmp_path)))
    rows = list(csv.reader((tmp_path / "log.csv").open(newline="")))
    assert rows[0] == ["epoch", "lr", "train_loss", "train_accuracy", "grad_norm", "heldout_loss", "heldout_accuracy",
                       "ema_accuracy", "skipped", "unreadable", "seconds", "images_per_second"]
    assert len(rows) == 2 and rows[1][0] == "1"
