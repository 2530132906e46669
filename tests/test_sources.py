"""Images from trees, shards and datasets of the hub: the same images, and one clear line for what is not right."""

import builtins
import itertools
import json

import pytest
import torch
from drawn_images import CLASSES, command_line, make_parquet, make_shards, make_tree, options, picture, plain
from torch import nn

import vimlearn
from vimlearn import cli
from vimlearn.evaluate import evaluate
from vimlearn.sources import Images, Unreadable, open_source
from vimlearn.training import read_log, train
from vimlearn.training.transforms import evaluation_transform


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("images") / "tree")


@pytest.fixture(scope="module")
def sets(tree, tmp_path_factory):
    """The same images in three forms, by the names that `--dataset` takes."""
    home = tmp_path_factory.mktemp("Forms")
    with pytest.MonkeyPatch.context() as patch:
        import datasets
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", str(home / "cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield {"tree": str(tree), "wds": f"wds:{make_shards(home / 'shards', tree)}",
               "hf": f"hf:{make_parquet(home / 'Parquet', tree)}"}
        assert (home / "cache").is_dir()


class Signature(nn.Module):
    """A network that tells images apart: its logits are linear in fixed weights of the pixels."""

    def __init__(self, classes=3):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(16 * 16 * 3, classes, generator=torch.Generator().manual_seed(0)))

    def forward(self, images):
        return images.flatten(1) @ self.weight


def seen(part, **settings):
    """Return (label, logits) of every image of a part, sorted."""
    found = evaluate(Signature(), part, 4, transform=evaluation_transform(16, 1.0), **settings)
    assert not found.unreadable
    rows = zip(found.labels.tolist(), found.logits.tolist(), strict=True)
    return sorted((label, [round(value, 3) for value in logits]) for label, logits in rows)


# The same images in every form

@pytest.mark.parametrize("form", ["wds", "hf"])
@pytest.mark.parametrize("workers", [0, 2])
def test_all_forms_hold_the_same_images_and_each_is_evaluated_once(sets, form, workers):
    one, other = (open_source(sets[name], 3) for name in ("tree", form))
    assert (len(other.training), len(other.heldout), len(other.classes)) == (24, 9, 3)
    assert seen(one.heldout) == seen(other.heldout, workers=workers)
    assert len({str(row) for row in seen(one.heldout)}) == 9


def test_hub_and_tree_train_alike(sets):
    one, other = (train(options(sets[form])) for form in ("tree", "hf"))
    assert plain(one.log) == plain(other.log) and one.log[0]["train_loss"] > 0.5
    assert open_source(sets["hf"]).classes == CLASSES == open_source(sets["tree"]).classes


@pytest.mark.parametrize("workers", [0, 2])
def test_shards_train_the_same_again_and_another_seed_does_not(sets, workers):
    runs = [plain(train(options(sets["wds"], num_classes=3, workers=workers, seed=seed, lr=1e-3)).log)
            for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_shards_are_shuffled_anew_each_epoch_and_hold_each_image_once(sets):
    from vimlearn.training.trainer import Trainer
    trainer = Trainer(options(sets["wds"], num_classes=3, shift=0))
    epochs = [torch.cat([batch.images for batch in trainer.batches.epoch(number)]) for number in (1, 2, 1)]
    assert torch.equal(epochs[0], epochs[2]) and not torch.equal(epochs[0], epochs[1])
    assert [len({row.numpy().tobytes() for row in images}) for images in epochs] == [24, 24, 24]


@pytest.mark.parametrize("processes", [2, 3])
def test_all_processes_together_read_each_image_of_the_shards_once(sets, processes):
    source = open_source(sets["wds"], 3)
    for part in (source.training, source.heldout):
        read = [[(image.tobytes(), label) for image, label in part.share(rank, processes)] for rank in range(processes)]
        assert sorted(itertools.chain(*read)) == sorted((image.tobytes(), label) for image, label in part.share(0, 1))
        assert len(set(itertools.chain(*read))) == len(part)
    # 4 shards of 6 images: two processes have as many each, and go round all of them once.
    streams = [source.training.shuffled(7, rank, 2) for rank in range(2)]
    drawn = [(image.tobytes(), label) for stream in streams for image, label in itertools.islice(stream, 12)]
    assert len(set(drawn)) == 24 == len(source.training)


def test_a_run_over_shards_begins_its_epoch_again(sets, tmp_path, capsys, monkeypatch):
    from stopped_runs import PowerCutError, power_cut, stop_at
    run = {"num_classes": 3, "epochs": 3, "save_steps": 1, "drop_path_rate": 0.3}
    untouched = train(options(sets["wds"], **run))
    with monkeypatch.context() as patch, pytest.raises(PowerCutError):
        stop_at(patch, 5, power_cut)
        train(options(sets["wds"], **run, output=str(tmp_path)))
    assert [path.name for path in (tmp_path / "states").iterdir()] == ["epoch-0002-step-0000000.safetensors"]
    result = train(options(sets["wds"], **run, output=str(tmp_path), resume="auto", quiet=False))
    out = capsys.readouterr().out
    assert "going on with" in out and "after step 0 of epoch 2" in out
    assert "a run that stops is resumed at the start of its epoch" in out
    assert plain(result.log) == plain(untouched.log)
    for name, value in untouched.model.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[name]), name
    with pytest.raises(vimlearn.VimlearnError, match="has workers 0 and now it is 2"):
        train(options(sets["wds"], **run, output=str(tmp_path), resume="auto", workers=2))


