"""Answers that learners gave, and what each check says to them, beside the mistakes of the chapters' own tests."""

import math

import torch
import torch.nn.functional as F

from vimlearn.course.exercise import grade, match
from vimlearn.course.verdict import Wrong
from vimlearn.scan import selective_scan
from vimlearn.scan_parallel import associative_scan_


def test_a_mistake_that_gives_the_right_numbers_is_not_named():
    right = torch.arange(3.0, dtype=torch.float64)
    try:
        match(right.float(), right, name="K", mistakes={"K is backwards": right.clone()})
    except Wrong as wrong:
        assert "float32" in str(wrong) and "backwards" not in str(wrong)
    else:
        raise AssertionError("float32 was taken for float64")


def test_whole_numbers_are_written_whole(rejected):
    numbers = {"in_proj": 589_824, "one direction": 79_104, "out_proj": 294_912, "layer": 1_043_327}
    assert rejected("small_layer", numbers, "'layer' is not 1,043,327")


def test_chapter_01(rejected):
    def euler(new):
        return lambda s, a, b, x, delta: new(s, a, b, x, delta)

    assert rejected("euler_step", euler(lambda s, a, b, x, d: s + d * a * s), "inflow b x is missing")
    assert rejected("euler_step", euler(lambda s, a, b, x, d: s + d * (s + b * x)), "rate a of the leak is missing")
    assert rejected("euler_step", euler(lambda s, a, b, x, d: s + d * (a * (s + d / 2 * (a * s + b * x)) + b * x)),
                    "middle of the step")
    assert rejected("euler_step", euler(lambda s, a, b, x, d: (s * (1 + d * a / 2) + d * b * x) / (1 - d * a / 2)),
                    "averages the slopes")
    assert rejected("euler_limits", (2.0, 0.125), "limit for the tank")

    def hold(fraction, A_bar=torch.exp):
        return lambda a, b, delta: (A_bar(delta * a), fraction(delta * a) * delta * b)

    def near(z, limit, far):
        close = z.abs() < limit
        safe = torch.where(close, 1.0, z)
        return torch.where(close, 1 + z / 2, far(safe))

    assert grade("zero_order_hold", hold(lambda z: near(z, 1e-3, lambda x: torch.expm1(x) / x))).status == "right"
    assert rejected("zero_order_hold", hold(lambda z: near(z, 1e-6, lambda x: (torch.exp(x) - 1) / x)), "lost digits")
    assert rejected("zero_order_hold", hold(lambda z: near(z, 0.15, lambda x: torch.expm1(x) / x)), "too far out")
    assert rejected("zero_order_hold", hold(lambda z: near(z, 1e-3, lambda x: torch.expm1(x) / x),
                                            lambda z: torch.where(z == 0, z, torch.exp(z))), "keeps everything")

    def in_place(A_bar, B_bar, C, length):
        s, K = B_bar.clone(), []
        for _ in range(length):
            K.append((C * s).sum())
            s *= A_bar
        return torch.stack(K)

    def short(A_bar, B_bar, C, length):
        return torch.stack([(C * A_bar**j * B_bar).sum() for j in range(length)]).float()

    assert rejected("unrolled_kernel", in_place, "in place", "s = a * s")
    assert rejected("unrolled_kernel", short, "float32", "expected float64")


