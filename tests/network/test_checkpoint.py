"""Weights from and to files: every form, every way in which they do not fit, and files that mean harm."""

import argparse
import hashlib
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from published_weights import published_content
from safetensors.torch import save_file

from vimlearn import VimlearnError, VisionMamba, download, load_checkpoint, resize_position_embedding, save_checkpoint
from vimlearn.checkpoint import load_model, read_notes


def network(**settings):
    return VisionMamba(**{"img_size": 16, "patch_size": 4, "num_classes": 5, "embed_dim": 16, "depth": 2, **settings})


def assert_same(model, other):
    state = other.state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.fixture
def published(tmp_path):
    """A file in the published form, and the network in it; `model_ema` holds other weights."""
    model, ema = network(), network()
    torch.save(published_content(model, ema), tmp_path / "vim.pth")
    return tmp_path / "vim.pth", model, ema


def test_published_form(published):
    path, model, ema = published
    target = network()
    report = load_checkpoint(target, path)
    assert_same(target, model)
    assert len(report.loaded) == len(model.state_dict()) and not (report.resized or report.reset or report.dropped)
    load_checkpoint(target, path, weights="ema")
    assert_same(target, ema)


@pytest.mark.parametrize("old_format", [False, True])
def test_plain_state_dict_and_data_parallel_prefix(tmp_path, old_format):
    model = network()
    for prefix in ("", "module."):
        state = {prefix + k: v for k, v in model.state_dict().items()}
        torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=not old_format)
        target = network()
        load_checkpoint(target, tmp_path / "w.pt")
        assert_same(target, model)


def test_save_and_load(tmp_path):
    model = network(class_token="first", halve_directions=False, norm="layer")
    path = save_checkpoint(model, tmp_path / "deep" / "w.safetensors", {"note": "x"})
    loaded = load_model(path)
    assert loaded.config == model.config and not loaded.training
    assert_same(loaded, model)
    assert [p.name for p in path.parent.iterdir()] == ["w.safetensors"]


def test_what_is_saved_builds_again(tmp_path):
    """Also from a wrapper of `torch.compile`, and after blocks were cut off; the backend is not stored."""
    model = network(depth=3, backend="loop")
    model.prune_intermediate_layers([1], prune_head=False)
    loaded = load_model(save_checkpoint(torch.compile(model), tmp_path / "w.safetensors", {"epoch": 3}))
    assert_same(loaded, model)
    assert loaded.config["depth"] == 2 and loaded.config["backend"] == "auto"
    torch.save(torch.compile(model).state_dict(), tmp_path / "w.pth")
    load_checkpoint(loaded, tmp_path / "w.pth")


def test_saving_what_cannot_be_saved(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(VimlearnError, match="cannot write"):
        save_checkpoint(network(), tmp_path / "file" / "w.safetensors")
    with pytest.raises(VimlearnError, match="is a Linear"):
        save_checkpoint(torch.nn.Linear(1, 1), tmp_path / "w.safetensors")


@pytest.mark.parametrize("start", [b"PK", b"\x80\x02"])
def test_settings_are_found_whatever_the_length_of_the_header(tmp_path, start):
    """The first bytes of safetensors are a length, and may look like the mark of another format."""
    model, wanted = network(halve_directions=False), int.from_bytes(start, "little")
    path = save_checkpoint(model, tmp_path / "w.safetensors", {"note": ""})
    length = int.from_bytes(path.read_bytes()[:8], "little")
    padding = (wanted - length) % 65536
    path = save_checkpoint(model, path, {"note": "x" * padding})
    assert path.read_bytes()[:2] == start
    assert load_model(path).config["halve_directions"] is False


@pytest.mark.parametrize("make", [lambda t: t.to_sparse(), lambda t: t.to("meta"), lambda t: t.to(torch.int8),
                                  lambda t: t.to(torch.complex64)], ids=["sparse", "meta", "int8", "complex"])
def test_tensors_that_are_no_plain_weights(tmp_path, make):
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    torch.save(network().state_dict() | {"head.weight": make(torch.ones(5, 16))}, tmp_path / "w.pth")
    with pytest.raises(VimlearnError, match=r"head.weight is a tensor of dtype"):
        load_checkpoint(target, tmp_path / "w.pth")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


def test_bfloat16_weights_are_widened(tmp_path):
    model = network().bfloat16()
    torch.save(model.state_dict(), tmp_path / "w.pth")
    target = network()
    load_checkpoint(target, tmp_path / "w.pth")
    assert_same(target, model.float())


@pytest.mark.parametrize("settings", ['{"patch_size":16,"stride":null,"img_size":[]}', "[" * 100000, "3",
                                      '{"patch_size":4,"stride":null,"img_size":[16.0,16.0]}',
                                      '{"patch_size":4,"stride":null,"img_size":[16,16,16]}'])
def test_settings_that_a_stranger_wrote(tmp_path, settings):
    """Nonsense beside good weights either is named, or is passed over and the weights load."""
    model = network()
    save_file(model.state_dict(), tmp_path / "w.safetensors", {"vimlearn_config": settings})
    target = network(img_size=32)
    try:
        load_checkpoint(target, tmp_path / "w.safetensors")
    except VimlearnError:
        assert settings.startswith("[")
    else:
        assert torch.equal(target.head.weight, model.head.weight)


def test_a_failed_write_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = save_checkpoint(network(), tmp_path / "w.safetensors")
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr("vimlearn.checkpoint.os.replace", full)
    with pytest.raises(VimlearnError, match="No space left"):
        save_checkpoint(network(), path)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


class Payload:
    def __reduce__(self):
        return os.mkdir, ("harm",)


@pytest.mark.parametrize("write", [lambda c, p: torch.save(c, p), lambda c, p: p.write_bytes(pickle.dumps(c)),
                                   lambda c, p: torch.save(c, p, _use_new_zipfile_serialization=False)],
                         ids=["zip", "pickle", "old"])
@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: {"model": {}, "args": x},
                                  lambda x: {"model": {}, "args": argparse.Namespace(a=x)}],
                         ids=["bare", "args", "namespace"])
