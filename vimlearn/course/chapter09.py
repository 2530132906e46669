"""Checks of chapter 09: memory from a percentage, a layer's operations, attention by tiles, ratios, a crossing."""

import math
import statistics

import torch
from torch import Tensor

from vimlearn.course.exercise import call, exercise, match, parts


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@exercise("9.1", "What 86.8 % less says")
def implied_memory(answer):
    """11.14 GB are 13.2 % of DeiT's."""
    match(answer, 11.14 / 0.132, rtol=5e-3, name="the memory of DeiT-Ti, GB,", mistakes={
        "11.14 GB is what is left after 86.8 % are taken away, and not 86.8 % of the whole": 11.14 / 0.868,
        "this is 13.2 % of 11.14; it is 11.14 that is 13.2 % of the memory wanted": 11.14 * 0.132,
        "this is 86.8 % of 11.14; DeiT takes more than Vim, and not less": 11.14 * 0.868,
        "this is 86.8 % more than 11.14; 86.8 % less is counted from DeiT's memory, and not from Vim's": 11.14 * 1.868,
        "2.8 is the ratio of the speeds; the memory has another": 11.14 * 2.8,
    })
    return "13.2 % are left, so DeiT-Ti would take 84.4 GB: more than a card of 80 GB has."


@exercise("9.2", "Multiply-adds of a DeiT layer")
def layer_multiply_adds(answer):
    """12 l d^2 with weights, 2 l^2 d between tokens."""
    for l, d in ((5, 8), (7, 4)):
        weights, pairs = parts(call(answer, l, d), "with weights", "between tokens")
        match(weights, 12 * l * d * d, name="the number with weights", mistakes={
            "4 l d^2 are missing: queries, keys, values and output; or one of the MLP's two maps": 8 * l * d * d,
            "this is attention's own maps alone; the MLP takes 8 l d^2 more": 4 * l * d * d,
            "the map of the output is missing: it is one more square matrix": 11 * l * d * d,
            "this is for one token; there are l": 12 * d * d,
            "count a multiplication with its addition as one": 24 * l * d * d,
            "the two numbers are exchanged": 2 * l * l * d,
        })
        match(pairs, 2 * l * l * d, name="the number between tokens", mistakes={
            "this is one product; there are two: queries with keys, and weights with values": l * l * d,
            "every token meets every token: l^2 pairs, and not l": 2 * l * d,
            "each pair costs d multiply-adds in each product, and not one": 2 * l * l,
            "d^2 belongs to the weights; a pair of tokens costs d": 2 * l * d * d,
            "count a multiplication with its addition as one": 4 * l * l * d,
        })
    return "12 l d^2 grow with the tokens, 2 l^2 d with their square."


