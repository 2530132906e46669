"""`vimlearn eval`: which weights, which images, which classes, and the numbers."""

import hashlib
import shutil

import pytest
import timm
import torch
from drawn_images import CLASSES, command_line, make_parquet, make_shards, make_tree, picture
from PIL import Image
from published_weights import published_content
from timm.data import ImageNetInfo
from torch.utils.data import DataLoader

from vimlearn import VimlearnError, VisionMamba, cli, download, save_checkpoint
from vimlearn.classes import as_wnids, imagenet_wnids
from vimlearn.data import digits
from vimlearn.evaluate import Evaluation, evaluate, relabelled
from vimlearn.files import write_safetensors
from vimlearn.sources import open_source
from vimlearn.training import read_log
from vimlearn.training.networks import load_network
from vimlearn.training.transforms import evaluation_transform

RELEASED = ("--model", "vim_tiny_patch16_224", "--img-size", "32", "--device", "cpu")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("images") / "tree", heldout=4)


@pytest.fixture(scope="module", params=["vim", "deit"])
def run(request, tree, tmp_path_factory):
    """The folder of a run of either network, with a moving average that differs from the weights."""
    folder = tmp_path_factory.mktemp("runs") / request.param
    assert cli.main(command_line(tree, output=folder, crop_pct=0.6, ema=0.8, epochs=8, warmup_epochs=0, embed_dim=32,
                                 model=request.param)) == 0
    return folder


def said(capsys, *args) -> str:
    """Run the command, which must succeed, and return what it prints."""
    capsys.readouterr()
    code = cli.main(["eval", *map(str, args)])
    out, err = capsys.readouterr()
    # The library of the hub shows its progress there.
    assert code == 0 and "vimlearn" not in err, err
    return out


