"""The operators of the Triton backend: kernels for the GPU, compiled when one is first called."""

__all__ = ["add_rms_norm_triton", "bidirectional_scan_triton", "convolve_triton", "selective_scan_triton"]

from .kernels import triton_conv, triton_norm, triton_scan
from .operators import conv_operators, norm_operators, scan_operators

selective_scan_triton, bidirectional_scan_triton = scan_operators("triton", triton_scan, projects=False)
convolve_triton = conv_operators("triton", triton_conv)
add_rms_norm_triton = norm_operators("triton", triton_norm)
