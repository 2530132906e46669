"""Which backend an operation takes: by device, by dtype, by name, by environment variable."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import scan_inputs

from vimlearn import VimlearnError, backends, selective_scan
from vimlearn.bidirectional import BIDIRECTIONAL
from vimlearn.conv import CONV
from vimlearn.norm import NORM
from vimlearn.scan import SCAN, selective_scan_loop

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
OPERATIONS = [SCAN, BIDIRECTIONAL, CONV, NORM]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_what_is_there_for_each_device(operation):
    plain = ["parallel", "loop", "export"] if operation in (SCAN, BIDIRECTIONAL) else ["loop", "export"]
    assert operation.available(CPU) == ["numba", *plain]
    assert operation.available(CUDA) == ["triton", *plain]
    assert operation.available(META) == ["numba", "triton", *plain]


@pytest.mark.parametrize("dtype, compiled", [(torch.float32, True), (torch.bfloat16, True), (torch.float16, True),
                                             (torch.float64, False)])
@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.name)
def test_auto_on_the_cpu_is_numba_except_for_float64(operation, dtype, compiled):
    by_name = operation.choose("numba", CPU, dtype)
    assert (operation.choose("auto", CPU, dtype) is by_name) == compiled
    assert operation.choose("auto", META, dtype) is not by_name


def test_the_environment_variable_stands_in_for_auto(monkeypatch):
    monkeypatch.setattr(backends, "DEFAULT_BACKEND", "loop")
    assert SCAN.choose("auto", CPU, torch.float32) is selective_scan_loop
    assert SCAN.choose("parallel", CPU, torch.float32) is not selective_scan_loop
    # The convolution has no "parallel", and goes its own way.
    monkeypatch.setattr(backends, "DEFAULT_BACKEND", "parallel")
    assert CONV.choose("auto", CPU, torch.float32) is CONV.choose("numba", CPU)
    monkeypatch.setattr(backends, "DEFAULT_BACKEND", "nunba")
    with pytest.raises(VimlearnError, match="VIMLEARN_BACKEND is 'nunba', did you mean 'numba'"):
        SCAN.choose("auto", CPU, torch.float32)


def test_the_environment_variable_is_read():
    code = "import torch, vimlearn.scan as s; print(s.SCAN.choose('auto', torch.device('cpu')).__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True,
                          env={**os.environ, "VIMLEARN_BACKEND": "loop"})
    assert done.stdout.strip() == "selective_scan_loop", done.stderr


def test_kernels_are_loaded_at_first_use_only():
    """Importing the package loads no compiler; asking for a scan on the CPU loads Numba and not Triton's kernels."""
    code = """
import sys, torch, vimlearn
assert not {"numba", "vimlearn.fused_numba", "vimlearn.fused_triton"} & set(sys.modules)
x = torch.randn(1, 4, 8)
vimlearn.selective_scan(x, x, -torch.rand(8, 2), x[..., :2], x[..., :2])
assert "vimlearn.fused_numba" in sys.modules and "vimlearn.fused_triton" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_zero_size_and_mixed_devices_are_refused_for_every_backend():
    tensors = scan_inputs(dtype=torch.float32)
    for backend in ("auto", "numba", "parallel", "loop"):
        with pytest.raises(VimlearnError, match="which is empty"):
            selective_scan(**(tensors | {"u": tensors["u"][:, :0]}), backend=backend)
        with pytest.raises(VimlearnError, match="move both to one device"):
            selective_scan(**(tensors | {"B": tensors["B"].to("meta")}), backend=backend)


def test_what_was_chosen_is_forgotten_with_a_new_backend_and_told_apart_by_dtype():
    operation = backends.Operation("scan")
    operation.register("loop", lambda: "loop")
    assert operation.choose("auto", CPU, torch.float32) == operation.choose("auto", CPU, torch.float32) == "loop"
    operation.register("numba", lambda: "numba", devices=("cpu",), dtypes=(torch.float32,), before="loop")
    assert [operation.choose("auto", CPU, dtype) for dtype in (torch.float32, torch.float64)] == ["numba", "loop"]
    assert [operation.choose(name, CPU, torch.float32) for name in ("loop", "numba")] == ["loop", "numba"]