def test_a_hostile_file_runs_nothing(tmp_path, monkeypatch, write, wrap):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "hostile.pth"
    write(wrap(Payload()), path)
    with pytest.raises(VimlearnError, match=r"was not opened|damaged"):
        load_checkpoint(network(), path)
    assert not (tmp_path / "harm").exists()
    # The payload is live: Python's own reader would have run it.
    if path.read_bytes()[:2] != b"PK" and write(wrap(Payload()), path) is not None:
        pickle.loads(path.read_bytes())
        assert (tmp_path / "harm").exists()


@pytest.mark.parametrize("content", [b"", b"PK", b"PK\x03\x04 garbage", b"\x80\x02garbage", b"text", b"\x00" * 100,
                                     b"\xff" * 64, (1 << 40).to_bytes(8, "little") + b"{}"])
def test_damaged_files(tmp_path, content):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(VimlearnError, match="damaged"):
        load_checkpoint(network(), tmp_path / "w.pth")


@pytest.mark.parametrize("name", ["vim.pth", "w.safetensors"])
@pytest.mark.parametrize("keep", [0.02, 0.5, 0.99])
def test_truncated_files(published, name, keep):
    folder = published[0].parent
    save_checkpoint(network(), folder / "w.safetensors")
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:int(len(content) * keep)])
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    with pytest.raises(VimlearnError, match="damaged"):
        load_checkpoint(target, folder / name)
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("content", [
    {"epoch": 1}, [1, 2], {"model": {"a": 1}}, {}], ids=["other", "list", "numbers", "empty"])
def test_files_without_weights(tmp_path, content):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(VimlearnError, match="no state dict"):
        load_checkpoint(network(), tmp_path / "w.pth")


def change(state, **changes):
    return {k: v for k, v in {**state, **changes}.items() if v is not None}


@pytest.mark.parametrize("changes, words", [
    ({"norm_f.weight": None}, "1 missing: norm_f.weight"),
    ({"extra": torch.ones(1)}, "1 unexpected: extra"),
    ({"layers.0.mixer.D": torch.ones(3)}, r"1 misshapen: layers.0.mixer.D \(3,\), expected \(32,\)"),
    ({"head.weight": torch.ones(7, 16), "head.bias": torch.ones(7)}, "7 classes and the model 5.*reset_head"),
    ({"pos_embed": torch.ones(1, 12, 16)}, "no square"),
    ({"pos_embed": torch.ones(1, 17, 8)}, "misshapen: pos_embed"),
    ({"pos_embed": torch.ones(17)}, "misshapen: pos_embed")])
