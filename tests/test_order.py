"""Which images make up a batch, and where random numbers come from."""

import random

import numpy as np
import pytest
import torch

import vimlearn
from vimlearn.training import draws
from vimlearn.training.draws import IMAGE, MODEL, ORDER, STEP, draw_from, place_seed
from vimlearn.training.order import Order


def batches(length, batch_size, epoch=1, first=0, processes=1, parts=1, **settings):
    """Return the set of (position, image) of each step, over all processes and parts."""
    orders = [Order(length, batch_size, rank=rank, processes=processes, parts=parts, **settings)
              for rank in range(processes)]
    steps = []
    for order in orders:
        order.start(epoch, first)
        own = list(order)
        assert len(own) == len(order) and all(len(part) == batch_size // processes // parts for part in own)
        steps.append([[place for part in own[i:i + parts] for place in part] for i in range(0, len(own), parts)])
    dealt = [[place for part in step for place in part] for step in zip(*steps, strict=True)]
    assert all(len({place.position for place in step}) == batch_size for step in dealt)
    return [{(place.position, place.index) for place in step} for step in dealt]


@pytest.mark.parametrize("repeats", [1, 3])
@pytest.mark.parametrize("processes, parts", [(1, 2), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_batches_are_the_same_sets_however_they_are_dealt(processes, parts, repeats):
    one = batches(600, 8, epoch=2, seed=5, repeats=repeats)
    assert batches(600, 8, epoch=2, seed=5, repeats=repeats, processes=processes, parts=parts) == one


def test_each_image_occurs_once_an_epoch():
    seen = [image for step in batches(96, 8) for _, image in step]
    assert sorted(seen) == list(range(96))
    # Less than a batch is left out.
    assert len(batches(101, 8)) == 12 and len({image for step in batches(101, 8) for _, image in step}) == 96


def test_repeats_bring_an_image_back_in_the_same_epoch():
    seen = [image for step in batches(768, 8, repeats=3) for _, image in step]
    counts = np.bincount(seen, minlength=768)
    assert len(seen) == 768 and set(counts) == {0, 3} and (counts == 3).sum() == 256


@pytest.mark.parametrize("repeats", [1, 3])
def test_epochs_and_seeds_differ_and_come_back(repeats):
    def of(epoch, seed):
        return batches(512, 8, epoch=epoch, seed=seed, repeats=repeats)
    places = [(1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]
    orders = [of(*place) for place in places]
    assert all(one != other for i, one in enumerate(orders) for other in orders[:i])
    assert [of(*place) for place in places] == orders


def test_an_epoch_can_be_entered_at_any_step():
    whole = batches(96, 8, epoch=3)
    for first in (0, 1, 7, 12):
        assert batches(96, 8, epoch=3, first=first) == whole[first:]


@pytest.mark.parametrize("settings, message", [
    ({"batch_size": 10, "processes": 4}, "batch_size is 10, which 4 processes with 1 parts .* multiple of 4"),
    ({"batch_size": 12, "processes": 2, "parts": 4}, "multiple of 8"),
    ({"batch_size": 97}, "96 images to train on and batch_size is 97; expected at most 96"),
])
def test_what_cannot_be_dealt_is_refused(settings, message):
    with pytest.raises(vimlearn.VimlearnError, match=message):
        Order(96, **settings)


# Draws

def drawn():
    return (torch.rand(4).tolist(), np.random.rand(4).tolist(), [random.random() for _ in range(4)])  # noqa: NPY002


def test_a_place_draws_the_same_whatever_came_before():
    draw_from(1, IMAGE, 2, 3)
    first = drawn()
    for disturb in (lambda: None, lambda: torch.manual_seed(5), lambda: drawn(), lambda: draw_from(9, STEP, 1)):
        disturb()
        draw_from(1, IMAGE, 2, 3)
        assert drawn() == first


def test_places_draw_differently():
    places = [(seed, IMAGE, epoch, position) for seed in (0, 1) for epoch in (1, 2) for position in range(300)]
    places += [(seed, STEP, epoch, step, part) for seed in (0, 1) for epoch in (1, 2) for step in range(150)
               for part in (0, 1)]
    places += [(seed, ORDER, epoch) for seed in (0, 1) for epoch in (1, 2)] + [(0, MODEL), (1, MODEL)]
    assert len({place_seed(*place) for place in places}) == len(places)
    assert len({IMAGE, STEP, ORDER, MODEL}) == 4
    found = set()
    for place in places[::40]:
        draw_from(*place)
        found.update(map(str, drawn()))
    assert len(found) == 3 * len(places[::40])


def test_draws_are_those_of_the_global_seeds():
    draw_from(3, STEP, 1, 2, 0)
    ours, state = drawn(), torch.get_rng_state()
    number = place_seed(3, STEP, 1, 2, 0)
    torch.manual_seed(number)
    np.random.seed(number)  # noqa: NPY002
    random.seed(number)
    assert drawn() == ours and torch.equal(torch.get_rng_state(), state)


def test_gpus_in_use_are_seeded_as_well(monkeypatch):
    seeded = []
    monkeypatch.setattr(draws.torch.cuda, "manual_seed_all", seeded.append)
    for used in (False, True):
        monkeypatch.setattr(draws.torch.cuda, "is_initialized", lambda used=used: used)
        draw_from(3, STEP, 1)
    assert seeded == [place_seed(3, STEP, 1)]
