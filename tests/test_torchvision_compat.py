"""torchvision imports beside any PyTorch after `import vimlearn`, and nothing is declared where nothing is missing."""

import subprocess
import sys

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from vimlearn import torchvision_compat
from vimlearn.errors import VimlearnError
from vimlearn.torchvision_compat import declare_missing_ops, nms

# In a process that starts with this, no compiled library loads, as beside a PyTorch that torchvision does not fit.
NO_LIBRARY = """
import torch
def refuse(path):
    raise OSError("this library does not load")
torch.ops.load_library = refuse
"""


def run(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def greedy(boxes, scores, threshold):
    """The definition, box by box in plain Python."""
    def overlap(a, b):
        width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
        height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
        return width * height / union if union else 0.0

    kept = []
    for index in sorted(range(len(scores)), key=lambda i: -scores[i]):
        if all(overlap(boxes[index], boxes[other]) <= threshold for other in kept):
            kept.append(index)
    return kept


def test_vimlearn_imports_alone():
    done = run("import vimlearn")
    assert done.returncode == 0, done.stderr


def test_timm_and_torchvision_import_after_vimlearn():
    done = run("import vimlearn, timm, torchvision, torch\n"
               "boxes = torch.tensor([[0., 0., 2., 2.], [0., 0., 2., 1.9], [5., 5., 6., 6.]])\n"
               "scores = torch.tensor([0.5, 0.9, 0.1])\n"
               "assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1, 2]\n"
               "assert torchvision.ops.batched_nms(boxes, scores, torch.tensor([0, 1, 1]), 0.5).tolist() == [1, 0, 2]")
    assert done.returncode == 0, done.stderr


def test_torchvision_still_stops_where_its_ops_are_missing():
    done = run(NO_LIBRARY + "import torchvision")
    assert "torchvision::nms does not exist" in done.stderr, "torchvision imports by itself now: drop this module"


@pytest.mark.parametrize("late", ["", "try:\n    import timm\nexcept RuntimeError:\n    pass\n"],
                         ids=["before timm", "after timm failed"])
def test_missing_ops_are_declared(late):
    done = run(NO_LIBRARY + late + "import vimlearn\n"
               "from vimlearn import torchvision_compat\n"
               "assert len(torchvision_compat._libraries) == 1\n"
               "import timm, torchvision\n"
               "boxes, scores = torch.tensor([[0., 0., 1., 1.], [0., 0., 1., 1.]]), torch.tensor([0.1, 0.2])\n"
               "assert torchvision.ops.nms(boxes, scores, 0.5).tolist() == [1]\n"
               "pooled = torchvision.ops.roi_align(torch.ones(1, 1, 4, 4), [boxes], 2)\n"
               "assert pooled.shape == (2, 1, 2, 2)")
    assert done.returncode == 0, done.stderr


def test_nothing_is_declared_where_the_compiled_ops_load(monkeypatch):
    loaded, before = [], list(torchvision_compat._libraries)
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(torch.ops, "load_library", loaded.append)
    assert declare_missing_ops() == ()
    assert len(loaded) == 1
    assert "torchvision" in loaded[0]
    assert torchvision_compat._libraries == before


def test_nothing_is_declared_where_the_ops_exist_already(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr(torchvision_compat, "_load_compiled_ops", lambda: False)
    monkeypatch.setattr(torchvision_compat, "SCHEMAS", {"nms": torchvision_compat.SCHEMAS["nms"]})
    assert declare_missing_ops() == ()


def test_nothing_is_declared_without_torchvision(monkeypatch):
    monkeypatch.delitem(sys.modules, "torchvision")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.setattr(torchvision_compat, "SCHEMAS", {"absent": "absent(Tensor x) -> Tensor"})
    assert declare_missing_ops() == ()


def test_nothing_is_declared_after_torchvision_was_imported(monkeypatch):
    monkeypatch.setattr(torchvision_compat, "SCHEMAS", {"absent": "absent(Tensor x) -> Tensor"})
    assert "torchvision" in sys.modules
    assert declare_missing_ops() == ()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40), st.floats(0.05, 0.95))
def test_nms_equals_its_definition(seed, count, threshold):
    generator = torch.Generator().manual_seed(seed)
    boxes = torch.rand(count, 4, generator=generator, dtype=torch.float64)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.randint(0, 20, (count,), generator=generator).double()  # many ties
    expected = greedy(boxes.tolist(), scores.tolist(), threshold)
    found = nms(boxes, scores, threshold)
    assert found.dtype == torch.int64
    assert found.tolist() == expected
    assert torchvision.ops.nms(boxes, scores, threshold).tolist() == expected


def test_nms_keeps_boxes_that_touch_or_have_no_area_and_drops_only_above_the_threshold():
    touching = torch.tensor([[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 2.0, 1.0]])
    assert nms(touching, torch.tensor([1.0, 0.5]), 0.0).tolist() == [0, 1]
    points = torch.zeros(2, 4)
    assert nms(points, torch.tensor([0.1, 0.2]), 0.5).tolist() == [1, 0]
    half = torch.tensor([[0.0, 0.0, 2.0, 1.0], [0.0, 0.0, 1.0, 1.0]])  # overlap exactly 0.5
    assert nms(half, torch.tensor([1.0, 0.5]), 0.5).tolist() == [0, 1]
    assert nms(half, torch.tensor([1.0, 0.5]), 0.49).tolist() == [0]


def test_nms_computes_half_precision_boxes_in_float32():
    boxes = torch.tensor([[0.0, 0.0, 400.0, 400.0], [0.0, 0.0, 400.0, 380.0]], dtype=torch.float16)  # areas overflow
    assert nms(boxes, torch.tensor([0.2, 0.9], dtype=torch.float16), 0.5).tolist() == [1]


@pytest.mark.parametrize("boxes, scores", [((3, 5), (3,)), ((3, 4), (2,)), ((4,), (1,)), ((3, 4), (3, 1))])
def test_nms_names_shapes_that_do_not_fit(boxes, scores):
    with pytest.raises(VimlearnError, match=r"expected \(m, 4\) and \(m,\)"):
        nms(torch.zeros(boxes), torch.zeros(scores), 0.5)
