"""Files that run elsewhere: the scan as one node, the same logits at every batch, and nothing kept that differs."""

import importlib.util
import json
import subprocess
import sys
from collections import Counter

import pytest
import timm
import torch
from helpers import assert_near, scan_inputs, with_gradients
from torch import nn

from vimlearn import VimlearnError, VisionMamba, cli, export, save_checkpoint, selective_scan
from vimlearn.cli_export import ExportOptions
from vimlearn.export import Difference, export_network, open_exported, trace

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

NETWORKS = {
    "middle": {"img_size": (8, 12)},
    "first, one direction": {"img_size": 8, "class_token": "first", "bidirectional": False, "stride": 3},
    "without class token": {"img_size": 8, "class_token": None, "global_pool": "avg", "norm": "layer",
                            "halve_directions": False, "in_chans": 1},
}


def network(name="middle", **changes) -> VisionMamba:
    settings = {"patch_size": 4, "num_classes": 3, "embed_dim": 16, "depth": 1, "d_state": 2}
    return VisionMamba(**{**settings, **NETWORKS[name], **changes}).eval()


@pytest.fixture(scope="module", params=NETWORKS)
def exported(request, tmp_path_factory):
    """A network, its files by format, and the differences that were found when they were written."""
    torch.manual_seed(1)
    model, folder = network(request.param), tmp_path_factory.mktemp("exported")
    program = trace(model)
    found = {form: export_network(model, folder / f"vim.{form}", program=program, notes={"classes": '["a", "b"]'})
             for form in export.FORMATS}
    return model, folder, found


ONE_IS_ENOUGH = pytest.mark.parametrize("exported", ["middle"], indirect=True)


def operations(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path).graph.node)


# The scan

@pytest.mark.parametrize("length, dtype, limit", [(1, torch.float64, 1e-12), (7, torch.float64, 1e-12),
                                                  (7, torch.float32, 1e-5)])
@pytest.mark.parametrize("reverse", [False, True])
def test_the_scan_equals_the_loop(reverse, length, dtype, limit):
    def run(backend):
        return lambda **tensors: selective_scan(**tensors, delta_softplus=True, reverse=reverse,
                                                return_last_state=True, backend=backend)
    tensors = scan_inputs(l=length, dtype=dtype)
    if dtype == torch.float32:
        found, expected = (dict(zip("ys", run(name)(**tensors), strict=True)) for name in ("export", "loop"))
    else:
        found, expected = (with_gradients(run(name), tensors) for name in ("export", "loop"))
    assert_near(found, expected, limit)


# The files

def test_logits_are_those_of_the_network_at_any_batch(exported):
    model, folder, found = exported
    for form in export.FORMATS:
        assert [difference.batch for difference in found[form]] == [2, 1, 5]
        assert all(0 <= difference.relative < 1e-5 for difference in found[form])
        run = open_exported(folder / f"vim.{form}")
        for count in (1, 4):
            images = torch.randn(count, model.patch_embed.in_chans, *model.patch_embed.img_size)
            with torch.no_grad():
                assert_near({form: run(images)}, {form: model(images)}, 1e-5)


def test_the_recurrence_is_one_scan_a_direction(exported):
    model, folder, _ = exported
    assert operations(folder / "vim.onnx")["Scan"] == (2 if model.config["bidirectional"] else 1)
    images = onnx.load(folder / "vim.onnx").graph.input[0]
    assert images.name == "images" and images.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_no_more_nodes_for_more_tokens(tmp_path):
    small, large = (network("first, one direction", img_size=side) for side in (8, 32))
    assert (small.num_tokens, large.num_tokens) == (5, 101)
    for model in (small, large):
        export_network(model, tmp_path / f"{model.num_tokens}.onnx")
    assert operations(tmp_path / "5.onnx") == operations(tmp_path / "101.onnx")


def test_weights_are_stored_once_and_no_paths_of_this_machine(exported):
    model, folder, _ = exported
    numbers = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(len(x.raw_data) for x in onnx.load(folder / "vim.onnx").graph.initializer)
    assert stored < 4 * numbers * 1.2
    assert not any(node.metadata_props for node in onnx.load(folder / "vim.onnx").graph.node)
    for form in export.FORMATS:
        assert b"vimlearn/mixer.py" not in (folder / f"vim.{form}").read_bytes()
    assert {path.name for path in folder.iterdir()} == {"vim.onnx", "vim.pt2"}