def test_chapter_02(rejected):
    carried = {"delta = 0": 4.0, "delta = ln 2": 4 + 6.931, "delta = 20": 204.0}
    assert rejected("three_steps", carried, "without decay")
    assert rejected("three_steps", carried | {"delta = ln 2": 8.93}, "delta = 20", "without decay")

    def safe(switch, value):
        def step(delta, bias):
            x = delta + bias
            return torch.where(switch(x, delta), value(x, delta), torch.log1p(torch.exp(x.clamp(max=20))))
        return step

    assert grade("safe_step", safe(lambda x, d: x > 20, lambda x, d: x)).status == "right"
    assert rejected("safe_step", safe(lambda x, d: x > 20, lambda x, d: d), "the bias is missing")
    assert rejected("safe_step", safe(lambda x, d: d > 20, lambda x, d: x), "delta alone")
    assert rejected("safe_step", safe(lambda x, d: x > 5, lambda x, d: x), "far below 20")

    def update(s, u, step, A, B, C):
        keep = torch.exp(step * A)
        new = keep * s + (1 - keep) * u * B
        return new, (new * C).sum()

    assert rejected("scan_step", update, "1 - keep")

    def turned(u, step, A, B, C, D, z):
        out, last = selective_scan(u.flip(1), step.flip(1), A.flip(1), B.flip(1), C.flip(1), D, z.flip(1),
                                   return_last_state=True)
        return out.flip(1), last

    assert rejected("reverse_by_flips", turned, "A is flipped, too")
    assert rejected("reverse_by_flips", lambda u, step, A, B, C, D, z: selective_scan(
        u, step, A, B, C, D, z, reverse=True, return_last_state=True), "what your function should equal")
    count = {"tokens": 1025, "numbers": 12_595_200}
    assert grade("count_states", count | {"gigabytes": 19.3}).status == "right"
    assert rejected("count_states", count | {"gigabytes": 18.0}, "GiB")


def test_chapter_03(rejected):
    def rounds(join, keep_a=False, go=lambda o, l: o < l):
        def scan(a, x):
            offset = 1
            while go(offset, x.shape[1]):
                joined = join(a, x, offset)
                new = torch.cat([a[:, :-offset] * a[:, offset:], a[:, -offset:]], 1)
                x, a, offset = torch.cat([joined, x[:, -offset:]], 1), a if keep_a else new, 2 * offset
            return x
        return scan

    def right(a, x, o):
        return a[:, :-o] * x[:, o:] + x[:, :-o]

    assert grade("scan_from_right", rounds(right)).status == "right"
    assert rejected("scan_from_right", rounds(lambda a, x, o: a[:, o:] * x[:, o:] + x[:, :-o]), "partner's")
    assert rejected("scan_from_right", rounds(right, keep_a=True), "combine a as well")
    assert rejected("scan_from_right", rounds(right, go=lambda o, l: 2 * o <= l), "a round is missing")

    def ring(a, x):
        offset = 1
        while offset < x.shape[1]:
            x, a, offset = x + a * x.roll(-offset, 1), a * a.roll(-offset, 1), 2 * offset
        return x

    assert rejected("scan_from_right", ring, "wraps round")
    assert grade("cost_of_ten", torch.tensor([4, 25, 5, 14])).status == "right"
    assert rejected("cost_of_ten", (5, 14, 4, 25), "Hillis-Steele comes first")
    assert rejected("cost_of_ten", (4, 25, 7, 14), "upper limit")
    assert rejected("late_carry", lambda a, states, start: states + a.cumprod(2) * start.unsqueeze(1), "wrong axis")
    assert rejected("backward_from_right",
                    lambda a, s, c: (c, associative_scan_(a.roll(1, 1), c.clone(), reverse=True)), "half is mirrored")