def test_what_does_not_fit_is_named_and_changes_nothing(tmp_path, changes, words):
    target = network()
    before = {k: v.clone() for k, v in target.state_dict().items()}
    save_file(change(network().state_dict(), **changes), tmp_path / "w.safetensors")
    with pytest.raises(VimlearnError, match=words):
        load_checkpoint(target, tmp_path / "w.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in target.state_dict().items())


@pytest.mark.parametrize("setting, value", [("class_token", "first"), ("halve_directions", False), ("norm_eps", 1e-6)])
def test_settings_that_leave_no_trace_in_shapes_are_compared(tmp_path, setting, value):
    path = save_checkpoint(network(**{setting: value}), tmp_path / "w.safetensors")
    with pytest.raises(VimlearnError, match=f"{setting}={value!r}"):
        load_checkpoint(network(), path)


def test_a_class_token_elsewhere_is_named_even_without_settings(published):
    """A published file says nothing of its class token; it stands in the middle unless the caller says otherwise."""
    with pytest.raises(VimlearnError, match="class_token='middle' and the model has 'first'"):
        load_checkpoint(network(class_token="first"), published[0])
    target = network(class_token="first")
    load_checkpoint(target, published[0], source_class_token="first")
    assert_same(target, published[1])


def test_other_classes_keep_the_fresh_head(published):
    path, model, _ = published
    target = network(num_classes=3)
    fresh = target.head.weight.clone()
    assert load_checkpoint(target, path, reset_head=True).reset == ["head.bias", "head.weight"]
    assert torch.equal(target.head.weight, fresh) and torch.equal(target.cls_token, model.cls_token)


def test_backbone_without_head_and_class_token(published):
    """A 17-row checkpoint loads into a network without class token: its row is taken out of the middle."""
    path, model, _ = published
    target = network(num_classes=0, class_token=None, global_pool="avg")
    report = load_checkpoint(target, path)
    assert report.dropped == ["head.bias", "head.weight", "cls_token"]
    rows = torch.cat([model.pos_embed[:, :8], model.pos_embed[:, 9:]], dim=1)
    assert torch.equal(target.pos_embed, rows)


def test_missing_class_token_is_an_error(tmp_path):
    save_file(network(class_token=None, global_pool="avg").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(VimlearnError, match="no row for a class token"):
        load_checkpoint(network(), tmp_path / "w.safetensors")


@pytest.mark.parametrize("size", [32, (24, 40)])
def test_positions_follow_the_image_size(published, size):
    path, model, _ = published
    target = network(img_size=size)
    assert load_checkpoint(target, path).resized == ["pos_embed"]
    expected = resize_position_embedding(model.pos_embed, (4, 4), target.patch_embed.grid_size, old_class_index=8,
                                         new_class_index=target.class_token_index)
    assert torch.equal(target.pos_embed, expected)


def test_non_square_source_needs_its_grid(tmp_path):
    model = network(img_size=(16, 24))
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    target = network(img_size=(24, 16))
    load_checkpoint(target, tmp_path / "w.safetensors", source_grid=(4, 6))
    assert not torch.equal(target.pos_embed, model.pos_embed)
    # A file with settings knows its grid itself.
    other = network(img_size=(24, 16))
    load_checkpoint(other, save_checkpoint(model, tmp_path / "v.safetensors"))
    assert_same(other, target)


def test_grids_are_not_guessed_wrong(tmp_path):
    """A square number of rows is a square grid, also where the model's oblong grid has the same count."""
    torch.save(network().state_dict(), tmp_path / "w.pth")
    assert load_checkpoint(network(img_size=(8, 32)), tmp_path / "w.pth").resized == ["pos_embed"]
    assert not load_checkpoint(network(img_size=(8, 32)), tmp_path / "w.pth", source_grid=(2, 8)).resized
    with pytest.raises(VimlearnError, match=r"source_grid is .3, 3.; expected .* 16 patches"):
        load_checkpoint(network(img_size=32), tmp_path / "w.pth", source_grid=(3, 3))


def test_resize_keeps_float64():
    rows = torch.randn(1, 17, 2, dtype=torch.float64)
    arguments = {"old_grid": (4, 4), "new_grid": (6, 6), "old_class_index": 8, "new_class_index": 18}
    wide, narrow = (resize_position_embedding(r, **arguments) for r in (rows, rows.float()))
    assert 0 < (wide - narrow).abs().max() < 1e-5


def ramp(grid, class_index):
    """Positions that say where they are: (row, column) scaled to 0 ... 1, and a class row of 7s."""
    rows, columns = grid
    r = (torch.arange(rows) + 0.5) / rows
    c = (torch.arange(columns) + 0.5) / columns
    patches = torch.stack(torch.meshgrid(r, c, indexing="ij"), dim=-1).reshape(1, -1, 2)
    return torch.cat([patches[:, :class_index], torch.full((1, 1, 2), 7.0), patches[:, class_index:]], dim=1)


def test_resize_keeps_places_and_the_class_row():
    resized = resize_position_embedding(ramp((14, 14), 98), (14, 14), (28, 28), old_class_index=98,
                                        new_class_index=392)
    expected = ramp((28, 28), 392)
    # Away from the border bicubic follows a ramp to a tenth of a new cell.
    inner = (expected[0] - 0.5).abs().amax(-1) < 0.35
    assert (resized - expected)[0, inner].abs().max() < 0.1 / 28
    assert (resized[0, 392] == 7).all() and ((resized[0] == 7).all(-1)).sum() == 1


def test_published_rule_is_off_by_a_cell_and_smears_the_class_row():
    """Row 0 is taken for the class row: patches before the class token land one cell early."""
    rows = ramp((14, 14), 98)
    found = resize_position_embedding(rows, (14, 14), (14, 14), old_class_index=98, new_class_index=98,
                                      rule="published")
    assert torch.equal(found, rows)
    found = resize_position_embedding(rows, (14, 14), (27, 27), old_class_index=98, new_class_index=364,
                                      rule="published")
    grid = F.interpolate(rows[:, 1:].reshape(1, 14, 14, 2).permute(0, 3, 1, 2), size=(27, 27), mode="bicubic")
    torch.testing.assert_close(found, torch.cat([rows[:, :1], grid.flatten(2).transpose(1, 2)], dim=1))
    right = resize_position_embedding(rows, (14, 14), (27, 27), old_class_index=98, new_class_index=364)
    assert (found - right).abs().max() > 1


def test_first_class_token_both_rules_agree():
    rows = torch.cat([torch.full((1, 1, 2), 7.0), torch.randn(1, 16, 2)], dim=1)
    both = [resize_position_embedding(rows, (4, 4), (7, 7), old_class_index=0, new_class_index=0, rule=rule)
            for rule in ("grid", "published")]
    assert torch.equal(*both)


@pytest.mark.parametrize("arguments, words", [
    ({"weights": "best"}, "unknown weights"), ({"position_rule": "bilinear"}, "unknown rule"),
    ({"sha256": "0" * 64}, "hashes to")])
def test_wrong_arguments(published, arguments, words):
    with pytest.raises(VimlearnError, match=words):
        load_checkpoint(network(img_size=32), published[0], **arguments)


def test_ema_is_missing(tmp_path):
    torch.save({"model": network().state_dict()}, tmp_path / "w.pth")
    with pytest.raises(VimlearnError, match="no 'model_ema'"):
        load_checkpoint(network(), tmp_path / "w.pth", weights="ema")


@pytest.mark.parametrize("source", ["nowhere.pth", "runs/nowhere.safetensors", "./a/b.pth", "/a/b/c/d.pth"])
def test_missing_file(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(VimlearnError, match="no file"):
        load_checkpoint(network(), source)


def test_not_a_network_and_numpy_files(tmp_path):
    with pytest.raises(VimlearnError, match="is a Linear"):
        load_checkpoint(torch.nn.Linear(1, 1), "x")
    np.save(tmp_path / "w.npy", np.ones(3))
    with pytest.raises(VimlearnError, match="damaged"):
        load_checkpoint(network(), tmp_path / "w.npy")


def test_url_is_downloaded_once_and_checked(tmp_path, monkeypatch):
    """A file server on this machine; a file that does not hash as told is refused and removed."""
    import http.server
    import threading
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "cache"))
    model = network()
    path = save_checkpoint(model, tmp_path / "w.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=tmp_path)

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/w.safetensors"
    try:
        with pytest.raises(VimlearnError, match="hashes to"):
            load_checkpoint(network(), url, sha256="1" * 64)
        assert not list((tmp_path / "cache").rglob("*.safetensors"))
        target = network()
        load_checkpoint(target, url, sha256=digest)
        assert_same(target, model)
        with pytest.raises(VimlearnError, match="cannot download"):
            load_checkpoint(network(), url + ".missing")
    finally:
        server.shutdown()
    load_checkpoint(network(), url, sha256=digest)


def test_a_download_that_breaks_off_is_not_kept(tmp_path, monkeypatch):
    import http.server
    import threading
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            self.wfile.write(b"x" * 500)

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(VimlearnError, match="cannot download"):
            load_checkpoint(network(), f"http://127.0.0.1:{server.server_port}/w.pth")
    finally:
        server.shutdown()
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
    with pytest.raises(VimlearnError, match="cannot download"):
        load_checkpoint(network(), "http://localhost:abc/w.pth")


def test_timm_loads_the_weights_that_the_caller_names(tmp_path, monkeypatch):
    """`pretrained=True` takes the caller's file before the published one."""
    seen = []
    monkeypatch.setattr("vimlearn.registry.load_checkpoint", lambda model, source, **_: seen.append(source))
    for overlay in ({"file": "own.safetensors"}, {"hf_hub_id": "me/mine", "hf_hub_filename": "w.safetensors"}, None):
        timm.create_model("vim_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay=overlay, depth=1)
    assert seen == ["own.safetensors", "me/mine/w.safetensors",
                    "hub:hustvl/Vim-tiny-midclstok/vim_t_midclstok_76p1acc.pth"]


def test_pretrained_takes_the_published_file_and_checks_it(tmp_path, monkeypatch):
    """`pretrained=True` asks the hub for the one file, compares its hash, and converts it from the published form."""
    name, kept = "vim_tiny_patch16_224", {"depth": 1}
    model, ema = (timm.create_model(name, **kept) for _ in range(2))
    path, asked = tmp_path / "vim_t_midclstok_76p1acc.pth", []
    torch.save(published_content(model, ema), path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: (asked.append(args), str(path))[1])
    with pytest.raises(VimlearnError, match="hashes to"):
        timm.create_model(name, pretrained=True, **kept)
    monkeypatch.setitem(download.KNOWN_SHA256, path.name, hashlib.sha256(path.read_bytes()).hexdigest())
    assert_same(timm.create_model(name, pretrained=True, **kept), model)
    assert asked == [("hustvl/Vim-tiny-midclstok", path.name)] * 2
    fewer = timm.create_model(name, pretrained=True, num_classes=7, **kept)
    assert torch.equal(fewer.layers[0].mixer.A_log, model.layers[0].mixer.A_log) and fewer.head.out_features == 7


def test_hub_source_is_never_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, asked = network(), []
    path = save_checkpoint(model, "hub/w.safetensors").rename("w.safetensors")
    for folder in ("owner/name", "hub:owner/name"):
        Path(folder).mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args: (asked.append(args), str(path))[1])
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda repo: ["README.md", "w.safetensors"])
    for source in ("hub:owner/name", "hub:owner/name/w.safetensors", "hub:owner/name.pth"):
        target = network()
        load_checkpoint(target, source)
        assert_same(target, model)
    assert asked == [("owner/name", "w.safetensors")] * 2 + [("owner/name.pth", "w.safetensors")]
    for source in ("hub:", "hub:owner", "hub:owner/", "hub:a/b/c/d"):
        with pytest.raises(VimlearnError, match=f"no file {source}; expected a path, a URL, shipped:cifar10, or a hub"):
            load_checkpoint(network(), source)


def test_notes_of_a_file(published, tmp_path):
    """The published trainer counts epochs from 0."""
    assert read_notes(published[0]) == {"epoch": "300"}
    path = save_checkpoint(network(), tmp_path / "w.safetensors", {"epoch": 3, "weights": "ema"})
    notes = read_notes(path)
    assert (notes["epoch"], notes["weights"]) == ("3", "ema")
    torch.save(network().state_dict(), tmp_path / "bare.pth")
    assert read_notes(tmp_path / "bare.pth") == {}


def test_hub_failure_is_one_line(monkeypatch):
    def fail(*_, **__):
        raise ConnectionError("no connection")
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(VimlearnError, match="cannot fetch someone/vim"):
        load_checkpoint(network(), "someone/vim/w.pth")


def test_hub_file_with_a_known_name_is_checked(tmp_path, monkeypatch):
    name = "vim_t_midclstok_76p1acc.pth"
    assert name in download.KNOWN_SHA256
    torch.save(network().state_dict(), tmp_path / name)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: str(tmp_path / name))
    with pytest.raises(VimlearnError, match="hashes to"):
        load_checkpoint(network(), f"hustvl/Vim-tiny-midclstok/{name}")
