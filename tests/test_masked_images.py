"""Images with masks for the benchmark of maps: scenes, a folder, objects of a drawn COCO, and a run over them."""

import csv
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from drawn_images import CLASSES, make_tree
from PIL import Image

from vimlearn import VimlearnError, VisionMamba
from vimlearn.benchmark.faithfulness import all_maps, row
from vimlearn.benchmark.masked_images import coco_objects, folder_images, scene_images
from vimlearn.explain import METHODS, pointing
from vimlearn.scenes import draw_scene

NAMES = ("airplane", "automobile", "bird")


@pytest.fixture(scope="module")
def coco(tmp_path_factory) -> Path:
    """A picture of 100 x 80 pixels with a white car at x 60 to 96, y 10 to 30, and things that are to be left out."""
    root = tmp_path_factory.mktemp("coco")
    pixels = np.zeros((80, 100, 3), dtype=np.uint8)
    pixels[10:30, 60:96] = 255
    (root / "val").mkdir()
    Image.fromarray(pixels).save(root / "val" / "one.png")
    car = {"image_id": 7, "category_id": 3, "iscrowd": 0, "bbox": [60, 10, 36, 20],
           "segmentation": [[60, 10, 95, 10, 95, 29, 60, 29]]}
    others = [{**car, "iscrowd": 1, "segmentation": {"counts": [], "size": [80, 100]}}, {**car, "category_id": 4},
              {**car, "bbox": [60, 10, 31, 20]}]
    write_annotations(root, [car, *others])
    return root


def write_annotations(root: Path, annotations: list[dict]) -> None:
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / "instances_val.json").write_text(json.dumps({
        "images": [{"id": 7, "file_name": "one.png"}], "annotations": annotations,
        "categories": [{"id": 3, "name": "car"}, {"id": 4, "name": "fork"}]}))


def test_an_object_of_coco_is_cut_out_with_its_mask(coco):
    data = coco_objects(str(coco), NAMES, 32)
    assert data.images.shape == (1, 3, 32, 32) and data.labels.tolist() == [1]
    # 36 x 1.25 = 45 pixels are cut, at the right and upper edge: x 55 to 100, y 0 to 45.
    expected = torch.zeros(32, 32, dtype=torch.bool)
    expected[round(10 / 45 * 32):round(30 / 45 * 32), round(5 / 45 * 32):round(41 / 45 * 32)] = True
    assert (data.masks[0] != expected).sum() < 60
    bright = data.images[0].mean(0) > 0
    assert (data.masks[0] != bright).float().mean() < 0.06


def test_a_coco_without_such_objects_is_refused(coco, tmp_path):
    with pytest.raises(VimlearnError, match="holds no object of the classes airplane, car"):
        coco_objects(str(tmp_path), NAMES, 32)


@pytest.mark.parametrize("size", (32, 64))
def test_scenes_come_with_the_mask_of_the_main_object(size):
    data = scene_images(3, size)
    assert data.images.shape == (3, 3, size, size) and data.labels.tolist() == [0, 1, 2]
    scene = draw_scene(2, seed=1)
    whole = scene.main_mask.double().mean().item()
    assert data.masks[2].double().mean().item() == pytest.approx(whole, abs=0.02)
    if size == 64:
        assert torch.equal(data.masks[2], scene.main_mask)


def test_images_of_a_folder_are_spread_over_the_classes(tmp_path):
    data = folder_images(str(make_tree(tmp_path)), (*CLASSES[::-1], "dog"), 6, 16)
    assert data.labels.tolist() == [2, 2, 1, 1, 0, 0] and data.masks is None
    assert len(data.pick(data.labels == 2).images) == 2


@pytest.fixture(scope="module")
def model() -> VisionMamba:
    torch.manual_seed(0)
    return VisionMamba(img_size=32, patch_size=8, num_classes=8, embed_dim=16, depth=2, d_state=2).eval()


def test_there_is_a_map_for_every_method_and_layer(model):
    data = scene_images(18, 32)
    maps = all_maps(model, data.images, data.labels)
    assert {name.split(",")[0] for name in maps} == {*METHODS, "random", "centre"}
    assert {"hidden, layer 0", "hidden, layer 1", "hidden, layer 1, absolute", "integrated-gradients",
            "integrated-gradients, absolute", "receptive-field"} <= maps.keys()
    assert all(found.shape == (18, 4, 4) for found in maps.values())
    alone = all_maps(model, data.images[17:], data.labels[17:])
    for name in maps.keys() - {"random"}:
        torch.testing.assert_close(maps[name][17:], alone[name], rtol=1e-3, atol=1e-5)


def test_the_spot_is_in_the_centre(model):
    data = scene_images(1, 32)
    spot = all_maps(model, data.images, data.labels)["centre"][0]
    torch.testing.assert_close(spot, spot.flip(0).flip(1))
    assert spot[1, 1] > spot[0, 1] > spot[0, 0]


def test_an_interval_holds_the_mean_and_shrinks_with_more_images():
    few, many = (row(torch.randn(count), torch.zeros(count)) for count in (20, 2000))
    for found in (few, many):
        assert float(found["mean_low"]) < float(found["mean"]) < float(found["mean_high"])
        assert found["less_gradient"] == found["mean"]
    # 1.96 standard errors on each side
    assert float(many["mean_high"]) - float(many["mean_low"]) == pytest.approx(2 * 1.96 / 2000**0.5, rel=0.15)
    assert float(few["mean_high"]) - float(few["mean_low"]) > 0.4
    assert row(torch.ones(9), torch.rand(9))["images"] == "9"


def test_the_command_writes_rows_and_keeps_others(model, tmp_path, monkeypatch):
    place = Path(__file__).parents[1] / "benchmarks" / "faithfulness.py"
    spec = importlib.util.spec_from_file_location("faithfulness_command", place)
    command = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(command)
    path, data = tmp_path / "rows.csv", scene_images(8, 32)
    with torch.no_grad():
        data = data._replace(labels=model(data.images).argmax(1))
    for name in ("one", "two", "one"):
        command.measure(command.Table(path, "net", name), model, data, 2)
    rows = list(csv.DictReader(path.open(newline="")))
    keys = [(found["data"], found["method"], found["measure"]) for found in rows]
    assert len(set(keys)) == len(keys) and {found["data"] for found in rows} == {"one", "two"}
    measures = {found["measure"] for found in rows}
    assert measures == {"deletion, mean", "deletion, blur", "insertion, mean", "insertion, blur", "pointing", "energy",
                        "iou", "fresh head", "fresh layer 1", "fresh layer 0", "fresh all"}
    chance = next(found for found in rows if found["method"] == "centre" and found["measure"] == "fresh all")
    assert chance["mean"] == "1.0000"
    spots = all_maps(model, data.images, data.labels)["centre"]
    found = next(found for found in rows if found["method"] == "centre" and found["measure"] == "pointing")
    assert float(found["mean"]) == pytest.approx(pointing(spots, data.masks).mean().item(), abs=1e-4)