def test_chapter_05(rejected):
    assert rejected("rms_norm", lambda x, w, eps: w * x / (x.var(-1, keepdim=True, correction=0) + eps).sqrt(),
                    "standard deviation")
    assert rejected("rms_norm", lambda x, w, eps: w * x / (x.std(-1, keepdim=True) + eps), "std")
    assert rejected("rms_norm", lambda x, w, eps: (1 + w) * x / (x.square().mean(-1, keepdim=True) + eps).sqrt(),
                    "1 + weight")

    def four_taps(x, weight, bias):
        padded = F.pad(x, (0, 0, 3, 0))
        return sum(padded[:, j:j + x.shape[1]] * weight[:, j] for j in range(4)) + bias

    assert grade("causal_conv", four_taps).status == "not yet"
    assert rejected("causal_conv", lambda x, w, b: sum(x.roll(3 - j, 1) * w[:, j] for j in range(4)) + b, "wraps round")

    def maps(u, x_weight, dt_weight, dt_bias):
        low, B, C = (u @ x_weight.T).split([3, 4, 4], -1)
        return B, C, F.softplus(low @ dt_weight.T + dt_bias)

    assert rejected("token_maps", maps, "in the order B, C, step")
    assert rejected("both_directions", lambda f, b, x, z: f(x, z) + b(x.flip(1), z.flip(1)).flip(1) / 2, "parentheses")
    assert rejected("both_directions", lambda f, b, x, z: (f(x, z) + b(x.flip(0), z.flip(0)).flip(0)) / 2,
                    "nothing is flipped along the tokens")
    assert rejected("both_directions", lambda f, b, x, z: (f(x, z) + b(x.flip(1), z.flip(1)).flip(0)) / 2, "the batch")
    assert rejected("bias_for_step", lambda step: step + torch.log(torch.expm1(-step)), "which is negative")


