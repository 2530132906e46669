"""The recipes against the published ones: schedule, decay, images, mixing and order, each worked out here anew."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from drawn_images import make_tree
from PIL import Image
from timm.data.distributed_sampler import RepeatAugSampler

from vimlearn import cli
from vimlearn.training import Augment, Data, Network, Options, Run, read_log
from vimlearn.training.networks import build
from vimlearn.training.options import find_recipe, read_yaml, recipe_names
from vimlearn.training.order import Order
from vimlearn.training.trainer import Trainer
from vimlearn.training.transforms import evaluation_transform, mixer_of_images, training_transform

# name: width, stride, drop path, batch, highest learning rate, weight decay, epochs, parameters
PUBLISHED = {
    "vim_tiny_imagenet": (192, 16, 0.0, 1024, 1e-3, 0.1, 300, 7_148_008),
    "vim_small_imagenet": (384, 16, 0.05, 512, 1e-3, 0.05, 300, 25_796_584),
    "vim_base_imagenet": (768, 16, 0.05, 1024, 1e-3, 0.05, 300, 97_598_440),
    "vim_tiny_stride8_finetune": (192, 8, 0.0, 1024, 1e-5, 1e-8, 30, 7_250_344),
    "vim_small_stride8_finetune": (384, 8, 0.0, 1024, 1e-5, 1e-8, 30, 26_001_256),
    "deit_tiny_imagenet": (192, None, 0.1, 1024, 1e-3, 0.05, 300, 5_717_416),
}
PRETRAINED = [name for name in PUBLISHED if name.endswith("_imagenet")]
FINETUNED = [name for name in PUBLISHED if name.endswith("_finetune")]
VIM = [name for name in PUBLISHED if name.startswith("vim")]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
IMAGENET = 1_281_167


def recipe(name: str) -> Options:
    return read_yaml(find_recipe(name))


def small(name: str, network: Network | None = None) -> Trainer:
    """Return the trainer of a recipe, with its batch size, on the digits and a small network."""
    options = recipe(name)
    network = network or Network(stride=None, depth=1, embed_dim=16, d_state=2)
    return Trainer(Options(network, Data(batch_size=options.data.batch_size),
                           Augment(shift=0, mixup=options.augment.mixup, cutmix=options.augment.cutmix),
                           options.recipe, Run(output=None, quiet=True)))


def test_every_recipe_is_there():
    assert set(PUBLISHED) <= set(recipe_names())


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_differ_between_recipes(name):
    options, (width, stride, drop_path, batch, peak, decay, epochs, parameters) = recipe(name), PUBLISHED[name]
    network, training = options.network, options.recipe
    assert (network.embed_dim, network.stride, network.drop_path_rate) == (width, stride, drop_path)
    assert (options.data.batch_size, training.weight_decay, training.epochs) == (batch, decay, epochs)
    assert training.lr * batch / training.lr_batch == pytest.approx(peak, rel=1e-12) and training.lr_batch == 512
    with torch.device("meta"):
        model = build(replace(network, weights=None), (224, 224), 3, 1000)
    assert sum(p.numel() for p in model.parameters()) == parameters


@pytest.mark.parametrize("name", PUBLISHED)
def test_settings_that_all_recipes_share(name):
    options = recipe(name)
    augment, training, data = options.augment, options.recipe, options.data
    assert (training.precision, training.clip_grad, training.accumulate) == ("float32", None, 1)
    assert (data.num_classes, data.img_size, data.crop_pct, options.run.seed) == (1000, 224, 0.875, 0)
    assert (augment.repeats, augment.shift, training.ema, training.smoothing) == (3, 0, 0.99996, 0.1)


@pytest.mark.parametrize("name", VIM)
def test_networks_are_those_that_are_released(name):
    options = recipe(name)
    with torch.device("meta"):
        config = build(replace(options.network, weights=None), (224, 224), 3, 1000).config
    expected = {"patch_size": 16, "depth": 24, "d_state": 16, "norm": "rms", "class_token": "middle",
                "global_pool": "token", "bidirectional": True, "halve_directions": True}
    assert {key: config[key] for key in expected} == expected


@pytest.mark.parametrize("name, start", [
    ("vim_tiny_stride8_finetune", "hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"),
    ("vim_small_stride8_finetune", "hustvl/Vim-small-midclstok/vim_s_midclstok_80p5acc.pth")])
def test_fine_tuning_starts_from_the_published_network_of_stride_16(name, start, monkeypatch):
    seen = {}
    monkeypatch.setattr("vimlearn.training.networks.load_checkpoint",
                        lambda model, source, **settings: seen.update(settings, source=source))
    for rule in ("grid", "published"):
        network = replace(recipe(name).network, depth=1, position_rule=rule)
        build(network, (224, 224), 3, 1000)
        assert seen == {"source": f"hub:{start}", "reset_head": True, "position_rule": rule}
    assert recipe(name).network.position_rule == "grid"


# The learning rate. An epoch e is counted from 0, as the published trainer does.

def published_rate(e: int, epochs: int = 300) -> float:
    """The schedule is moved after epoch e to place e, so epoch e >= 1 learns at the rate of place e - 1."""
    place = max(e - 1, 0)
    if place < 5:
        return 1e-6 + place * (1e-3 - 1e-6) / 5
    return 1e-5 + (1e-3 - 1e-5) * (1 + math.cos(math.pi * place / epochs)) / 2


def test_the_rate_worked_out_here_is_the_one_in_the_reference():
    """Digits as stated for the published trainer."""
    stated = {0: "1e-06", 1: "1e-06", 2: "0.0002008", 3: "0.0004006", 4: "0.0006004", 5: "0.0008002",
              6: "0.0009993", 150: "0.00051", 299: "1.01e-05"}
    for e, text in stated.items():
        digits_stated = len(text.split("e")[0].replace(".", "").lstrip("0"))
        assert format(published_rate(e), f".{digits_stated}g") == text, e


@pytest.mark.parametrize("name", PRETRAINED)
def test_learning_rate_of_every_epoch(name):
    trainer = small(name)
    rates = [trainer.learning_rate(e + 1) for e in range(300)]
    assert rates == pytest.approx([published_rate(e) for e in range(300)], rel=1e-9)
    assert all(group["lr"] == rates[-1] for group in trainer.optimizer.param_groups)


@pytest.mark.parametrize("name", FINETUNED)
def test_learning_rate_of_fine_tuning_is_constant(name):
    trainer = small(name)
    assert [trainer.learning_rate(e + 1) for e in range(30)] == pytest.approx([1e-5] * 30, rel=1e-9)


# Optimiser, moving average

MIXER = ("A_log", "A_b_log", "in_proj.weight", "conv1d.weight", "conv1d_b.weight", "x_proj.weight", "x_proj_b.weight",
         "dt_proj.weight", "dt_proj_b.weight", "out_proj.weight")
DECAYED = {"patch_embed.proj.weight", "head.weight", *(f"layers.{i}.mixer.{name}" for i in (0, 1) for name in MIXER)}


@pytest.mark.parametrize("name", VIM)
def test_what_decays(name):
    """All matrices and convolutions, and with them A_log and A_b_log; the two networks' other tensors do not."""
    trainer = small(name, replace(recipe(name).network, patch_size=4, stride=2, depth=2, weights=None))
    names = {id(parameter): key for key, parameter in trainer.network.named_parameters()}
    groups = {group["weight_decay"]: {names[id(parameter)] for parameter in group["params"]}
              for group in trainer.optimizer.param_groups}
    assert groups.keys() == {0.0, PUBLISHED[name][5]}
    assert groups[PUBLISHED[name][5]] == DECAYED
    assert groups[0.0] == set(names.values()) - DECAYED and len(groups[0.0]) == 5 + 2 * 7
    assert {"cls_token", "pos_embed", "layers.0.mixer.D", "layers.0.mixer.dt_proj.bias"} <= groups[0.0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_optimiser_is_adamw_with_its_usual_settings(name):
    optimizer = small(name).optimizer
    assert type(getattr(optimizer, "optimizer", optimizer)) is torch.optim.AdamW
    for group in optimizer.param_groups:
        assert (group["betas"], group["eps"], group["amsgrad"]) == ((0.9, 0.999), 1e-8, False)


@pytest.mark.parametrize("name", PUBLISHED)
def test_moving_average_moves_by_its_share_from_the_first_step(name):
    trainer = small(name)
    before = {key: value.double() for key, value in trainer.average.module.state_dict().items()}
    with torch.no_grad():
        for parameter in trainer.network.parameters():
            parameter.add_(100)
    trainer.average.update(trainer.network)
    for key, value in trainer.average.module.state_dict().items():
        torch.testing.assert_close(value.double() - before[key], torch.full_like(before[key], 4e-3), rtol=1e-3, atol=0)


# Training images

@pytest.mark.parametrize("name", PUBLISHED)
def test_training_transform_step_by_step(name):
    part, mirror, changes, to_tensor, normalise, erase = training_transform(recipe(name).augment, 224).transforms
    assert [type(step).__name__ for step in (part, mirror, changes, to_tensor, normalise, erase)] == [
        "RandomResizedCropAndInterpolation", "RandomHorizontalFlip", "RandAugment", "MaybeToTensor", "Normalize",
        "RandomErasing"]
    assert (part.size, part.scale) == ((224, 224), (0.08, 1.0)) and part.ratio == pytest.approx((3 / 4, 4 / 3))
    assert str(part.interpolation).rpartition(".")[2].lower() == "bicubic" and mirror.p == 0.5
    assert normalise.mean.tolist() == pytest.approx(MEAN) and normalise.std.tolist() == pytest.approx(STD)
    assert (erase.probability, erase.per_pixel, erase.rand_color) == (0.25, True, False)
    assert (erase.min_count, erase.max_count, erase.min_area) == (1, 1, 0.02)
    # 33 % in the published trainer's library, a third
    assert erase.max_area == pytest.approx(1 / 3)
    assert [math.exp(x) for x in erase.log_aspect_ratio] == pytest.approx([0.3, 1 / 0.3])


OPS = ["AutoContrast", "Equalize", "Invert", "Rotate", "PosterizeIncreasing", "SolarizeIncreasing", "SolarizeAdd",
       "ColorIncreasing", "ContrastIncreasing", "BrightnessIncreasing", "SharpnessIncreasing", "ShearX", "ShearY",
       "TranslateXRel", "TranslateYRel"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_random_changes(name):
    changes = training_transform(recipe(name).augment, 224).transforms[2]
    # None: drawn with replacement, all alike
    assert (changes.num_layers, changes.choice_weights) == (2, None)
    assert [op.name for op in changes.ops] == OPS and len(OPS) == 15
    for op in changes.ops:
        assert (op.prob, op.magnitude, op.magnitude_std, op.magnitude_max) == (0.5, 9, 0.5, None), op.name
        assert op.kwargs == {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}, op.name


@pytest.mark.parametrize("name", PUBLISHED)
def test_mixing(name):
    """One share for a batch; the partner of an image is that from the other end; 0.1 / 1000 for each other class."""
    mix = mixer_of_images(recipe(name), 1000, 128)
    assert (mix.mixup_alpha, mix.cutmix_alpha, mix.mix_prob, mix.switch_prob) == (0.8, 1.0, 1.0, 0.5)
    assert (mix.mode, mix.correct_lam, mix.cutmix_minmax, mix.num_classes) == ("batch", True, None, 1000)
    images, labels, kinds = torch.rand(8, 3, 32, 32), torch.arange(8), []
    # Mixup draws from NumPy's global generator.
    np.random.seed(0)  # noqa: NPY002
    for _ in range(40):
        mixed, targets = mix(images.clone(), labels)
        own = (targets[0, 0].item() - 1e-4) / 0.9
        expected = torch.full((8, 1000), 1e-4)
        for i in range(8):
            expected[i, i] += 0.9 * own
            expected[i, 7 - i] += 0.9 * (1 - own)
        torch.testing.assert_close(targets, expected, rtol=1e-4, atol=1e-6)
        is_blend = torch.allclose(mixed, own * images + (1 - own) * images.flip(0), atol=1e-4)
        kinds.append(is_blend)
        if not is_blend:
            # The share is that of the area that was not replaced.
            assert (mixed == images).all(1).double().mean().item() == pytest.approx(own, abs=1e-4)
    assert 10 < sum(kinds) < 30


# Held-out images

@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("size", [(500, 300), (300, 500), (100, 100)], ids=["wide", "high", "small"])
def test_evaluation_transform_by_hand(name, size):
    """Shorter side to 256 by PIL's bicubic, the longer one in proportion, rounded down; the centre of 224."""
    data = recipe(name).data
    image = smooth_picture(*size)
    short = min(size)
    width, height = (256 * side // short for side in size)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    centre = image.resize((width, height), Image.Resampling.BICUBIC).crop((left, top, left + 224, top + 224))
    expected = (np.asarray(centre) / 255 - MEAN) / STD
    found = evaluation_transform(data.img_size, data.crop_pct)(image)
    assert found.shape == (3, 224, 224) and found.dtype == torch.float32
    np.testing.assert_allclose(found.permute(1, 2, 0).numpy(), expected, rtol=1e-5, atol=1e-5)


def smooth_picture(width: int, height: int) -> Image.Image:
    """A picture in which no two columns and no two rows are alike."""
    x, y = np.meshgrid(np.linspace(0, 1, width), np.linspace(0, 1, height))
    colours = np.stack([x, y, (np.sin(9 * x) * np.cos(7 * y) + 1) / 2], axis=-1)
    return Image.fromarray((colours * 255).astype(np.uint8))


# Repeated augmentation

@pytest.mark.parametrize("name", PUBLISHED)
def test_steps_of_an_epoch_of_imagenet(name):
    """floor(1,281,167 / 256) * 256 places: 1,251 steps of 1,024 or 2,502 of 512, on one process and on eight."""
    options = recipe(name)
    for processes in (1, 8):
        order = Order(IMAGENET, options.data.batch_size, options.run.seed, processes=processes, rank=processes - 1,
                      repeats=options.augment.repeats)
        assert order.steps == (1251 if options.data.batch_size == 1024 else 2502)
        assert len(order) == order.steps and order.part_size == options.data.batch_size // processes


def test_order_of_imagenet_is_the_published_one():
    """Seed 0, epoch 3 from 0: images shuffled by the epoch alone, each three times in a row of places, about a third of
    them, and dealt in turn to eight processes.
    """
    epoch, batch = 3, 1024
    images = Order(IMAGENET, batch, repeats=3).images(epoch + 1)
    shuffled = torch.randperm(IMAGENET, generator=torch.Generator().manual_seed(epoch)).tolist()
    assert len(images) == 1251 * batch
    assert images == [shuffled[i // 3] for i in range(1251 * batch)]
    assert len(set(images)) == 1251 * batch // 3
    sampler = RepeatAugSampler(range(IMAGENET), num_replicas=8, rank=5)
    sampler.set_epoch(epoch)
    order = Order(IMAGENET, batch, repeats=3, rank=5, processes=8)
    order.start(epoch + 1)
    assert [place.index for part in order for place in part] == list(sampler)


def test_all_processes_take_what_the_published_sampler_gives_them():
    for rank in range(4):
        sampler = RepeatAugSampler(range(2000), num_replicas=4, rank=rank)
        for epoch in range(3):
            sampler.set_epoch(epoch)
            order = Order(2000, 256, repeats=3, rank=rank, processes=4)
            order.start(epoch + 1)
            assert [place.index for part in order for place in part] == list(sampler)


def test_another_seed_gives_another_order():
    first, other = (Order(2000, 256, seed, repeats=3).images(1) for seed in (0, 1))
    assert first != other


# All together

@pytest.mark.parametrize("name", ["vim_tiny_imagenet", "deit_tiny_imagenet"])
def test_a_recipe_runs_from_the_command_line(name, tmp_path, capsys):
    """With fewer images, classes and blocks; everything else is as it stands."""
    tree = make_tree(tmp_path / "tree", training=4, heldout=2)
    args = {"dataset": tree, "num-classes": 3, "img-size": 32, "batch-size": 4, "workers": 0, "epochs": 2, "depth": 1,
            "embed-dim": 64, "output": tmp_path / "run", "device": "cpu"}
    assert cli.main(["train", "--config", name, "--quiet", *(str(x) for k, v in args.items() for x in (f"--{k}", v))]) \
        == 0, capsys.readouterr().err
    rows = read_log(tmp_path / "run" / "log.csv")
    assert [row["lr"] for row in rows] == [1e-6, 1e-6] and all(row["ema_accuracy"] is not None for row in rows)
    assert (tmp_path / "run" / "ema.safetensors").is_file()
