"""Operations and bytes of a forward pass, counted from shapes.

"FLOPs" means little without a convention. Three questions decide the number:
- Is a multiplication with its addition one operation (as fvcore and most papers count) or two (as PyTorch's own
  counter does)?
- Are the products of attention counted, queries with keys and weights with values? Counters that look at layers only
  miss them.
- Is the scan counted, and an exponential as how many operations? No counter knows it by itself.
So `Counts` keeps the kinds apart, and `Counts.flops` adds them up under a stated convention. The counts are those of
one image; norms, biases, activations and softmax are left out, as every counter of this kind leaves them out.
"""

__all__ = ["Counts", "attention_matrix_bytes", "deit_counts", "model_counts", "scan_bytes", "vim_counts"]

import math
from dataclasses import dataclass

from .case import PATCH, Case

# Width of each size.
WIDTHS = {"ti": 192, "s": 384, "b": 768}


@dataclass(frozen=True)
class Counts:
    """What one image costs.

    matrix: multiply-adds of matrix products with weights. attention: multiply-adds of products between tokens.
    convolution: multiply-adds of the depthwise convolutions. scan: multiply-adds of the recurrence. products:
    multiplications in the scan that no addition follows. exponentials: of the scan, one a state.
    """

    matrix: int
    attention: int = 0
    convolution: int = 0
    scan: int = 0
    products: int = 0
    exponentials: int = 0

    def flops(self, a_multiply_add: int = 1, attention: bool = True, scan: bool = True,
              an_exponential: int = 1) -> int:
        """Return operations under a convention.

        Arguments: a_multiply_add, what one multiplication with its addition counts, 1 or 2; attention, scan: whether
        these are counted at all; an_exponential: what one exponential counts.
        """
        total = a_multiply_add * (self.matrix + self.convolution + attention * self.attention + scan * self.scan)
        return total + scan * (self.products + an_exponential * self.exponentials)


def vim_counts(tokens: int, width: int, depth: int = 24, states: int = 16, conv: int = 4, patches: int | None = None,
               classes: int = 1000, patch: int = PATCH) -> Counts:
    """Return the counts of a Vim for one image of `tokens` tokens, class token included.

    Arguments: width d, conv k, patches M (None: all tokens but one), patch p; depth and classes are counts.
    A state of a channel and token takes two products (delta A, and delta u with B), an exponential, and two
    multiply-adds (the recurrence, and the sum with C); D u is one more multiply-add a channel. Source: Vim paper,
    Algorithm 1; there are two directions.
    """
    l, d, e, n, r = tokens, width, 2 * width, states, math.ceil(width / 16)
    projections = l * d * 2 * e + l * e * d
    one_direction = l * e * (r + 2 * n) + l * r * e
    return Counts(
        matrix=_embed_and_head(l - 1 if patches is None else patches, patch, d, classes)
        + depth * (projections + 2 * one_direction),
        convolution=depth * 2 * l * e * conv, scan=depth * 2 * (2 * l * e * n + l * e),
        products=depth * 2 * (2 * l * e * n + l * e), exponentials=depth * 2 * l * e * n)


def deit_counts(tokens: int, width: int, depth: int = 12, patches: int | None = None, classes: int = 1000,
                patch: int = PATCH) -> Counts:
    """Return the counts of a DeiT for one image of `tokens` tokens, class token included.

    A layer: l d (3 d + d) for queries, keys, values and output, l d 8 d for the two maps of its MLP, and l l d each for
    queries with keys and weights with values, whatever the number of heads. Fused attention does the same products.
    """
    l, d = tokens, width
    return Counts(matrix=_embed_and_head(l - 1 if patches is None else patches, patch, d, classes)
                  + depth * 12 * l * d * d, attention=depth * 2 * l * l * d)


def _embed_and_head(patches: int, patch: int, width: int, classes: int) -> int:
    return patches * 3 * patch**2 * width + width * classes


def model_counts(case: Case) -> Counts | None:
    """Return the counts of a case's network for one image, forward, without pyramid; None for ResNet-50."""
    family, _, rest = case.model.partition("-")
    if family not in ("vim", "deit"):
        return None
    width, patches = WIDTHS[rest.split("-")[0]], (case.size // PATCH) ** 2
    count = vim_counts if family == "vim" else deit_counts
    return count(case.tokens, width, patches=patches, classes=0 if case.pyramid else 1000)


def attention_matrix_bytes(tokens: int, heads: int, batch_size: int = 1, size: int = 4) -> int:
    """Return the bytes of one copy of the matrix of all pairs of tokens, of one layer; size: bytes of a number.

    Plain attention holds two or three of them at once; fused attention holds none.
    """
    return batch_size * heads * tokens**2 * size


def scan_bytes(tokens: int, inner: int, states: int, directions: int = 2, batch_size: int = 1, size: int = 4) -> int:
    """Return the bytes that the fused scan of one layer must move: u, B, C and the steps' r numbers are read once a
    direction, the gate z once, and y is written once. inner: e; r is e / 32, as in Vim. size: bytes of a number.
    """
    numbers = directions * (inner + 2 * states + math.ceil(inner / 32)) + 2 * inner
    return batch_size * tokens * numbers * size