def refused(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["eval", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def numbers(text: str) -> dict[str, float]:
    """Return the number in front of each measure."""
    found = {}
    for line in text.splitlines():
        for name in ("top-1", "top-5", "cross-entropy"):
            if f"  {name}" in line:
                found[name] = float(line.split()[0].rstrip("%"))
    return found


def rounded(result) -> dict[str, float]:
    """Return the same of an Evaluation, as it is printed."""
    return {"top-1": pytest.approx(100 * result.accuracy, abs=5e-3),
            "top-5": pytest.approx(100 * result.topk_accuracy(5), abs=5e-3),
            "cross-entropy": pytest.approx(result.loss, abs=6e-5)}


# The weights of a run

def test_a_run_is_measured_as_in_its_log(run, tree, capsys):
    """The file says which images, which crop and which epoch; the numbers are those of the log."""
    row = read_log(run / "log.csv")[-1]
    raw, ema = (said(capsys, "--checkpoint", run / f"{kind}.safetensors") for kind in ("model", "ema"))
    assert f"{tree}: 12 images held out, 3 classes\nraw weights of epoch 8, from {run / 'model.safetensors'}\n" in raw
    assert f"averaged weights (EMA) of epoch 8, from {run / 'ema.safetensors'}\n" in ema
    assert numbers(raw)["top-1"] == pytest.approx(100 * row["heldout_accuracy"], abs=0.01)
    assert numbers(raw)["cross-entropy"] == pytest.approx(row["heldout_loss"], abs=1e-4)
    assert numbers(ema)["top-1"] == pytest.approx(100 * row["ema_accuracy"], abs=0.01)
    assert numbers(ema)["cross-entropy"] != numbers(raw)["cross-entropy"] and numbers(raw)["top-5"] == 100
    other = said(capsys, "--checkpoint", run / "model.safetensors", "--crop-pct", "1.0")
    assert numbers(other)["cross-entropy"] != numbers(raw)["cross-entropy"]


@pytest.mark.parametrize("size", [16, 24])
def test_another_image_size(run, tree, capsys, size):
    found = said(capsys, "--checkpoint", run / "model.safetensors", "--img-size", size, "--batch-size", 5)
    network = load_network(run / "model.safetensors", size)
    assert network.patch_embed.img_size == (size, size) and not network.training
    heldout = open_source(str(tree), heldout_only=True).heldout
    assert numbers(found) == rounded(evaluate(network, heldout, transform=evaluation_transform(size, 0.6)))


def test_workers_and_formats_change_nothing(run, tree, capsys, tmp_path):
    pytest.importorskip("datasets")
    checkpoint = run / "model.safetensors"
    once = numbers(said(capsys, "--checkpoint", checkpoint))
    assert numbers(said(capsys, "--checkpoint", checkpoint, "--workers", 2)) == once
    shards = make_shards(tmp_path / "shards", tree)
    for file in shards.glob("*train*.tar"):
        file.unlink()
    assert numbers(said(capsys, "--checkpoint", checkpoint, "--dataset", f"wds:{shards}")) == pytest.approx(once)
    hub = f"hf:{make_parquet(tmp_path / 'parquet', tree)}"
    assert numbers(said(capsys, "--checkpoint", checkpoint, "--dataset", hub)) == pytest.approx(once)


def test_batches_and_workers_are_as_asked(run, capsys, monkeypatch):
    seen = []

    def loader(data, batch_size, **settings):
        seen.append((batch_size, settings["num_workers"]))
        return DataLoader(data, batch_size, **settings)
    monkeypatch.setattr("vimlearn.evaluate.DataLoader", loader)
    said(capsys, "--checkpoint", run / "model.safetensors", "--workers", 1, "--batch-size", 7)
    assert seen == [(7, 1)]


def test_a_deit_of_an_earlier_version_is_one_line(capsys, tmp_path):
    path = write_safetensors(tmp_path / "model.safetensors", {"head.weight": torch.ones(3, 32)}, {"network": '"deit"'})
    assert "holds a DeiT without its settings" in refused(capsys, "--checkpoint", path)


@pytest.mark.parametrize("settings", ["{", "3", '{"depth": "two"}', '{"embed_dim": 8, "num_heads": 1, "strange": 1}',
                                      '{"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 1, "num_heads": 1}'])
def test_settings_of_a_deit_that_do_not_fit(capsys, tmp_path, settings):
    strings = {"network": '"deit"', "deit_config": settings}
    path = write_safetensors(tmp_path / "model.safetensors", {"head.weight": torch.ones(3, 32)}, strings)
    assert "weights and settings do not fit" in refused(capsys, "--checkpoint", path)


# Classes

def test_some_of_the_classes_are_enough(run, tree, capsys, tmp_path):
    """The held-out part alone, with one class of three: its accuracy is that class's share in the whole."""
    shutil.copytree(tree / "val" / "cat", tmp_path / "val" / "cat")
    found = said(capsys, "--checkpoint", run / "model.safetensors", "--dataset", tmp_path)
    whole = evaluate(load_network(run / "model.safetensors"), open_source(str(tree)).heldout,
                     transform=evaluation_transform(16, 0.6))
    mine = whole.labels == CLASSES.index("cat")
    assert numbers(found) == rounded(Evaluation(whole.logits[mine], whole.labels[mine], CLASSES))


def test_classes_that_the_network_does_not_know(run, tree, capsys, tmp_path):
    shutil.copytree(tree / "val" / "cat", tmp_path / "val" / "dog")
    shutil.copytree(tree / "val" / "cat", tmp_path / "val" / "cat")
    assert "1 of the 2 classes of the images, such as 'dog', are not among the 3 that the network knows, such as " \
        "'ape'; expected" in refused(capsys, "--checkpoint", run / "model.safetensors", "--dataset", tmp_path)


def test_relabelling_by_name():
    data = relabelled(digits()[1], ["x", *reversed([str(i) for i in range(10)])])
    assert torch.equal(data.labels, 10 - digits()[1].labels) and len(data.classes) == 11


def test_relabelling_twice_is_relabelling_once(tree):
    images = open_source(str(tree), heldout_only=True).heldout
    twice = relabelled(relabelled(images, ["cat", "bee", "ape"]), ["x", "cat", "ape", "bee"])
    assert [twice[i][1] for i in (0, 4, 8)] == [2, 3, 1]
    with pytest.raises(VimlearnError, match="such as 'bee', are not among the 2"):
        relabelled(images, ["ape", "cat"])


def test_names_of_imagenet():
    wnids = imagenet_wnids()
    assert (len(wnids), wnids[0], wnids[134], wnids[-1]) == (1000, "n01440764", "n02012849", "n15075141")
    info = ImageNetInfo()
    words = [info.index_to_description(i) for i in range(1000)]
    words[517] = "crane2"
    assert as_wnids(words) == wnids
    for other in (words[::-1], words[:999], [f"class {i}" for i in range(1000)], list(CLASSES)):
        assert as_wnids(other) == tuple(other)


# Released networks

@pytest.fixture
def imagenet_part(tmp_path):
    """Held-out images of three classes of ImageNet: 1, 2 and 3 of them."""
    for label, i in enumerate((7, 300, 999)):
        folder = tmp_path / "part" / "val" / imagenet_wnids()[i]
        folder.mkdir(parents=True)
        for number in range(label + 1):
            picture(label, number).save(folder / f"{number}.png")
    return tmp_path / "part"


def always(i: int) -> VisionMamba:
    """A Vim-Ti that takes every image for class i."""
    model = timm.create_model("vim_tiny_patch16_224", img_size=32)
    with torch.no_grad():
        model.head.bias[i] = 100
    return model


def test_a_published_file_holds_both_kinds(capsys, tmp_path, imagenet_part):
    """Labels are found through the wnids: 2 of the 6 images are of class 300, and 3 of class 999."""
    torch.save(published_content(always(300), always(999)), tmp_path / "vim.pth")
    args = (*RELEASED, "--weights", tmp_path / "vim.pth", "--dataset", imagenet_part)
    raw, ema = said(capsys, *args), said(capsys, *args, "--ema")
    assert f"raw weights of epoch 300, from {tmp_path / 'vim.pth'}\n" in raw
    assert "averaged weights (EMA) of epoch 300, from" in ema
    assert "33.33%  top-1 accuracy, held out (2 of 6 images)" in raw
    assert "50.00%  top-1 accuracy, held out (3 of 6 images)" in ema
    # The table has the three classes that occur.
    table = raw.split("recall  precision\n")[1].splitlines()
    assert [row.split()[:3] for row in table] == [["n01514668", "1", "0"], ["n02165105", "2", "2"],
                                                  ["n15075141", "3", "0"]]


def test_weights_from_the_hub(capsys, tmp_path, monkeypatch, imagenet_part):
    """Its repository alone names the published file; its hash is checked; so it is without --weights."""
    path, asked = tmp_path / "vim_t_midclstok_76p1acc.pth", []
    torch.save(published_content(always(300), always(999)), path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: (asked.append(args), str(path))[1])
    args = (*RELEASED, "--dataset", imagenet_part)
    sources = ([], ["--weights", "hub:hustvl/Vim-tiny-midclstok"], ["--weights", "hustvl/Vim-tiny-midclstok"],
               ["--weights", f"hub:hustvl/Vim-tiny-midclstok/{path.name}"])
    for source in sources:
        assert "hashes to" in refused(capsys, *args, *source)
    monkeypatch.setitem(download.KNOWN_SHA256, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    for source in sources:
        assert "(2 of 6 images)" in said(capsys, *args, *source)
    assert asked == [("hustvl/Vim-tiny-midclstok", path.name)] * 8
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: ["a.pth", "b.pth"])
    assert "holds 2 files of weights" in refused(capsys, *args, "--weights", "hub:hustvl/Vim-small-midclstok")
    assert "no weights are published for vim_base_patch16_stride8_224" in refused(
        capsys, "--model", "vim_base_patch16_stride8_224", "--dataset", imagenet_part)


def test_weights_that_say_nothing_of_themselves(capsys, tmp_path, imagenet_part):
    torch.save(always(999).state_dict(), tmp_path / "bare.pth")
    found = said(capsys, *RELEASED, "--weights", tmp_path / "bare.pth", "--dataset", imagenet_part)
    assert "weights, not known whether averaged, of an unknown epoch, from" in found and "(3 of 6 images)" in found
    path = save_checkpoint(always(999), tmp_path / "own.safetensors", {"weights": "ema", "epoch": "7"})
    found = said(capsys, *RELEASED, "--weights", path, "--dataset", imagenet_part)
    assert "averaged weights (EMA) of epoch 7, from" in found
    found = said(capsys, "--checkpoint", path, "--dataset", imagenet_part)
    assert "averaged weights (EMA) of epoch 7, from" in found and "(3 of 6 images)" in found


# What is printed

def test_unreadable_images_are_listed_and_not_counted(run, tree, capsys, tmp_path):
    shutil.copytree(tree / "val", tmp_path / "val")
    for i in range(22):
        (tmp_path / "val" / "bee" / f"broken{i:02}.png").write_bytes(b"nothing")
    found = said(capsys, "--checkpoint", run / "model.safetensors", "--dataset", tmp_path)
    assert "of 12 images)" in found and "22 of 34 images could not be read and are not counted:\n" in found
    assert str(tmp_path / "val" / "bee" / "broken00.png") in found and "    and 2 more\n" in found
    assert sum(line.startswith("    ") and "broken" in line for line in found.splitlines()) == 20


@pytest.mark.parametrize("count", [20, 21])
def test_the_table_is_for_a_screen(capsys, tmp_path, count):
    names = [f"class{i:02}" for i in range(count)]
    make_tree(tmp_path / "tree", training=1, heldout=1, classes=names)
    model = VisionMamba(16, 8, num_classes=count, embed_dim=16, depth=1)
    path = save_checkpoint(model, tmp_path / "w.safetensors", {"crop_pct": "x"})
    args = ("--checkpoint", path, "--dataset", tmp_path / "tree")
    assert ("class07" in said(capsys, *args)) == (count == 20)
    if count == 20:
        header = said(capsys, *args, "--confusion").split("row: true class, column: predicted class\n")[1]
        assert header.splitlines()[0].split() == [f"class{i:02}" for i in range(20)]
    else:
        assert "--confusion prints a table for at most 20 classes and there are 21" in refused(
            capsys, *args, "--confusion")


@pytest.mark.parametrize("args, message", [
    ([], "there is no such folder (`vimlearn fetch cifar10` makes datasets/cifar10); expected digits, scenes, the "),
    (["--weights", "x"], "--weights and --ema go with --model NAME; a file of a run is named by --checkpoint FILE"),
    (["--ema"], "--weights and --ema go with --model NAME"),
    (["--checkpoint", "shipped:cifr10"], "no network called 'cifr10' comes along, did you mean 'cifar10'?"),
    (["--checkpoint", "x"], "there is no file x; expected the model.safetensors of a run, or shipped:cifar10"),
    (["--checkpoint", "x", "--model", "vim_tiny_patch16_224"], "--checkpoint and --model are both given"),
    (["--checkpoint", "x", "--ema"], "--checkpoint and --ema are both given; expected --checkpoint alone, with FOLDER"),
    (["--checkpoint", "x", "--batch-size", "0"], "batch_size is 0; expected at least 1"),
    (["--checkpoint", "x", "--workers", "-1"], "workers is -1; expected at least 0"),
    (["--checkpoint", "x", "--crop-pct", "1.5"], "crop_pct is 1.5; expected at most 1"),
    (["--checkpoint", "x", "--img-size", "0"], "img_size is 0; expected at least 1"),
    (["--model", "vim_tiny_patch16_22", "--dataset", "x"], "unknown model 'vim_tiny_patch16_22', did you mean"),
    (["--model", "vim_tiny_patch16_224"], "--dataset is missing; expected a folder"),
    (["--model", "vim_tiny_patch16_224", "--weights", "x.pth", "--dataset", "x"], "there is no file x.pth"),
])
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    assert message in refused(capsys, *args)


def test_images_and_network_that_do_not_fit(run, tree, capsys, tmp_path):
    own = tmp_path / "own.safetensors"
    args = ("--checkpoint", own, "--dataset", tree)
    save_checkpoint(VisionMamba(16, 8, in_chans=1, num_classes=3, embed_dim=16, depth=1), own)
    assert "built for 1 colours and the images have 3" in refused(capsys, *args)
    save_checkpoint(VisionMamba(16, 8, num_classes=4, embed_dim=16, depth=1), own)
    assert "tells 4 classes apart and the data has 3" in refused(capsys, *args)
    for names in ('["a"]', "3", "["):
        save_checkpoint(VisionMamba(16, 8, num_classes=3, embed_dim=16, depth=1), own, {"classes": names})
        assert "classes and its network tells 3 apart" in refused(capsys, *args)
    save_checkpoint(VisionMamba(8, 4, in_chans=1, num_classes=10, embed_dim=16, depth=1), own)
    assert "img_size is 12 and the images are 8 x 8 pixels in memory; leave" in refused(
        capsys, "--checkpoint", own, "--img-size", "12")
    (tmp_path / "empty" / "train" / "ape").mkdir(parents=True)
    assert "has no folder val; expected" in refused(
        capsys, "--checkpoint", run / "model.safetensors", "--dataset", tmp_path / "empty")


# The held-out part alone

def test_opening_the_heldout_part_alone(tree, tmp_path):
    shutil.copytree(tree / "val", tmp_path / "val")
    source = open_source(str(tmp_path), heldout_only=True)
    assert (source.training, len(source.heldout), source.size, source.in_chans) == (None, 12, None, 3)
    assert source.description == f"{tmp_path}: 12 images held out, 3 classes" and not source.is_stream
    with pytest.raises(VimlearnError, match="has no folder train"):
        open_source(str(tmp_path))
    source = open_source("digits", heldout_only=True)
    assert (source.training, source.size, source.in_chans) == (None, (8, 8), 1)


def test_imagenet_is_known_by_its_classes(tmp_path):
    for name in imagenet_wnids():
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (1, 1)).save(tmp_path / "val" / name / "a.png")
    source = open_source(str(tmp_path), heldout_only=True)
    assert source.description == f"{tmp_path}: ImageNet-1K, 1,000 images held out, 1,000 classes"
    assert source.notes == ("the whole ImageNet-1K has 50,000 images",)