def test_chapter_06(rejected):
    def cut(view, axes):
        def patches(images, p):
            b, c, height, width = images.shape
            return images.reshape(view(b, c, height, width, p)).permute(axes).reshape(b, -1, c * p * p)
        return patches

    def pairs(b, c, height, width, p):
        return b, c, height // p, p, width // p, p

    assert grade("patchify", cut(pairs, (0, 2, 4, 1, 3, 5))).status == "right"
    assert rejected("patchify", cut(pairs, (0, 1, 2, 4, 3, 5)), "colours stay in front")
    assert rejected("patchify", cut(lambda b, c, h, w, p: (b, c, p, h // p, p, w // p), (0, 2, 4, 1, 3, 5)),
                    "wrong place")
    assert rejected("patchify", lambda images, p: F.unfold(images.float(), p, stride=p).mT, "float32")

    def detached(patches, token):
        middle = patches.shape[1] // 2
        every = token.detach().expand(len(patches), -1, -1)
        return torch.cat([patches[:, :middle], every, patches[:, middle:]], 1)

    assert rejected("insert_class_token", detached, "gradient of the class token")
    assert rejected("position_rows", (0, 98, 98, 196), "row of patch (7, 0) is not 98")
    assert rejected("drop_rates", lambda rate, depth: [k / max(depth - 1, 1) for k in range(depth)],
                    "multiply by the rate")


def test_chapter_08(rejected):
    entries = {"M[2, 0]": 3.0, "M[2, 2]": 90.0, "M[0, 2]": 0.0}
    assert rejected("three_entries", entries | {"M[2, 0]": 48.0}, "nothing decays")
    assert rejected("three_entries", entries | {"M[0, 2]": 480.0}, "not taken back")

    def whole(matrices, query):
        row = torch.eye(5, dtype=torch.float64)[query]
        for matrix in reversed(matrices):
            total = torch.eye(5, dtype=torch.float64) + matrix.clamp(min=0)
            row = row @ (total / total.sum(-1, keepdim=True))
        return row

    def reverses(matrices, query):
        row = torch.eye(5, dtype=torch.float64)[query]
        matrices.reverse()
        for matrix in matrices:
            positive = matrix.clamp(min=0)
            row = row + row @ (positive / positive.sum(-1, keepdim=True).clamp(min=1e-12))
        return row

    assert rejected("roll_out", whole, "scaled as a whole")
    assert rejected("roll_out", reverses, "list(")


def test_chapter_07(rejected):
    logs = {"scores": lambda x, y, s: (-(F.one_hot(y, 3) * (1 - s) + s / 3) * x.log_softmax(-1)).mean(),
            "twice": lambda x, y, s: F.cross_entropy(x.softmax(-1), y, label_smoothing=s),
            "fixed": lambda x, y, s: F.cross_entropy(x, y, label_smoothing=0.2)}
    assert rejected("smooth_cross_entropy", logs["scores"], "over the classes it is a sum")
    assert rejected("smooth_cross_entropy", logs["twice"], "one too many")
    assert rejected("smooth_cross_entropy", logs["fixed"], "smoothing 0.05")

    def adamw(only="", late=False):
        def step(w, g, m, v, t, lr, decay):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            first = m / (1 - 0.9**t) if only != "v" else m
            second = v / (1 - 0.999**t) if only != "m" else v
            moved = w - lr * first / (second.sqrt() + 1e-8)
            return (moved * (1 - lr * decay) if late else moved - lr * decay * w), m, v
        return step

    assert grade("adamw_step", adamw()).status == "right"
    assert rejected("adamw_step", adamw("m"), "only m is corrected")
    assert rejected("adamw_step", adamw("v"), "only v is corrected")
    assert rejected("adamw_step", adamw(late=True), "the step decays as well")

    def rate(start=None, rise=None, before=None, line=True, cosine=True):
        def of(epoch, epochs, warmup, lr, low, first, delay):
            if before is not None and epoch < delay:
                return before
            t = max(epoch - delay, 0)
            late = t if line else epoch
            if late < warmup:
                return (first if start is None else start) + late * (lr - first if rise is None else lr) / warmup
            return low + (lr - low) * (1 + math.cos(math.pi * (t if cosine else epoch) / epochs)) / 2
        return of

    assert grade("learning_rate", rate()).status == "right"
    assert rejected("learning_rate", rate(start=0.0, rise="lr"), "starts at warmup_lr")
    assert rejected("learning_rate", rate(rise="lr"), "by lr - warmup_lr")
    assert rejected("learning_rate", rate(before=0.0), "is warmup_lr, and not 0")
    assert rejected("learning_rate", rate(line=False), "only the cosine is late")
    assert rejected("learning_rate", rate(cosine=False), "only the warm-up is late")

    def targets(labels, box, size, classes, smoothing):
        top, bottom, left, right = (min(max(edge, 0), size) for edge in box)
        share = 1 - (bottom - top) * (right - left) / size**2
        own = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float64)
        own[torch.arange(len(labels)), labels] = 1 - smoothing
        return share * own + (1 - share) * own.flip(0)

    assert rejected("cutmix_targets", targets, "on top of their 1 - smoothing")
    assert rejected("repeated_epoch", (1_281_167 / 1024, 427_008), "steps should be a whole number")
    assert rejected("repeated_epoch", (math.inf, 427_008), "steps should be a whole number, and inf is none")
    assert rejected("repeated_epoch", (1251, 427_056), "whole groups of 256")


def test_chapter_09(rejected):
    def tile(largest=None, weights=None):
        def add(m, s, o, scores, values):
            here = scores.max(1).values
            new = torch.maximum(m, here) if largest is None else largest(m, here)
            kept = torch.exp(m - new)
            w = torch.exp(scores - (new if weights is None else weights(m, here))[:, None])
            return new, kept * s + w.sum(1), kept[:, None] * o + w @ values
        return add

    assert grade("add_tile", tile()).status == "right"
    assert rejected("add_tile", tile(weights=lambda m, here: here), "this tile's largest")
    assert rejected("add_tile", tile(weights=lambda m, here: m), "the old largest")
    assert rejected("add_tile", tile(largest=lambda m, here: torch.maximum(m, here).clamp(min=0)), "starts at 0")

    def crossing(sign=1.0, whole=False):
        def size(low, high, below, above):
            share = sign * math.log(1 / below) / math.log(above / below)
            return math.sqrt(low * high) if whole else low * (high / low) ** share
        return size

    assert grade("crossing", crossing()).status == "right"
    assert rejected("crossing", crossing(sign=-1.0), "wrong sign")
    assert rejected("crossing", crossing(whole=True), "middle of the two sizes")
