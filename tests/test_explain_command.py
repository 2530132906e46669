"""`vimlearn explain`: the files it writes, what it says, and one line for each kind of bad input."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import refused

import vimlearn
from vimlearn import VisionMamba, cli, explain, save_checkpoint
from vimlearn.explain.photos import look_at, open_image, seen_part
from vimlearn.training.networks import build, save_weights
from vimlearn.training.options import Network
from vimlearn.training.transforms import evaluation_transform

SMALL = {"patch_size": 4, "embed_dim": 12, "depth": 2, "d_state": 2, "num_classes": 3}
CLASSES = json.dumps(["ape", "bee", "cat"])


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    """A photograph of 50 x 40 pixels with a point in its name."""
    pixels = np.random.default_rng(0).integers(0, 255, (5, 4, 3), dtype=np.uint8)
    path = tmp_path_factory.mktemp("photos") / "a.photo.png"
    Image.fromarray(pixels).resize((50, 40), Image.Resampling.BICUBIC).save(path)
    return path


def checkpoint(folder, img_size=16, **settings):
    torch.manual_seed(1)
    model = VisionMamba(img_size, **SMALL | settings)
    return save_checkpoint(model, folder / "model.safetensors", {"classes": CLASSES, "crop_pct": "0.8"})


def said(capsys, *args) -> list[str]:
    """Run the command, which must succeed, and return the lines that it prints."""
    capsys.readouterr()
    code = cli.main(["explain", *map(str, args)])
    out, err = capsys.readouterr()
    assert code == 0, err
    return out.splitlines()


def files(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_network_that_comes_along(photo, capsys, tmp_path):
    origin, line, notice = said(capsys, photo, "--output", tmp_path)
    assert files(tmp_path) == {f"a.photo_hidden.{ending}" for ending in ("png", "npy", "json")}
    facts = json.loads((tmp_path / "a.photo_hidden.json").read_text())
    model = vimlearn.load_model("shipped:cifar10")
    pixels = evaluation_transform(32, 1.0)(Image.open(photo))[None]
    with torch.no_grad():
        shares = model(pixels).softmax(1)[0]
    name = vimlearn.class_names("shipped:cifar10")[shares.argmax()]
    assert (facts["class"], facts["class_number"]) == (name, shares.argmax())
    assert facts["probability"] == pytest.approx(shares.max().item(), abs=1e-5)
    assert origin == facts["weights"] == "raw weights of epoch 10, from shipped:cifar10"
    assert line == f"{photo}: {name}, {shares.max():.1%}; written to {tmp_path / 'a.photo_hidden'}.png, .npy and .json"
    assert notice == f"  {facts['notice']}" == (
        "  the image is 50 x 40 pixels; its middle, 40 x 40, was resized to 32 x 32")
    found = np.load(tmp_path / "a.photo_hidden.npy")
    assert found.dtype == np.float32 and list(found.shape) == facts["shape"]
    assert np.allclose(found, explain.explain(model, pixels)[0], rtol=1e-4, atol=1e-5)
    assert facts["alt"] == Image.open(tmp_path / "a.photo_hidden.png").info["Description"]
    assert f"image a.photo.png, class {name} (" in facts["alt"]


@pytest.mark.parametrize("settings", [{}, {"class_token": "first", "img_size": (12, 20)},
                                      {"class_token": None, "global_pool": "avg", "bidirectional": False}])
@pytest.mark.parametrize("method", explain.METHODS)
def test_every_method_on_every_network(photo, capsys, tmp_path, method, settings):
    path = checkpoint(tmp_path, **settings)
    options = ["--query", "1,2"] if "query" in explain.METHODS[method].options else []
    said(capsys, photo, "--output", tmp_path / "maps", "--method", method, *options, "--checkpoint", path)
    (array,) = (tmp_path / "maps").glob("*.npy")
    (picture,) = (tmp_path / "maps").glob("*.png")
    model = vimlearn.load_model(path)
    pixels = evaluation_transform(model.patch_embed.img_size, 0.8)(Image.open(photo))[None]
    expected = explain.explain(model, pixels, method, **({"query": (1, 2)} if options else {}))[0]
    assert np.allclose(np.load(array), expected, rtol=1e-3, atol=1e-4 * expected.abs().max())
    assert Image.open(picture).size > (300, 100)


def test_the_question_is_in_the_name_and_in_the_facts(photo, capsys, tmp_path):
    path = checkpoint(tmp_path)
    common = (photo, "--checkpoint", path, "--output", tmp_path / "maps")
    said(capsys, *common, "--layer", "all", "--query", "1,2", "--direction", "backward")
    said(capsys, *common, "--layer=-1", "--query", "class")
    said(capsys, *common, "--method", "attribution", "--target", "cat", "--query", "3")
    said(capsys, *common, "--method", "attribution", "--target", "2", "--query", "3")
    names = ["hidden_layer-all_query-1-2_direction-backward", "hidden_layer--1_query-class",
             "attribution_query-3_target-cat", "attribution_query-3_target-2"]
    facts = [json.loads((tmp_path / "maps" / f"a.photo_{name}.json").read_text()) for name in names]
    assert facts[0]["shape"] == [2, 4, 4] and facts[0]["query"] == [1, 2] and facts[0]["layer"] == "all"
    assert facts[1]["layer"] == -1 and facts[1]["query"] == "class" and "target" not in facts[1]
    assert facts[2]["target"] == facts[2]["class_number"] == 2 and facts[2]["class"] == "cat"
    assert {**facts[3], "alt": 0} == {**facts[2], "alt": 0}
    assert len(list((tmp_path / "maps").iterdir())) == 12


def test_images_of_one_name_do_not_write_over_each_other(photo, capsys, tmp_path):
    other = tmp_path / photo.name
    Image.open(photo).rotate(180).save(other)
    said(capsys, photo, other, "--output", tmp_path / "maps", "--method", "delta")
    first, second = (np.load(tmp_path / "maps" / f"a.photo{ending}_delta.npy") for ending in ("", "_2"))
    assert not np.allclose(first, second)


def test_another_size_of_the_network_and_another_crop(photo, capsys, tmp_path):
    lines = said(capsys, photo, "--output", tmp_path, "--method", "delta", "--img-size", "20", "--crop-pct", "0.5")
    assert np.load(tmp_path / "a.photo_delta.npy").shape == (5, 5)
    assert lines[2] == "  the image is 50 x 40 pixels; its middle, 20 x 20, was resized to 20 x 20"


def test_images_of_the_right_size_are_taken_as_they_are(photo, capsys, tmp_path):
    path = checkpoint(tmp_path)
    exact = tmp_path / "exact.png"
    Image.open(photo).resize((16, 16)).save(exact)
    common = ("--checkpoint", path, "--output", tmp_path / "maps", "--method", "delta", "--size-mismatch", "error")
    assert len(said(capsys, exact, *common)) == 2
    model = vimlearn.load_model(path)
    expected = explain.explain(model, evaluation_transform(16, 1.0)(Image.open(exact))[None], "delta")[0]
    assert np.allclose(np.load(tmp_path / "maps" / "exact_delta.npy"), expected, rtol=1e-4)
    assert (f"vimlearn: {photo}: the image is 50 x 40 pixels and the network is built for 16 x 16; resize it, or allow "
            "it with --size-mismatch resize\n") == refused_after_some(capsys, photo, *common)


def refused_after_some(capsys, *args) -> str:
    """Return the one line on stderr of a command that ends with exit code 2, whatever it has printed before."""
    capsys.readouterr()
    assert cli.main(["explain", *map(str, args)]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    return err


def test_a_map_of_zeros_is_said(photo, capsys, tmp_path):
    lines = said(capsys, photo, "--output", tmp_path, "--method", "grad-cam", "--layer", "5")
    assert lines[-1] == "  the map is 0 everywhere: nothing in it bears on the question; ask for an earlier layer"
    assert "it is 0 everywhere" in json.loads((tmp_path / "a.photo_grad-cam_layer-5.json").read_text())["alt"].lower()


# What the network sees of an image

@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 97), (16, 16), (10, 12), (200, 140)])
@pytest.mark.parametrize("img_size", [(16, 16), (12, 20)])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875, 0.5])
def test_the_part_that_is_drawn_is_the_part_that_is_seen(size, img_size, crop_pct):
    # Colours that grow from left to right and from top to bottom.
    across, down = np.meshgrid(np.linspace(0, 250, size[0]), np.linspace(0, 250, size[1]))
    image = Image.fromarray(np.stack([across, down, 0 * down], 2).astype(np.uint8))
    box = seen_part(image.size, img_size, crop_pct)
    assert 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]
    mean, std = (torch.tensor(x).view(3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    seen = (evaluation_transform(img_size, crop_pct)(image) * std + mean) * 255
    expected = np.asarray(image.resize(img_size[::-1], Image.Resampling.BICUBIC, box=box))
    # At the edges the filter reaches outside of the box in the one and not in the other.
    inside = (slice(3, -3), slice(3, -3))
    assert np.abs(seen.permute(1, 2, 0).numpy() - expected)[inside].max() < 0.6 * 250 / min(img_size)
    look = look_at(image, img_size, crop_pct)
    assert look.pixels.shape == (3, *img_size)
    assert abs(look.image.width - (box[2] - box[0])) <= 0.5 and abs(look.image.height - (box[3] - box[1])) <= 0.5


def test_an_image_is_upright_and_in_rgb(tmp_path):
    image = Image.fromarray(np.zeros((4, 8), np.uint8))
    exif = image.getexif()
    # Turned by a quarter, as a telephone held upright writes it.
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    opened = open_image(tmp_path / "turned.jpg")
    assert opened.size == (4, 8) and opened.mode == "RGB"


# Bad input

@pytest.mark.parametrize("args, message", [
    ([], "no image is named; expected vimlearn explain IMAGE ... --output FOLDER"),
    (["{photo}", "--metod", "delta"], "unknown option --metod, did you mean '--method'?"),
    (["{photo}", "--method", "hiden"], "unknown method 'hiden', did you mean 'hidden'?; expected one of hidden, "),
    (["{photo}", "--layer", "6"], "there is no layer 6; expected 0 to 5, or -6 to -1 from the end"),
    (["{photo}", "--layer", "each"], "--layer"),
    (["{photo}", "--query", "65"], "there is no token 65; expected 0 to 64"),
    (["{photo}", "--query=-1"], "there is no token -1; expected 0 to 64"),
    (["{photo}", "--query", "8,0"], "there is no patch in row 8, column 0; expected rows 0 to 7 and columns 0 to 7"),
    (["{photo}", "--query", "left"], "unknown query 'left'; expected the number of a token, (row, column) or 'class'"),
    (["{photo}", "--method", "delta", "--query", "3"], "delta takes no query; it takes layer, direction"),
    (["{photo}", "--target", "cat"], "hidden takes no target; it takes layer, query, direction"),
    (["{photo}", "--method", "grad-cam", "--target", "cats"], "there is no class 'cats', did you mean 'cat'?; "),
    (["{photo}", "--method", "grad-cam", "--target", "10"], "there is no class 10; expected 0 to 9"),
    (["{photo}", "--direction", "up"], "invalid choice 'up' for argument '--direction'"),
    (["{photo}", "--img-size", "3"], "img_size (3, 3) is smaller than one patch of 4 pixels"),
    (["{photo}", "--checkpoint", "none.safetensors"], "there is no file none.safetensors"),
    (["{photo}", "--model", "vim_tiny"], "unknown model 'vim_tiny', did you mean"),
])
def test_bad_options_are_one_line_and_nothing_is_written(photo, capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    args = [str(photo) if arg == "{photo}" else arg for arg in args]
    assert message in refused(capsys, "explain", *args, "--output", "maps")
    assert not list(tmp_path.iterdir())


def test_files_that_are_no_images(photo, capsys, tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "cut.png").write_bytes(photo.read_bytes()[:300])
    for name, message in (("text.jpg", "text.jpg is no image that can be read (cannot identify image file"),
                          ("cut.png", "cut.png is no image that can be read ("),
                          ("none.jpg", f"there is no file {tmp_path / 'none.jpg'}; expected an image"),
                          ("", f"{tmp_path} is a folder; expected image files, such as {tmp_path / '*.jpg'}")):
        assert message in refused_after_some(capsys, tmp_path / name, "--output", tmp_path / "maps")
    assert not list((tmp_path / "maps").iterdir())


def test_a_folder_that_cannot_be_written_to(photo, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "maps"):
        message = refused(capsys, "explain", str(photo), "--output", str(folder))
        assert f"cannot write to {folder}: " in message and "choose another one" in message


def test_networks_that_cannot_be_asked(photo, capsys, tmp_path):
    deit = build(Network(model="deit", stride=None, embed_dim=32, depth=1), (16, 16), 3, 3)
    save_weights(deit, tmp_path / "deit.safetensors", {})
    save_checkpoint(VisionMamba(8, in_chans=1, **SMALL), tmp_path / "grey.safetensors")
    save_checkpoint(VisionMamba(16, **SMALL | {"class_token": None, "global_pool": "avg"}), tmp_path / "no.safetensors")
    for name, message in (("deit", "the model is a VisionTransformer; expected a vimlearn.VisionMamba"),
                          ("grey", "the network is built for images of 1 colours; expected one for 3"),
                          ("no", "the model has no class token; name the token that is asked about, query=0 to 15")):
        found = refused_after_some(capsys, photo, "--checkpoint", tmp_path / f"{name}.safetensors", "--output",
                                   tmp_path / "maps")
        assert message in found


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there(photo, capsys, tmp_path):
    assert "PyTorch sees no GPU" in refused(capsys, "explain", str(photo), "--output", str(tmp_path / "maps"),
                                            "--device", "cuda")
