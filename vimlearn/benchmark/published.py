"""The points of the paper's Figure 1: Vim-Ti and DeiT-Ti at five sizes, read off the picture.

The paper states no batch size, number format or GPU. Its figures for the memory of DeiT fit three copies of the matrix
of all pairs, 64 x 3 x l x l x 4 bytes each, plus a rest that grows with l. So the attention is not fused, and a GB is
2**30 bytes. The fit gives only the product 768 of batch, copies and bytes of a number; a batch of 64 and float32 are
those of the benchmark script in the paper's repository. All this is inferred.

Source: Vim paper (arXiv 2401.09417), Figure 1; its axis is log10 of images a second, with two decimals, so a speed is
known to 1 %.
"""

__all__ = ["HEADLINE_MEMORY", "HEADLINE_SPEED", "PUBLISHED", "Point", "largest_ratio", "rows"]

from typing import NamedTuple

# "2.8 times faster and 86.8 % less GPU memory" at 1248 x 1248.
HEADLINE_SPEED, HEADLINE_MEMORY = 2.8, 0.868


class Point(NamedTuple):
    """size: side of the image, pixels. log_speed: log10 of images a second. memory: GB of the GPU, 2**30 bytes each;
    None where the paper says out of memory, on an axis that ends at 80.
    """

    model: str
    size: int
    log_speed: float
    memory: float | None

    @property
    def images_per_second(self) -> float:
        """Images a second."""
        return 10**self.log_speed


# At 512 both models share one label, so neither is known to be the faster one.
PUBLISHED = (
    Point("deit-ti-plain", 512, 2.54, 4.56), Point("vim-ti", 512, 2.54, 3.32),
    Point("deit-ti-plain", 640, 2.25, 8.09), Point("vim-ti", 640, 2.29, 4.22),
    Point("deit-ti-plain", 738, 2.05, 12.48), Point("vim-ti", 738, 2.07, 5.03),
    Point("deit-ti-plain", 1024, 1.57, 40.09), Point("vim-ti", 1024, 1.91, 8.13),
    Point("deit-ti-plain", 1248, 1.26, None), Point("vim-ti", 1248, 1.71, 11.14),
)


def rows() -> list[dict]:
    """Return the published points in the form of measured rows, for the same figure."""
    return [{"model": p.model, "size": p.size, "tokens": (p.size // 16) ** 2, "batch_size": 64, "dtype": "float32",
             "mode": "inference", "pyramid": False, "compiled": False, "device": "cuda",
             "status": "ok" if p.memory else "out of memory",
             "why": None if p.memory else "in the figure of memory; its figure of speed has the point",
             "images_per_second": p.images_per_second, "median_ms": 64e3 / p.images_per_second,
             "peak_mb": None if p.memory is None else 2**30 / 1e6 * p.memory} for p in PUBLISHED]


def largest_ratio() -> float:
    """Return how many times faster Vim-Ti is than DeiT-Ti at 1248 pixels, from the two points."""
    speed = {p.model: p.images_per_second for p in PUBLISHED if p.size == 1248}
    return speed["vim-ti"] / speed["deit-ti-plain"]