def _one_tile(m: Tensor, s: Tensor, o: Tensor, scores: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    largest = torch.maximum(m, scores.max(1).values)
    kept, w = torch.exp(m - largest), torch.exp(scores - largest[:, None])
    return largest, kept * s + w.sum(1), kept[:, None] * o + w @ values


@exercise("9.3", "One tile of attention")
def add_tile(answer):
    """Milakov and Gimelshein 2018, Algorithm 3, with the values carried along."""
    # The last query has negative scores only, so that a start at 0 shows.
    low, values = 2 * _randn(3, 4) - torch.tensor([0.0, 0.0, 9.0])[:, None], _randn(4, 2, seed=1)
    start = torch.full((3,), -math.inf, dtype=torch.float64), torch.zeros(3).double(), torch.zeros(3, 2).double()
    running = torch.tensor([0.5, 9.0, -20.0]).double(), torch.tensor([1.5, 2.0, 1.25]).double(), _randn(3, 2, seed=2)
    # Scores near 1000 have no exponential in float64: the largest must be taken away first.
    high = running[0] + 1000, *running[1:]
    for (m, s, o), scores in ((running, low), (start, low), (high, low + 1000)):
        right = _one_tile(m, s, o, scores, values)
        new_m, new_s, new_o = parts(call(answer, m, s, o, scores, values), "m", "s", "o")
        here, largest = scores.max(1).values, right[0]
        kept, w = torch.exp(m - largest), torch.exp(scores - largest[:, None])
        divided = m.exp() / largest.exp() * s + (scores.exp() / largest.exp()[:, None]).sum(1)
        match(new_m, largest, name="m", mistakes={
            "m starts at 0, which no key has scored; start at the tile's own largest":
                torch.maximum(largest, torch.zeros_like(largest)),
            "m is the largest of this tile only; the largest so far is forgotten": here,
            "m keeps the old largest; the tile may hold a larger one": m,
            "each query has a largest of its own: take the maximum over the keys, and not over all": torch.maximum(
                m, scores.max()),
        })
        match(new_s, right[1], name="s", mistakes={
            "the new weights count from this tile's largest; take the largest so far":
                kept * s + torch.exp(scores - here[:, None]).sum(1),
            "the new weights count from the old largest; take the new one":
                lambda m=m, s=s, kept=kept, scores=scores: kept * s + torch.exp(scores - m[:, None]).sum(1),
            "a softmax divides already: the weights of one tile do not sum to 1 here": kept * s + 1,
            "the old sum counts from the old largest: multiply it by exp(old m - new m)": s + w.sum(1),
            "the old sum is left out": w.sum(1),
            "the factor of the old sum is exp(old m - new m), and not its inverse": s / kept + w.sum(1),
            "the new weights are exp(scores - new m): m is not taken away": kept * s + scores.exp().sum(1),
            "a score of 1000 has no exponential: take the new m away before exp, so that none exceeds 1": divided,
        })
        match(new_o, right[2], name="o", mistakes={
            "the old o counts from the old largest, as the old sum does: multiply it too": o + w @ values,
            "the old o is left out": w @ values,
            "do not divide yet: o is divided by s once, after the last tile": right[2] / right[1][:, None],
            "the new weights are exp(scores - new m): m is not taken away": kept[:, None] * o + scores.exp() @ values,
        })
    return "largest, sum and output are right, for the first tile, for a later one and for scores near 1000."


@exercise("9.4", "A fair ratio")
def fair_ratio(answer):
    """The median over rounds of the ratio within a round."""
    rounds = (([4.0, 8.1, 4.2, 8.4, 4.1], [2.0, 2.2, 2.1, 4.6, 1.9]), ([3.0, 1.0, 2.5], [1.0, 1.1, 2.0]),
              ([8.0, 3.3, 2.0, 1.4], [2.0, 1.5, 1.0, 1.0]))
    for mine, its in rounds:
        ratios = [a / b for a, b in zip(mine, its, strict=True)]
        match(call(answer, mine, its), statistics.median(ratios), rtol=1e-6, name="the ratio", mistakes={
            "this divides two medians, which may come from different rounds; divide within each round first":
                statistics.median(mine) / statistics.median(its),
            "this is the mean of the ratios; one disturbed round moves it, so take the median":
                statistics.fmean(ratios),
            "this is the ratio of the sums; one disturbed round moves it": sum(mine) / sum(its),
            "this divides the fastest times, which come from different rounds": min(mine) / min(its),
            "the ratio is upside down: its own time stands above": statistics.median(
                [b / a for a, b in zip(mine, its, strict=True)]),
            "this is the ratio of the last round alone": ratios[-1],
            "this is the ratio of the first round alone": ratios[0],
            "of an even number of ratios the median is the mean of the two in the middle; this is the larger of them":
                statistics.median_high(ratios),
            "of an even number of ratios the median is the mean of the two in the middle; this is the smaller of them":
                statistics.median_low(ratios),
        })
    return "each round is compared with itself, and one disturbed round moves nothing."


def _crossing(low: float, high: float, below: float, above: float) -> float:
    share = -math.log(below) / (math.log(above) - math.log(below))
    return low * (high / low) ** share


@exercise("9.5", "The crossing")
def crossing(answer):
    """A straight line between two points, both axes in logarithms, where it meets a ratio of 1."""
    for low, high, below, above in ((256, 1024, 0.4, 2.5**0.5), (128, 4096, 0.7, 5.0)):
        share = (1 - below) / (above - below)
        in_logs = -math.log(below) / math.log(above / below)
        match(call(answer, low, high, below, above), _crossing(low, high, below, above), rtol=1e-6, name="the size",
              mistakes={
                  "sizes and ratios are taken as they are; take the logarithm of both": low + share * (high - low),
                  "the ratios are taken as they are; take their logarithm too": low * (high / low) ** share,
                  "the sizes are taken as they are; take their logarithm too": low + in_logs * (high - low),
                  "this is the logarithm of the size; take exp of it": math.log(_crossing(low, high, below, above)),
                  "this is the share of the way, and not the size": in_logs,
                  "the share has the wrong sign: it is log(1 / below) / log(above / below)":
                      low * (high / low) ** -in_logs,
                  "this is the middle of the two sizes, whatever the ratios are": math.sqrt(low * high),
                  "the share is counted from the wrong end": high * (low / high) ** in_logs,
              })
    return "the line in logarithms meets 1 there."