def test_more_workers_than_shards(sets):
    with pytest.raises(vimlearn.VimlearnError, match="5 processes read and there are 4 shards"):
        train(options(sets["wds"], num_classes=3, workers=5))


# What is wrong is said before the first step

def refused(capsys, tmp_path, dataset, **changes) -> str:
    """Run a training that must end in one line and leave no folder; return the line."""
    args = command_line(dataset, output=tmp_path / "run", **changes)
    assert cli.main(args) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("vimlearn: ") and err.count("\n") == 1, (out, err)
    assert not (tmp_path / "run").exists()
    return err


@pytest.mark.parametrize("form", ["tree", "wds", "hf"])
def test_wrong_count_of_classes(sets, capsys, tmp_path, form):
    if form == "wds":
        # They do not say: the first label that does not fit is named, with workers too.
        for workers in (0, 2):
            args = command_line(sets[form], num_classes=2, workers=workers)
            assert cli.main(args) == 2
            err = capsys.readouterr().err
            assert "has label 2 and there are 2 classes" in err and err.count("\n") == 1
        assert "do not say how many classes they hold; pass --num-classes" in refused(capsys, tmp_path, sets[form])
    else:
        assert "has 3 classes and num_classes is 2" in refused(capsys, tmp_path, sets[form], num_classes=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_label_that_is_none_is_named(tree, monkeypatch, workers):
    """As the hub has them: -1 where the class is not told."""
    source = open_source(str(tree))
    source.training.reader.samples[5] = (source.training.reader.samples[5][0], -1)
    monkeypatch.setattr("vimlearn.training.trainer.open_source", lambda *args: source)
    with pytest.raises(vimlearn.VimlearnError, match=r"^an image to train on has label -1 and there are 3 classes; "):
        train(options(tree, workers=workers))
    with pytest.raises(vimlearn.VimlearnError, match=r"5\.png has label -1; expected 0 to 2"):
        Images(source.training.reader, ("x", *CLASSES), numbers=(1, 2, 3))[5]


def empty_class(root):
    for path in (root / "val" / "bee").iterdir():
        path.unlink()


def one_part_only(root):
    (root / "train" / "dog").mkdir()
    picture(0, 0).save(root / "train" / "dog" / "1.png")


def no_heldout(root):
    (root / "val").rename(root / "later")


def no_training(root):
    (root / "train").rename(root / "training")


def flat(root):
    for path in list((root / "val").rglob("*.png")):
        path.rename(root / "val" / f"{path.parent.name}-{path.name}")
    for path in (root / "val").iterdir():
        if path.is_dir():
            path.rmdir()


def nested(root):
    (root / "train" / "bee" / "more").mkdir()
    picture(0, 0).save(root / "train" / "bee" / "more" / "1.png")


def loose(root):
    picture(0, 0).save(root / "train" / "1.png")


def no_images(root):
    for path in (root / "val").rglob("*.png"):
        path.unlink()


def too_few(root):
    for path in list((root / "train").rglob("*.png"))[3:]:
        path.rename(path.with_suffix(".txt"))


@pytest.mark.parametrize("spoil, message", [
    (empty_class, "bee holds no image; expected at least one file ending in .png"),
    (one_part_only, "has 4 class folders and .* has 3; dog is in one of them only"),
    (no_heldout, "has no folder val; expected"),
    (no_training, "has no folder train; expected"),
    (flat, "val has no class folders; expected .*; .*.png lies there without a class"),
    (nested, "has images in a folder 'more' below those of the classes, or in none"),
    (loose, "has images in a folder '' below those of the classes, or in none"),
    (no_images, "val.ape holds no image"),
    (too_few, "train.*holds no image"),
])
def test_trees_that_are_not_as_they_should_be(capsys, tmp_path, spoil, message):
    import re
    root = make_tree(tmp_path / "tree")
    spoil(root)
    assert re.search(message, refused(capsys, tmp_path, root))


def test_names_and_paths_that_are_not_there(capsys, tmp_path):
    assert "unknown dataset 'digts', did you mean 'digits'?" in refused(capsys, tmp_path, "digts")
    assert "there is no such folder" in refused(capsys, tmp_path, tmp_path / "nowhere")
    assert "has no _info.json" in refused(capsys, tmp_path, f"wds:{tmp_path}")
    assert "cannot open the Hugging Face dataset" in refused(capsys, tmp_path, f"hf:{tmp_path / 'nowhere'}")
    assert "the images differ in size; pass --img-size" in refused(capsys, tmp_path, make_tree(tmp_path / "tree"),
                                                                   img_size=None)


def test_classes_that_differ_in_case_alone_have_the_same_labels_in_both_parts(tmp_path):
    root = make_tree(tmp_path / "tree", classes=("b", "A", "a", "01", "1"))
    source = open_source(str(root))
    assert source.classes == ("01", "1", "A", "a", "b")
    for part in (source.training, source.heldout):
        for i in range(len(part)):
            assert part.name(i).split("/")[-2] == source.classes[part[i][1]]


def test_imagenet_is_recognised_and_its_counts_are_known(tmp_path, capsys):
    names = [f"n{1440764 + i:08}" for i in range(1000)]
    for part, file in (("train", "1.JPEG"), ("val", "2.JPEG")):
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            (tmp_path / part / name / file).touch()
    source = open_source(str(tmp_path), 1000)
    assert source.description == f"{tmp_path}: ImageNet-1K, 1,000 images to train on, 1,000 held out, 1,000 classes"
    assert source.notes == ("the whole ImageNet-1K has 1,281,167 and 50,000 images",)


def description_of(root):
    return json.loads((root / "_info.json").read_text())


@pytest.mark.parametrize("change, message", [
    (lambda splits: splits["train"].update(num_samples=240), "train add up to 24 and its num_samples is 240"),
    (lambda splits: splits["train"].update(shard_lengths=[24]), "no description of shards: zip"),
    (lambda splits: splits["train"].pop("shard_lengths"), "no description of shards"),
    (lambda splits: splits["train"].pop("num_samples"), "no description of shards"),
    (lambda splits: splits.pop("train"), "has no part called train; it has validation"),
    (lambda splits: splits.pop("validation"), "has no part called val; it has train"),
    (lambda splits: splits["train"]["filenames"].__setitem__(1, "gone.tar"), "1 of 4 shards of train are missing"),
])
def test_shards_that_are_not_as_they_should_be(tree, tmp_path, capsys, change, message):
    import re
    root = make_shards(tmp_path / "shards", tree)
    told = description_of(root)
    change(told["splits"])
    (root / "_info.json").write_text(json.dumps(told))
    assert re.search(message, refused(capsys, tmp_path, f"wds:{root}", num_classes=3))


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_with_other_counts_than_they_say_are_named(tree, tmp_path, workers):
    for split, said in (("train", 300), ("validation", 5)):
        root = make_shards(tmp_path / split, tree)
        told = description_of(root)
        told["splits"][split]["num_samples"] += said - told["splits"][split]["shard_lengths"][0]
        told["splits"][split]["shard_lengths"][0] = said
        (root / "_info.json").write_text(json.dumps(told))
        with pytest.raises(vimlearn.VimlearnError, match=f"^[^\n]*-0.tar holds . images and _info.json says {said}"):
            train(options(f"wds:{root}", num_classes=3, workers=workers, batch_size=24))


def test_a_shard_that_is_cut_off_is_named(tree, tmp_path):
    root = make_shards(tmp_path / "shards", tree)
    shard = root / "set-validation-1.tar"
    shard.write_bytes(shard.read_bytes()[:2000])
    with pytest.raises(vimlearn.VimlearnError, match=r"set-validation-1.tar is damaged or no shard: .*fetch it again"):
        train(options(f"wds:{root}", num_classes=3))


def test_missing_package_is_named(capsys, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "datasets":
            raise ImportError("No module named 'datasets'")
        return real(name, *args, **kwargs)
    monkeypatch.setattr(builtins, "__import__", without)
    assert "need the package datasets: pip install datasets" in refused(capsys, tmp_path, "hf:here")


# Images that cannot be read

def spoil_one(path, how):
    content = path.read_bytes()
    if how == "removed":
        path.unlink()
    else:
        path.write_bytes({"cut": content[:len(content) // 2], "text": b"no image", "nothing": b""}[how])


@pytest.mark.parametrize("how", ["cut", "text", "nothing", "removed"])
@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_image_is_named_counted_and_replaced(tmp_path, capsys, monkeypatch, how, workers):
    root = make_tree(tmp_path / "tree")
    opened = []

    def open_then_spoil(*args):
        opened.append(open_source(*args))
        spoil_one(root / "train" / "bee" / "3.png", how)
        spoil_one(root / "val" / "cat" / "1.png", how)
        return opened[-1]
    monkeypatch.setattr("vimlearn.training.trainer.open_source", open_then_spoil)
    result = train(options(root, workers=workers, output=str(tmp_path / "run")))
    assert [row["unreadable"] for row in read_log(tmp_path / "run" / "log.csv")] == [1, 1]
    err = capsys.readouterr().err
    assert err.count("unreadable, the next image takes its place: ") == 2 and err.count("\n") == 2
    assert err.count(str(root / "train" / "bee" / "3.png")) >= 2
    assert len(result.heldout.labels) == 8
    [line] = result.heldout.unreadable
    assert str(root / "val" / "cat" / "1.png") in line and "\n" not in line


@pytest.mark.parametrize("workers", [0, 1])
def test_more_unreadable_images_than_allowed_stop_the_run(tmp_path, capsys, workers):
    root = make_tree(tmp_path / "tree")
    for number in (1, 2, 3):
        spoil_one(root / "train" / "bee" / f"{number}.png", "text")
    assert cli.main(command_line(root, max_unreadable=2, workers=workers)) == 2
    err = capsys.readouterr().err.splitlines()
    assert len(err) >= 4 and all(line.startswith("unreadable, the next image") for line in err[:-1])
    assert "images could not be read in epoch 1; expected at most 2 (--max-unreadable)" in err[-1]


@pytest.mark.parametrize("workers", [0, 1])
def test_nothing_readable_is_one_line(tmp_path, capsys, workers):
    root = make_tree(tmp_path / "tree")
    for path in (root / "train").rglob("*.png"):
        path.write_bytes(b"")
    assert cli.main(command_line(root, max_unreadable=1000, workers=workers)) == 2
    err = capsys.readouterr().err
    assert err.startswith("vimlearn: 16 images in a row cannot be read; the first: ") and err.count("\n") == 1


def test_an_unreadable_image_in_a_shard_is_named_and_left_out(tree, tmp_path, capsys):
    root = make_shards(tmp_path / "shards", make_tree(tmp_path / "tree"), training=1, heldout=1)
    for name in ("set-train-0.tar", "set-validation-0.tar"):
        content = bytearray((root / name).read_bytes())
        # The first member is an image: spoil it and leave the archive as it is.
        content[512:600] = bytes(88)
        (root / name).write_bytes(content)
    result = train(options(f"wds:{root}", num_classes=3, batch_size=4))
    assert [row["unreadable"] for row in result.log] == [1, 1]
    assert "unreadable, the next image takes its place: " in capsys.readouterr().err
    assert len(result.heldout.labels) == 8 and "ape-0" in result.heldout.unreadable[0]


def test_whatever_a_decoder_raises_is_unreadable(tree, monkeypatch):
    part = open_source(str(tree)).training
    for error in (EOFError("ran out"), IndexError("far\n  off"), MemoryError(), OverflowError("long")):
        def fail(file, error=error):
            raise error
        monkeypatch.setattr("vimlearn.sources.Image.open", fail)
        with pytest.raises(Unreadable, match=r"0.png: [^\n]*$"):
            Images(part.reader, part.classes)[0]
