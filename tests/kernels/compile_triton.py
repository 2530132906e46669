"""Compile the Triton kernels for GPUs that are not here, and write registers and spills as CSV.

    python tests/kernels/compile_triton.py            every configuration for every target
    python tests/kernels/compile_triton.py cuda:90    for one target

With another version of Triton: pip install --target FOLDER triton==3.6.0, and PYTHONPATH=FOLDER before the command.

Each kernel is compiled as its launcher asks for it: a driver that knows nothing but the target takes the place of the
real one, tensors are empty ones on the CPU, and where a kernel would be launched it is only compiled. What is reported
comes from ptxas by way of the cuobjdump that Triton brings; for AMD from the metadata of the code object.
"""

import contextlib
import csv
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
import triton
import triton.backends.nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from vimlearn.kernels import triton_scan_chunks
from vimlearn.kernels.layout import Conv, Scan
from vimlearn.kernels.triton_conv import conv_backward, conv_forward
from vimlearn.kernels.triton_norm import norm_backward, norm_forward
from vimlearn.kernels.triton_scan import scan_backward, scan_forward, starts_shape

TARGETS = {"cuda:80": GPUTarget("cuda", 80, 32), "cuda:90": GPUTarget("cuda", 90, 32),
           "cuda:100": GPUTarget("cuda", 100, 32), "hip:gfx942": GPUTarget("hip", "gfx942", 64)}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FIELDS = ["target", "operation", "dtype", "kernel", "registers", "spill_bytes", "shared_bytes", "wide_loads", "layouts",
          "warps"]

# Sizes of Vim-Ti at 224 x 224. Only b and l are not compiled in.
B, L, D_MODEL, E, N, K, R = 2, 197, 192, 384, 16, 4, 12


class TargetDriver:
    """What Triton asks of a driver in order to compile."""

    def __init__(self, target: GPUTarget):
        self.get_current_target = lambda: target
        self.get_current_device = lambda: str(target)
        self.get_current_stream = lambda device: 0


@contextlib.contextmanager
def compiling_for(target: GPUTarget) -> Iterator[list]:
    """Give the list to which, within the context, kernels are added instead of being launched."""
    kernels, run = [], JITFunction.run

    def compile_only(self, *args, grid, warmup, **options):
        kernel = run(self, *args, grid=grid, warmup=True, **options)
        kernels.append((self.__module__.rsplit(".", 1)[-1] + "." + self.__name__, kernel))
        return kernel

    before = triton.runtime.driver._active
    triton.runtime.driver.set_active(TargetDriver(target))
    JITFunction.run = compile_only
    try:
        yield kernels
    finally:
        JITFunction.run = run
        triton.runtime.driver._active = before


def scan_inputs(dtype: torch.dtype, count: int, segments: int) -> tuple[list[Scan], torch.Tensor]:
    """Return scans as the mixer has them (B and C are slices), and set how many segments the launcher will take."""
    triton_scan_chunks.splits = lambda *sizes: segments
    u, A, D = torch.empty(B, L, E, dtype=dtype), torch.empty(E, N), torch.empty(E)
    maps = torch.empty(B, L, R + 2 * N, dtype=dtype)
    scans = [Scan(u, u, A, maps[..., R:R + N], maps[..., R + N:], D, D, None, bool(i)) for i in range(count)]
    return scans, torch.empty(B, L, 2 * E, dtype=dtype)[..., E:]


def scan(dtype: torch.dtype, count: int, segments: int = 1, keep: bool = True) -> None:
    """Compile the forward kernel, and with `keep` the backward kernel, of one scan or two."""
    scans, z = scan_inputs(dtype, count, segments)
    _, last, _ = scan_forward(scans, z, True, 1 / count, keep)
    if keep:
        starts = [torch.empty(starts_shape(scans[0].u.shape, N)) for _ in scans]
        scan_backward(scans[0].u, last if segments > 1 else [None] * count, scans, starts, z, True, 1 / count)


def conv(dtype: torch.dtype, count: int) -> None:
    """Compile the convolution of one direction or two, forward and backward."""
    x = torch.empty(B, L, 2 * E, dtype=dtype)[..., :E]
    convs = [Conv(torch.empty(E, K), torch.empty(E), bool(i)) for i in range(count)]
    conv_backward(conv_forward(x, convs, True), x, convs, True)


def norm(dtype: torch.dtype) -> None:
    """Compile the norm, forward and backward."""
    h, residual, weight = torch.empty(B, L, D_MODEL, dtype=dtype), torch.empty(B, L, D_MODEL), torch.empty(D_MODEL)
    y, residual, rstd = norm_forward(h, residual, weight, 1e-5)
    norm_backward(y, residual, residual, weight, rstd)


OPERATIONS: dict[str, Callable[[torch.dtype], None]] = {
    "scan, one direction": lambda dtype: scan(dtype, 1),
    "scan, two directions": lambda dtype: scan(dtype, 2),
    "scan, two directions, inference": lambda dtype: scan(dtype, 2, keep=False),
    "scan, two directions, in segments": lambda dtype: scan(dtype, 2, segments=4),
    "conv, one direction": lambda dtype: conv(dtype, 1),
    "conv, two directions": lambda dtype: conv(dtype, 2),
    "norm": norm,
}


def compile_all(targets: list[str], operations: list[str], dtypes: list[str]) -> Iterator[dict]:
    """Compile the operations for the targets, and give one row of FIELDS a kernel, the same kernel once."""
    seen = set()
    for target in targets:
        for operation in operations:
            for dtype in dtypes:
                with compiling_for(TARGETS[target]) as kernels:
                    OPERATIONS[operation](DTYPES[dtype])
                for name, kernel in kernels:
                    if (target, kernel.hash) not in seen:
                        seen.add((target, kernel.hash))
                        yield dict(zip(FIELDS, (target, operation, dtype, name, *usage(target, kernel),
                                                layouts(kernel), kernel.metadata.num_warps), strict=True))


def usage(target: str, kernel) -> tuple[int, int, int, int]:
    """Return the registers a thread, the bytes it spills to memory, the bytes of shared memory of a program, and on
    NVIDIA how many of its loads take 16 bytes.
    """
    if target.startswith("hip"):
        text = kernel.asm["amdgcn"]
        return (int(re.search(r"\.vgpr_count:\s*(\d+)", text)[1]),
                4 * int(re.search(r"\.vgpr_spill_count:\s*(\d+)", text)[1]), kernel.metadata.shared, 0)
    tool = Path(triton.backends.nvidia.__file__).parent / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True,
                              check=True).stdout
    # A stack frame is there for spilled registers only: the kernels have no arrays of their own.
    registers, stack, local = (int(re.search(rf"{key}:(\d+)", text)[1]) for key in ("REG", "STACK", "LOCAL"))
    return registers, stack + local, kernel.metadata.shared, len(re.findall(r"ld\.global\S*\.v4", kernel.asm["ptx"]))


def layouts(kernel) -> int:
    """Return in how many layouts of threads tiles of states, (n, channels of a warp), are loaded and stored.

    One, if a thread is to read what it wrote itself. AMD's own loads and stores are not counted.
    """
    accesses = re.findall(r"tt\.(?:load|store) .*: tensor<\d+x(?:32|64)x!tt\.ptr<f\d+>, (#\w+)>", kernel.asm["ttgir"])
    return len(set(accesses))


def main() -> None:
    writer = csv.DictWriter(sys.stdout, FIELDS)
    writer.writeheader()
    for row in compile_all(sys.argv[1:] or list(TARGETS), list(OPERATIONS), list(DTYPES)):
        writer.writerow(row)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