@ONE_IS_ENOUGH
def test_files_run_in_a_process_without_vimlearn(exported, tmp_path):
    model, folder, _ = exported
    code = """
import json, sys
sys.modules["vimlearn"] = None
import onnxruntime, torch
folder, images = sys.argv[1], torch.load(sys.argv[2])
extra = {"vimlearn.json": ""}
program = torch.export.load(f"{folder}/vim.pt2", extra_files=extra)
session = onnxruntime.InferenceSession(f"{folder}/vim.onnx")
notes = session.get_modelmeta().custom_metadata_map
assert json.loads(extra["vimlearn.json"]) == notes, (extra, notes)
print(json.dumps([program.module()(images).tolist(), session.run(None, {"images": images.numpy()})[0].tolist(), notes]))
"""
    shape = (model.patch_embed.in_chans, *model.patch_embed.img_size)
    images = torch.randn(3, *shape)
    torch.save(images, tmp_path / "images.pt")
    done = subprocess.run([sys.executable, "-c", code, folder, tmp_path / "images.pt"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pt2, onnx_, notes = json.loads(done.stdout)
    with torch.no_grad():
        expected = model(images)
    assert_near({"pt2": torch.tensor(pt2), "onnx": torch.tensor(onnx_)}, {"pt2": expected, "onnx": expected}, 1e-5)
    assert json.loads(notes["input_size"]) == list(shape) and json.loads(notes["classes"]) == ["a", "b"]


def test_a_fixed_batch_refuses_another(tmp_path):
    model = network("first, one direction").double()
    found = export_network(model, tmp_path / "vim.pt2", batch=1)
    assert [difference.batch for difference in found] == [1] and found[0].relative < 1e-12
    # PyTorch's releases raise different errors.
    with pytest.raises((RuntimeError, AssertionError), match="size"):
        open_exported(tmp_path / "vim.pt2")(torch.zeros(2, 3, 8, 8).double())


# What differs is not kept

def perturbed(form, source, amount):
    """Return what writes the file at `source` again with one number of the head changed."""
    def write(program, path, *_):
        if form == "onnx":
            content = onnx.load(source)
            weight = next(x for x in content.graph.initializer if x.name == "head.weight")
            values = onnx.numpy_helper.to_array(weight).copy()
            values[0, 0] += amount
            weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
            onnx.save(content, path)
        else:
            program = torch.export.load(source)
            program.state_dict["head.weight"].data[0, 0] += amount
            torch.export.save(program, path)
    return write


@ONE_IS_ENOUGH
@pytest.mark.parametrize("form", export.FORMATS)
def test_a_file_that_differs_is_not_kept(exported, form, monkeypatch, tmp_path):
    model, folder, _ = exported
    path = tmp_path / f"vim.{form}"
    path.write_text("an earlier file")
    for amount in (1e-2, float("nan")):
        monkeypatch.setattr(export, f"_write_{form}", perturbed(form, folder / path.name, amount))
        with pytest.raises(VimlearnError, match=f"vim.{form} is not kept: with 2 images its logits differ"):
            export_network(model, path, program=object())
        assert path.read_text() == "an earlier file" and len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(export, f"_write_{form}", perturbed(form, folder / path.name, 0.0))
    assert len(export_network(model, path, program=object())) == 3


def test_logits_of_another_shape_differ():
    assert str(export._difference(2, torch.zeros(2, 4), torch.zeros(2, 3)).relative) == "nan"
    assert export._difference(2, torch.ones(1, 2), torch.tensor([[1.0, -4.0]])) == Difference(2, 5.0, 1.25)


# Bad input

def test_what_cannot_be_exported(tmp_path):
    for model, words in ((nn.Linear(2, 2), "the network is a Linear; expected a vimlearn.VisionMamba"),
                         (network().bfloat16(), "dtype torch.bfloat16; expected float32: call .float()")):
        with pytest.raises(VimlearnError, match=words):
            trace(model)
    for name, words in (("vim.onx", "unknown format 'onx', did you mean 'onnx'"), ("vim", "unknown format ''")):
        with pytest.raises(VimlearnError, match=words):
            export_network(network(), tmp_path / name)
    for opset in (17, 99):
        with pytest.raises(VimlearnError, match=f"opset is {opset}; expected 18 to {onnx.defs.onnx_opset_version()}"):
            export_network(network(), tmp_path / "vim.onnx", opset=opset)


def test_a_damaged_file_cannot_be_opened(tmp_path):
    for form in export.FORMATS:
        (tmp_path / f"vim.{form}").write_bytes(b"nothing")
        with pytest.raises(VimlearnError, match=f"vim.{form} cannot be opened as {form}: "):
            open_exported(tmp_path / f"vim.{form}")


def test_missing_packages_are_named(monkeypatch, tmp_path):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec",
                        lambda name: None if name in ("onnxscript", "onnxruntime") else found(name))
    with pytest.raises(VimlearnError, match="onnx needs onnxscript, onnxruntime: pip install onnxscript onnxruntime"):
        export_network(network(), tmp_path / "vim.onnx")
    assert export.check_format("pt2") == "pt2"


# The command

def said(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["export", *map(str, args)]) == 0
    return capsys.readouterr().out


def refused(capsys, *args) -> str:
    capsys.readouterr()
    assert cli.main(["export", *map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    return err


def test_the_command_writes_both_checks_and_measures(capsys, tmp_path):
    weights = save_checkpoint(network(), tmp_path / "model.safetensors",
                              {"weights": "ema", "epoch": "3", "classes": '["ape", "bee", "cat"]', "crop_pct": "0.9"})
    text = said(capsys, "--checkpoint", weights, "--output", tmp_path / "out", "--img-size", 12, "--rounds", 1)
    assert text.startswith(f"averaged weights (EMA) of epoch 3, from {weights}\n")
    assert "images (any, 3, 12, 12) to logits (any, 3)\n" in text
    assert text.count(" at a time: logits differ by ") == 6
    assert [line.split()[0] for line in text.splitlines()[-3:]] == ["network", "model.onnx", "model.pt2"]
    assert text.count(" images a second ") == 3 and "1 times the network's time" in text.splitlines()[-3]
    notes = {entry.key: entry.value for entry in onnx.load(tmp_path / "out" / "model.onnx").metadata_props}
    assert {name: json.loads(notes[name]) for name in ("classes", "input_size", "mean", "crop_pct")} == {
        "classes": ["ape", "bee", "cat"], "input_size": [3, 12, 12], "mean": [0.485, 0.456, 0.406], "crop_pct": 0.9}
    assert notes["interpolation"] == "bicubic" and json.loads(notes["std"]) == [0.229, 0.224, 0.225]


@pytest.fixture
def written(monkeypatch):
    """Replace tracing and writing, which take minutes for a released network; return what they were asked for."""
    asked = []

    def write(model, path, **settings):
        path.write_bytes(b"x")
        asked.append((model, path, settings))
        return [Difference(2, 0.0, 0.0)]
    monkeypatch.setattr(export, "trace", lambda model, batch: batch)
    monkeypatch.setattr(export, "export_network", write)
    return asked


def test_the_command_takes_a_released_network(capsys, tmp_path, written):
    model = timm.create_model("vim_tiny_patch16_224", img_size=32)
    torch.save(model.state_dict(), tmp_path / "bare.pth")
    said(capsys, "--model", "vim_tiny_patch16_224", "--weights", tmp_path / "bare.pth", "--img-size", 32, "--rounds", 0,
         "--format", "onnx", "--no-batch-dynamic", "--batch-size", 4, "--output", tmp_path / "out", "--opset", 20)
    [(found, path, settings)] = written
    assert torch.equal(found.head.weight, model.head.weight) and found.patch_embed.img_size == (32, 32)
    assert path == tmp_path / "out" / "model.onnx" and (settings["batch"], settings["program"]) == (4, 4)
    assert settings["opset"] == 20 and json.loads(settings["notes"]["classes"])[0] == "n01440764"


def test_the_command_takes_the_network_that_comes_along(capsys, tmp_path, written):
    said(capsys, "--rounds", 0, "--output", tmp_path / "out", "--tolerance", "1e-3")
    assert [path.name for _, path, _ in written] == ["model.onnx", "model.pt2"]
    assert {(s["batch"], s["program"], s["tolerance"], s["opset"]) for _, _, s in written} == {(None, None, 1e-3, 18)}
    assert json.loads(written[0][2]["notes"]["classes"])[:2] == ["airplane", "automobile"]
    assert ExportOptions().opset == export.OPSET and ExportOptions().tolerance == export.TOLERANCE


def test_digits_are_not_normalised(capsys, tmp_path, written):
    weights = save_checkpoint(network(), tmp_path / "model.safetensors", {"dataset": "digits"})
    said(capsys, "--checkpoint", weights, "--rounds", 0, "--output", tmp_path / "out")
    assert not {"mean", "std", "crop_pct", "classes"} & set(written[0][2]["notes"])


@pytest.mark.parametrize("args, message", [
    (["--format", "onx"], "onx"),
    (["--batch-size", "0"], "batch_size is 0; expected at least 1"),
    (["--rounds", "-1"], "rounds is -1; expected at least 0"),
    (["--tolerance", "0"], "tolerance is 0.0; expected more than 0"),
    (["--checkpoint", "nowhere"], "there is no file nowhere; expected"),
    (["--model", "vim_tiny_patch16_22"], "unknown model 'vim_tiny_patch16_22', did you mean"),
    (["--weights", "x"], "--weights and --ema go with --model NAME"),
    (["--output", "file/folder"], "cannot write to file/folder: "),
    (["--ouput", "x"], "unknown option --ouput, did you mean '--output'?"),
])
def test_bad_input_is_one_line(capsys, tmp_path, monkeypatch, args, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("not a folder")
    assert message in refused(capsys, *args)
