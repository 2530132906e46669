"""Who runs a kernel for the CPU: threads of PyTorch, threads of Python, forked children, every threading layer."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from vimlearn.kernels import numba_runtime

from vimlearn import causal_conv1d, selective_scan

SCAN = """
import sys, threading, torch, vimlearn
torch.manual_seed(0)
u, delta, z = (torch.randn(2, 90, 200) for _ in range(3))
A, (B, C) = -torch.rand(200, 4), torch.randn(2, 2, 90, 4)
def scan():
    return vimlearn.selective_scan(u, delta, A, B, C, z=z, delta_softplus=True, backend="numba")
expected = vimlearn.selective_scan(u, delta, A, B, C, z=z, delta_softplus=True, backend="loop")
def right(y):
    return bool(torch.allclose(y, expected, rtol=1e-4, atol=1e-4))
"""
FROM_TWO_THREADS = SCAN + """
scan()
found = []
def work():
    for _ in range(40):
        found.append(right(scan()))
threads = [threading.Thread(target=work) for _ in range(2)]
[t.start() for t in threads]; [t.join() for t in threads]
assert len(found) == 80 and all(found)
print("fine")
"""
FORKED = SCAN + """
import os
torch.set_num_threads(2)
if sys.argv[1] == "used before":
    assert right(scan())
child = os.fork()
if child == 0:
    u.requires_grad_()
    y = scan()
    y.sum().backward()
    os._exit(0 if right(y) and torch.get_num_threads() == 1 and bool(u.grad.isfinite().all()) else 3)
_, status = os.waitpid(child, 0)
assert os.waitstatus_to_exitcode(status) == 0, status
assert right(scan())
print("fine")
"""
POOL = SCAN + """
import multiprocessing
def work(_):
    return right(scan())
if __name__ == "__main__":
    torch.set_num_threads(2)
    assert right(scan())
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert all(pool.map(work, range(4)))
    print("fine")
"""


def assert_fine_apart(code, *arguments, **environment):
    """Run `code` in a process of its own; a hang is a failure."""
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=200,
                          env={**os.environ, **environment})
    assert done.returncode == 0 and done.stdout.strip().endswith("fine"), f"{done.returncode}\n{done.stderr[-2000:]}"


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("layer", ["default", "workqueue", "omp", "tbb"])
def test_two_python_threads_call_at_once_on_every_threading_layer(layer):
    assert_fine_apart(FROM_TWO_THREADS, NUMBA_THREADING_LAYER=layer, OMP_NUM_THREADS="2")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize("state", ["used before", "not used before"])
def test_a_forked_child_gets_the_right_answer(state):
    assert_fine_apart(FORKED, state)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_pool_gets_the_right_answers():
    assert_fine_apart(POOL)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_second_openmp_runtime_is_loaded():
    """Calling a kernel loads no OpenMP or TBB library that was not there before it."""
    code = SCAN + """
def runtimes():
    names = {line.split("/")[-1].strip() for line in open("/proc/self/maps") if "/" in line}
    return {n for n in names if any(k in n for k in ("gomp", "iomp", "libomp", "tbb"))}
before = runtimes()
scan()
assert runtimes() == before and before, (before, runtimes())
print("fine")
"""
    assert_fine_apart(code)


def threads_that_worked(calls=30):
    """Return the largest number of slots that threads took in one of many calls."""
    inputs = [torch.randn(8, 400, 256) for _ in range(2)]
    A, B = -torch.rand(256, 8), torch.randn(8, 400, 8)
    most, run = 0, numba_runtime.run

    def counting(kernel, args, threads):
        nonlocal most
        run(kernel, args, threads)
        # The first number of the record counts who came.
        most = max(most, int.from_bytes(args[:8], sys.byteorder))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vimlearn.kernels.numba_scan.run", counting)
        for _ in range(calls):
            selective_scan(*inputs, A, B, B, backend="numba")
    return most


def test_kernels_follow_the_number_of_threads_of_pytorch(threads):
    for count in (1, 2):
        threads(count)
        assert threads_that_worked() == count


def test_without_openmp_threads_of_python_do_the_work(threads, monkeypatch):
    monkeypatch.setattr(numba_runtime, "_openmp_of_torch", lambda: None)
    threads(2)
    assert threads_that_worked() == 2
    u, A, B = torch.randn(2, 50, 130), -torch.rand(130, 3), torch.randn(2, 50, 3)
    found, errors = selective_scan(u, u, A, B, B, backend="numba", delta_softplus=True), []
    expected = selective_scan(u, u, A, B, B, backend="loop", delta_softplus=True)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    def work():
        for _ in range(20):
            if not torch.equal(selective_scan(u, u, A, B, B, backend="numba", delta_softplus=True), found):
                errors.append("differs")

    callers = [threading.Thread(target=work) for _ in range(3)]
    [t.start() for t in callers]
    [t.join() for t in callers]
    assert not errors


def test_openmp_of_pytorch_is_found_where_pytorch_uses_it():
    if sys.platform != "linux" or "OpenMP" not in torch.__config__.parallel_info():
        pytest.skip("this PyTorch does not run on OpenMP")
    assert numba_runtime._openmp_of_torch() is not None


def test_a_kernel_compiles_where_nothing_can_be_cached(tmp_path):
    """Without a folder to write to there is a warning and a right answer."""
    code = SCAN + """
import warnings, numba
def refuse(self, *args, **kwargs):
    raise RuntimeError("cannot cache function: no locator available")
import numba.core.ccallback
numba.core.ccallback.CFunc.enable_caching = refuse
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    assert right(scan())
assert any("NUMBA_CACHE_DIR" in str(w.message) for w in seen)
print("fine")
"""
    assert_fine_apart(code)


def test_a_record_is_packed_by_name():
    """In any order of the names, with 0 in the fields that are not given."""
    inner = np.dtype([("x", np.int64), ("y", np.int64)])
    record = np.dtype([*numba_runtime.TEAM, ("scale", np.float64), ("first", inner), ("second", inner)])
    for values in ({"second.x": 7, "tasks": 3, "scale": 0.5}, {"scale": 0.5, "tasks": 3, "second.x": 7}):
        found = np.frombuffer(numba_runtime.pack(record, values), record)[0]
        assert found.tolist() == (0, 0, 3, 0.5, (0, 0), (7, 0))
    with pytest.raises(AssertionError, match=r"unknown fields: \{'second\.z'\}"):
        numba_runtime.pack(record, {"second.z": 1})


def test_tiny_numbers_are_zero_inside_a_kernel_and_nowhere_else():
    tiny, ones = torch.full((4, 100_000, 3), 1e-39), torch.ones(3, 1)
    # Also the threads of a team compute as before when a kernel is done.
    found = causal_conv1d(tiny, ones, backend="numba")
    assert (0.5 * tiny > 0).all()
    assert (found == 0).all() or not numba_runtime.ON_X86
