"""The Triton kernels on a GPU: the cases of `triton_cases.py`, there in larger sizes too."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux only")

if not torch.cuda.is_available():
    pytest.skip("there is no GPU here; test_triton_interpreted.py runs the cases under the interpreter",
                allow_module_level=True)

from triton_cases import *  # noqa: F403
