"""The Triton kernels and operators under the interpreter: runs the files of cases in processes of their own.

A kernel that was decorated under the interpreter cannot be compiled any more, so the variable must not be set here.
"""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from packaging.version import Version

triton = pytest.importorskip("triton", reason="Triton is there on Linux only")


@pytest.mark.parametrize("cases", ["triton_cases.py", "triton_operator_cases.py"])
def test_cases_under_the_interpreter(cases):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU: test_triton_device.py runs the cases on it")
    if Version(triton.__version__) < Version("3.7") and Version(np.__version__) >= Version("2.4"):
        pytest.skip("the interpreter of Triton 3.6 does not work with NumPy 2.4")
    here = Path(__file__).parent
    # Interpreted kernels run NumPy, one operation after the other, and gain nothing from threads.
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / cases)]
    run = subprocess.run(command, cwd=here.parents[1], env=environment, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    assert "skipped" not in run.stdout
