"""The Triton kernels and operators on a GPU: the files of cases, there in larger sizes too."""

import pytest
import torch

pytest.importorskip("triton", reason="Triton is there on Linux only")

if not torch.cuda.is_available():
    pytest.skip("there is no GPU here; test_triton_interpreted.py runs the cases under the interpreter",
                allow_module_level=True)

from triton_cases import *  # noqa: F403
from triton_operator_cases import *  # noqa: F403
