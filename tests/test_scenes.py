"""Drawn scenes: what is said of a picture is what is in it, at every size, and the same each time."""

import functools
import hashlib

import pytest
import torch
from drawn_images import options

import vimlearn
from vimlearn import VimlearnError
from vimlearn.benchmark.masked_images import scene_images
from vimlearn.scenes import CLASSES, PARTS, Scene, SceneDataset, draw_scene
from vimlearn.shapes import SHAPES, cover
from vimlearn.sources import open_source
from vimlearn.training import train

SIZES = (32, 64, 77, 256)
MAIN_PIXELS = [810, 1001, 284, 496, 701, 488, 512, 244]


@functools.cache
def drawn(index: int, size: int) -> Scene:
    return draw_scene(index, size)


def some(size: int, count: int) -> list[Scene]:
    return [drawn(index, size) for index in range(count)]


@pytest.mark.parametrize("size", SIZES)
def test_boxes_enclose_the_masks_and_nothing_more(size):
    for scene in some(size, 16):
        assert scene.image.shape == (3, size, size) and scene.image.dtype == torch.uint8
        for mask, box in zip(scene.masks, scene.boxes, strict=True):
            x0, y0, x1, y1 = box.int().tolist()
            assert 0 <= x0 < x1 <= size and 0 <= y0 < y1 <= size
            assert mask.sum() == mask[y0:y1, x0:x1].sum()
            assert mask[y0:y1, [x0, x1 - 1]].any(0).all() and mask[[y0, y1 - 1], x0:x1].any(1).all()


@pytest.mark.parametrize("size", (32, 64))
def test_every_object_is_seen_and_no_pixel_is_in_two(size):
    for scene in some(size, 100):
        assert scene.masks.flatten(1).sum(1).min() >= 0.0035 * size**2
        assert scene.masks.sum(0).max() == 1
        assert 1 <= len(scene.labels) == len(scene.masks) == len(scene.boxes) <= 5


def test_the_main_object_is_the_largest_and_the_only_one_of_its_class():
    for scene in some(64, 100):
        sides = (scene.boxes[:, 2:] - scene.boxes[:, :2]).amax(1)
        assert sides.argmax() == scene.main
        assert scene.labels[scene.main] == scene.label
        assert len(scene.labels.unique()) == len(scene.labels)
        assert torch.equal(scene.main_mask, scene.masks[scene.main])


def test_the_class_mask_says_what_the_masks_say():
    scene = draw_scene(3)
    for mask, label in zip(scene.masks, scene.labels, strict=True):
        assert (scene.class_mask[mask] == 1 + label).all()
    assert (scene.class_mask[~scene.masks.any(0)] == 0).all()


def test_the_masks_lie_where_the_colours_do():
    """Within an object pixels resemble each other, and its mean is far from that of the ground."""
    for scene in some(64, 24):
        image, ground = scene.image.double(), ~scene.masks.any(0)
        for mask in scene.masks:
            inside = image[:, mask]
            assert (inside - inside.median(1, keepdim=True).values).abs().median() < 15
            assert (inside.mean(1) - image[:, ground].mean(1)).norm() > 50


def test_hidden_parts_belong_to_the_one_in_front():
    hiding = 0
    for scene in some(64, 100):
        hiding += len(scene.labels) - 1 > scene.main
    # In some scenes the main object is behind, in some in front.
    assert 20 < hiding < 95
    assert any(scene.boxes.shape[0] > 1 and _overlap(scene) for scene in some(64, 40))


def _overlap(scene: Scene) -> bool:
    """Return whether the box of the main object has pixels of another one in it."""
    x0, y0, x1, y1 = scene.boxes[scene.main].int().tolist()
    others = scene.masks.any(0) & ~scene.main_mask
    return bool(others[y0:y1, x0:x1].any())


def test_classes_take_turns_and_small_objects_are_of_all_classes():
    scenes = some(32, 400)
    assert torch.bincount(torch.tensor([scene.label for scene in scenes])).tolist() == [50] * len(CLASSES)
    small = torch.cat([torch.cat([scene.labels[:scene.main], scene.labels[scene.main + 1:]]) for scene in scenes])
    counts = torch.bincount(small, minlength=len(CLASSES))
    assert counts.min() > 0.75 * counts.float().mean() and counts.max() < 1.25 * counts.float().mean()


