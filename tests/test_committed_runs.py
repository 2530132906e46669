"""The committed runs were made by the committed recipes, and the texts quote them rightly."""

import dataclasses
from pathlib import Path

import pytest

from vimlearn.checkpoint import read_notes
from vimlearn.download import fetch
from vimlearn.training import Options, Run, read_log
from vimlearn.training.networks import build
from vimlearn.training.options import find_recipe, read_yaml

ROOT = Path(__file__).parents[1]
RUNS = ROOT / "data" / "runs"
TEXT = (RUNS / "README.md").read_text(encoding="utf-8")
NAMES = {"vim": "Vim", "deit": "DeiT"}
CIFAR10 = sorted(path.stem for path in RUNS.glob("cifar10-*-seed?.csv"))


def last_accuracy(name: str, epochs: int) -> float:
    rows = read_log(RUNS / f"{name}.csv")
    assert [row["epoch"] for row in rows] == list(range(1, epochs + 1))
    assert all(row["skipped"] == row["unreadable"] == 0 for row in rows)
    return rows[-1]["heldout_accuracy"]


@pytest.mark.parametrize("seed", range(3))
def test_the_digits_are_the_default_run(seed):
    options = read_yaml(RUNS / f"digits-seed{seed}.yaml")
    assert dataclasses.replace(options, run=Run()) == Options() and options.run.seed == seed
    accuracy = last_accuracy(f"digits-seed{seed}", options.recipe.epochs)
    assert accuracy >= 0.97
    assert f"| {seed} | {100 * accuracy:.2f} % ({round(accuracy * 599)}) |" in TEXT


ABLATION = {"both": {}, "forward": {"bidirectional": False}, "first": {"class_token": "first"},
            "none": {"class_token": None, "global_pool": "avg"}}


@pytest.mark.parametrize("name", ABLATION)
def test_the_ablation_changes_one_choice_of_the_default_run(name):
    found = []
    for seed in range(3):
        options, expected = read_yaml(RUNS / f"digits-{name}-seed{seed}.yaml"), Options()
        network = dataclasses.replace(expected.network, **ABLATION[name])
        assert dataclasses.replace(options, run=Run()) == dataclasses.replace(expected, network=network)
        assert options.run.seed == seed
        found.append(last_accuracy(f"digits-{name}-seed{seed}", expected.recipe.epochs))
    numbers = ", ".join(f"{100 * one:.2f} %" for one in found)
    assert f"{numbers} | {100 * sum(found) / 3:.2f} % | digits-{name}-seed*.csv |" in TEXT


def cifar10_options(model: str) -> Options:
    recipe = read_yaml(find_recipe("cifar10"))
    changes = {"model": "deit", "depth": 4} if model == "deit" else {}
    return dataclasses.replace(recipe, network=dataclasses.replace(recipe.network, **changes))


@pytest.mark.parametrize("name", ABLATION)
def test_the_ablation_on_cifar10_changes_one_choice_of_a_smaller_network(name):
    options, expected = read_yaml(RUNS / f"ablation-{name}-seed0.yaml"), read_yaml(find_recipe("cifar10"))
    network = dataclasses.replace(expected.network, depth=2, embed_dim=64, **ABLATION[name])
    assert dataclasses.replace(options, run=Run()) == dataclasses.replace(expected, network=network, run=Run())
    assert options.run.seed == 0
    accuracy = last_accuracy(f"ablation-{name}-seed0", expected.recipe.epochs)
    assert f"| {100 * accuracy:.2f} % | [ablation-{name}-seed0.csv](ablation-{name}-seed0.csv) |" in TEXT


@pytest.mark.parametrize("name", CIFAR10)
def test_cifar10_is_the_recipe(name):
    _, model, seed = name.split("-")
    options, expected = read_yaml(RUNS / f"{name}.yaml"), cifar10_options(model)
    assert dataclasses.replace(options, run=Run()) == dataclasses.replace(expected, run=Run())
    assert f"seed{options.run.seed}" == seed
    accuracy = last_accuracy(name, expected.recipe.epochs)
    assert accuracy >= (0.70 if model == "vim" else 0.60)
    row = f"| {NAMES[model]} | {seed[4:]} | {100 * accuracy:.2f} % ({round(accuracy * 10_000):,}) | [{name}.csv]"
    assert row in TEXT


@pytest.mark.parametrize("model, count", [("vim", "443,530"), ("deit", "459,562")])
def test_the_two_networks_have_about_as_many_parameters(model, count):
    network = build(cifar10_options(model).network, img_size=(32, 32), in_chans=3, num_classes=10)
    assert f"{sum(p.numel() for p in network.parameters()):,}" == count
    assert count in TEXT


def test_the_shipped_network_is_the_first_run_and_its_card_says_so():
    options, notes = cifar10_options("vim"), read_notes(fetch("shipped:cifar10"))
    assert (notes["epoch"], notes["weights"], notes["dataset"]) == ("10", "raw", options.data.dataset)
    accuracy = last_accuracy("cifar10-vim-seed0", options.recipe.epochs)
    card = (ROOT / "data" / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy | {100 * accuracy:.2f} % of the 10,000 test images ({round(accuracy * 10_000):,}) |" in card
    assert "443,530" in card


def test_the_scenes_are_the_recipe_and_their_network_comes_along():
    options, expected = read_yaml(RUNS / "scenes-seed0.yaml"), read_yaml(find_recipe("scenes"))
    assert dataclasses.replace(options, run=Run()) == dataclasses.replace(expected, run=Run())
    assert options.run.seed == 0
    accuracy = last_accuracy("scenes-seed0", expected.recipe.epochs)
    found = f"{100 * accuracy:.2f} %"
    assert f"| 0 | {found} ({round(2000 * accuracy)}) | [scenes-seed0.csv]" in TEXT
    card = (ROOT / "data" / "checkpoints" / "README.md").read_text(encoding="utf-8")
    assert f"| accuracy | {found} of 2,000 scenes held out ({round(2000 * accuracy)}) |" in card
    notes = read_notes(fetch("shipped:scenes"))
    assert (notes["epoch"], notes["weights"], notes["dataset"]) == (str(expected.recipe.epochs), "raw", "scenes")
