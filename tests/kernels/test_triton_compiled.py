"""The Triton kernels compiled ahead of time, in a process without the interpreter; and the rules of their launchers."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton", reason="Triton is there on Linux only")

from vimlearn.kernels.triton_scan_backward import BackwardWalk
from vimlearn.kernels.triton_scan_chunks import segments_of, splits
from vimlearn.kernels.triton_scan_forward import Walk

HERE = Path(__file__).parent
PROGRAM = "import csv, sys, compile_triton as c; w = csv.DictWriter(sys.stdout, c.FIELDS); w.writeheader(); " \
          "[w.writerows(c.compile_all(*job)) for job in {}]"


def compile_rows(tmp_path, *jobs):
    """Compile (targets, operations, dtypes) of each job in one process, with an empty cache, and return the rows."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(HERE), "OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", PROGRAM.format(jobs)], cwd=HERE.parents[1],
                         env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stderr[-4000:]
    return list(csv.DictReader(run.stdout.splitlines()))


def test_no_kernel_spills_on_hopper(tmp_path):
    both = ["scan, one direction", "scan, two directions", "conv, two directions", "norm"], ["float32", "bfloat16"]
    segments = ["scan, two directions, in segments"], ["bfloat16"]
    rows = compile_rows(tmp_path, (["cuda:90"], *both), (["cuda:90"], *segments))
    kernels = {row["kernel"] for row in rows}
    assert len(kernels) == 8, kernels
    spilled = [row for row in rows if int(row["spill_bytes"])]
    assert not spilled
    # The sum over states of the forward scan is within a thread: shared memory would mean another layout of threads.
    forward = [row for row in rows if row["kernel"].endswith("scan_forward.forward_kernel")]
    assert forward and all(row["shared_bytes"] == "0" for row in forward)
    # B and C of a token, 2 n numbers that each thread needs: four at once, though slices of a projection are not
    # aligned. The kernel that combines segments needs none.
    scans = [row for row in rows if "scan" in row["kernel"] and not row["kernel"].endswith("combine_kernel")]
    assert len(scans) > len(forward) and all(int(row["wide_loads"]) for row in scans)
    # A thread reads the states that it left itself.
    assert all(row["layouts"] == "1" for row in scans)


@pytest.mark.parametrize("walk", [Walk, BackwardWalk])
def test_a_walk_ends_with_nothing(walk):
    """Triton 3.6 refuses a tuple that holds `Rows` and no None after it; 3.7, which is tested here, takes both."""
    assert walk._field_defaults == {walk._fields[-1]: None}


def test_kernels_compile_for_other_targets(tmp_path):
    targets = ["cuda:80", "cuda:100", "hip:gfx942"]
    rows = compile_rows(tmp_path, (targets, ["scan, one direction", "conv, one direction", "norm"], ["bfloat16"]))
    assert len({(row["target"], row["kernel"]) for row in rows}) == 6 * len(targets)
    assert all(int(row["registers"]) > 0 for row in rows)


@pytest.mark.parametrize("b, l, e, expected", [
    # Vim-Ti at 224 in a batch of 128: 1,536 warps for 132 multiprocessors
    (128, 197, 384, 1),
    # one picture at 1248: 12 warps, so 176 segments of 35 tokens
    (1, 6085, 384, 176),
    # one picture at 224 has 13 chunks only
    (1, 197, 384, 13),
    # at the limit, two warps for each multiprocessor, and one above it
    (22, 6085, 384, 8), (23, 6085, 384, 1), (1, 1, 384, 1)])
def test_when_a_sequence_is_split(b, l, e, expected):
    assert splits(b, l, e, processors=132) == expected


@pytest.mark.parametrize("l", [1, 16, 17, 197, 6085])
@pytest.mark.parametrize("count", [1, 2, 5, 176])
def test_segments_cover_all_chunks(l, count):
    chunks, segments = segments_of(l, count)
    assert segments <= count and (segments - 1) * chunks * 16 < l <= segments * chunks * 16