def test_colour_says_nothing_about_the_class():
    """The mean colours of the classes differ no more than chance makes them."""
    colours = torch.stack([scene.image[:, scene.main_mask].double().mean(1) for scene in some(32, 400)])
    means = torch.stack([colours[label::len(CLASSES)].mean(0) for label in range(len(CLASSES))])
    # 50 scenes a class; four standard errors
    assert ((means - colours.mean(0)).abs() < 4 * colours.std(0) / 50**0.5).all()


def test_a_scene_is_the_same_each_time_and_no_two_are():
    first, again = draw_scene(5, 64, seed=7), SceneDataset(6, 64, seed=7)[5]
    assert torch.equal(first.image, again.image) and torch.equal(first.masks, again.masks)
    pictures = {hashlib.sha256(draw_scene(index, 32, seed).image.numpy()).digest()
                for index in range(0, 80, 8) for seed in range(3)}
    assert len(pictures) == 30


def test_a_scene_is_the_one_that_it_was():
    """Sizes of the main objects: other scenes would make the card of the network trained on them untrue."""
    found = [drawn(index, 64).main_mask.sum().item() for index in range(8)]
    # Another version of Pillow may draw edges a little differently.
    assert found == pytest.approx(MAIN_PIXELS, rel=0.03)


def test_the_layout_does_not_depend_on_the_size():
    small, large = draw_scene(11, 64), draw_scene(11, 256)
    assert torch.equal(small.labels, large.labels) and small.main == large.main
    torch.testing.assert_close(small.boxes * 4, large.boxes, rtol=0, atol=6)


@pytest.mark.parametrize("name, share", [("circle", 3.1416), ("square", 2.88), ("ring", 3.1416 * (1 - 0.55**2)),
                                         ("cross", 4 * 0.95 * 0.64 - 0.64**2)])
def test_a_shape_covers_its_area(name, share):
    for size in (32, 200):
        found = cover(name, (0.5, 0.4), 0.3, 0.2, size)
        assert found.shape == (size, size) and 0 <= found.min() and found.max() == 1
        assert found.mean() == pytest.approx(share * 0.3**2, rel=0.04)


def test_a_shape_lies_where_it_was_told():
    for name in SHAPES:
        found = cover(name, (0.7, 0.3), 0.15, 0.0, 128)
        y, x = found.nonzero()
        assert abs((x.min() + x.max() + 1) / 256 - 0.7) < 0.05 and abs((y.min() + y.max() + 1) / 256 - 0.3) < 0.05


@pytest.mark.parametrize("arguments, message", [
    ({"index": -1}, "index is -1; expected 0 or more"),
    ({"index": 0, "size": 31}, "size is 31; expected 32 to 256"),
    ({"index": 0, "size": 257}, "size is 257; expected 32 to 256"),
    ({"index": 0, "size": 64.0}, "size is 64.0; expected a whole number"),
    ({"index": 0, "seed": -2}, "seed is -2; expected 0 or more"),
    ({"index": True}, "index is True; expected a whole number"),
])
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(VimlearnError, match=message):
        draw_scene(**arguments)


def test_a_set_ends():
    scenes = SceneDataset(3, 32)
    assert len(list(scenes)) == len(scenes) == 3
    with pytest.raises(IndexError, match="there is no scene 3; expected 0 to 2"):
        scenes[3]
    with pytest.raises(VimlearnError, match="count is 0; expected at least one scene"):
        SceneDataset(0)


def test_scenes_are_a_set_to_train_on(monkeypatch):
    source = open_source("scenes", 8)
    assert source.description == "scenes: 16,000 images to train on, 2,000 held out, 8 classes"
    picture, label = source.heldout[13]
    assert (picture.size, label) == ((64, 64), draw_scene(13, seed=PARTS[1][1]).label)
    assert picture.tobytes() == draw_scene(13, seed=PARTS[1][1]).picture().tobytes()
    assert source.heldout.name(13) == "scene 13 of seed 1"
    assert open_source("scenes", heldout_only=True).training is None


def test_the_network_that_comes_along_knows_scenes():
    model, data = vimlearn.load_model("shipped:scenes"), scene_images(100, 32)
    assert vimlearn.class_names("shipped:scenes") == CLASSES
    with torch.no_grad():
        assert (model(data.images).argmax(1) == data.labels).double().mean() > 0.88


def test_a_run_over_a_few_scenes(monkeypatch):
    monkeypatch.setattr("vimlearn.sources.PARTS", ((16, 0), (8, 1)))
    result = train(options("scenes", img_size=32, flip=0.5))
    assert len(result.log) == 2 and result.log[-1]["unreadable"] == 0
