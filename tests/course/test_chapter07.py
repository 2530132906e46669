"""Chapter 07: plausible wrong answers are named."""

import math

import torch
import torch.nn.functional as F


def test_smooth_cross_entropy(rejected):
    assert rejected("smooth_cross_entropy", lambda x, y, s: F.cross_entropy(x, y), "smoothing plays no part")

    def others_only(logits, labels, smoothing):
        c = logits.shape[1]
        target = torch.full_like(logits, smoothing / (c - 1))
        target[torch.arange(len(labels)), labels] = 1 - smoothing
        return -(target * logits.log_softmax(1)).sum(1).mean()

    assert rejected("smooth_cross_entropy", others_only, "true one included")
    assert rejected("smooth_cross_entropy", lambda x, y, s: F.cross_entropy(x, y, label_smoothing=s, reduction="sum"),
                    "mean")

    def cut(logits, labels, smoothing):
        return F.cross_entropy(logits.detach().requires_grad_(), labels, label_smoothing=smoothing)

    assert rejected("smooth_cross_entropy", cut, "dlogits")


def adam(w, g, m, v, t, lr, decay, *, corrected=True, coupled=False, decays=True):
    if coupled:
        g = g + decay * w
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    a, b = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if corrected else (m, v)
    return w * (1 - lr * decay * (decays and not coupled)) - lr * a / (b.sqrt() + 1e-8), m, v


def test_adamw_step(rejected):
    assert rejected("adamw_step", lambda *x: adam(*x, corrected=False), "starting at 0")
    assert rejected("adamw_step", lambda *x: adam(*x, coupled=True), "decoupled")
    assert rejected("adamw_step", lambda *x: adam(*x, decays=False), "does not decay")
    assert rejected("adamw_step", lambda *x: adam(*x)[0], "3 values")

    def small_number(inside):
        def step(w, g, m, v, t, lr, decay):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            a, b = m / (1 - 0.9**t), v / (1 - 0.999**t)
            return w * (1 - lr * decay) - lr * a / ((b + 1e-8).sqrt() if inside else b.sqrt()), m, v
        return step

    assert rejected("adamw_step", small_number(False), "1e-8", "missing")


def test_decayed(rejected):
    assert rejected("decayed", "pos_embed", "list")
    assert rejected("decayed", "D", "one dimension")


def rate(epoch, epochs, warmup, lr, low, start, delay=0, after=0, first=0, late_line=True, floor=0):
    t = max(epoch - delay, floor)
    if (t if late_line else epoch) < warmup:
        return start + (t + first) * (lr - start) / warmup
    return low + (lr - low) / 2 * (1 + math.cos(math.pi * (t - after) / (epochs - after)))


def test_learning_rate(rejected):
    assert rejected("learning_rate", lambda *x: rate(*x, after=5), "counts from epoch 0")
    assert rejected("learning_rate", lambda *x: rate(*x, first=1), "runs at warmup_lr")

    def no_floor(epoch, epochs, warmup, lr, low, start, delay):
        return rate(epoch, epochs, warmup, lr, low if epoch < warmup else 0, start, delay)

    assert rejected("learning_rate", no_floor, "min_lr")

    def one_more(epoch, epochs, warmup, lr, low, start, delay):
        if epoch <= warmup:
            return start + epoch * (lr - start) / warmup
        return rate(epoch, epochs, warmup, lr, low, start, delay)

    assert rejected("learning_rate", one_more, "epoch < warmup")
    assert rejected("learning_rate", lambda e, n, *x: rate(e, n if e < 5 else n - 1, *x), "one epoch earlier")


def test_delay_of_the_learning_rate(rejected):
    assert rejected("learning_rate", lambda *x: rate(*x[:-1]), "delay plays no part")
    assert rejected("learning_rate", lambda *x: rate(*x[:-1], -x[-1]), "epoch - delay")
    assert rejected("learning_rate", lambda *x: rate(*x, floor=-99), "below 0 counts as 0")
    assert rejected("learning_rate", lambda *x: rate(*x, late_line=False), "where the warm-up ends")

    def cosine_alone(epoch, epochs, warmup, lr, low, start, delay):
        return rate(epoch, epochs, warmup, lr, low, start, delay if epoch >= warmup + delay else 0)

    assert rejected("learning_rate", cosine_alone, "the warm-up is, too")


def targets_of(labels, box, size, classes, smoothing, *, limited=True, share_of="first", partner="reversed"):
    """CutMix by painting the rectangle pixel by pixel."""
    top, bottom, left, right = box
    second = sum(1 for row in range(top, bottom) for column in range(left, right)
                 if not limited or (0 <= row < size and 0 <= column < size)) / size**2
    own = torch.full((len(labels), classes), smoothing / classes, dtype=torch.float64)
    own[torch.arange(len(labels)), labels] += 1 - smoothing
    other = own.flip(0) if partner == "reversed" else own.roll(-1, 0)
    first = 1 - second if share_of == "first" else second
    return first * own + (1 - first) * other


def test_cutmix_targets(rejected):
    assert rejected("cutmix_targets", lambda *x: targets_of(*x, limited=False), "not limited")
    assert rejected("cutmix_targets", lambda *x: targets_of(*x, share_of="second"), "exchanged")
    assert rejected("cutmix_targets", lambda *x: targets_of(*x, partner="next"), "reverse order", "next")
    assert rejected("cutmix_targets", lambda *x: targets_of(*x[:-1], 0.0), "smoothing plays no part")

    def one_wider(labels, box, size, classes, smoothing):
        return targets_of(labels, (box[0], box[1] + 1, box[2], box[3] + 1), size, classes, smoothing)

    assert rejected("cutmix_targets", one_wider, "ends", "not part")

    def single(labels, *rest):
        return targets_of(labels, *rest).float()

    assert rejected("cutmix_targets", single, "float32")


def test_repeated_epoch(rejected):
    assert rejected("repeated_epoch", (3753, 1281024), "does not grow")
    assert rejected("repeated_epoch", (1251, 1281024), "third of the places")
    assert rejected("repeated_epoch", (1251, 427055), "not of all images")
    assert rejected("repeated_epoch", (1252, 427008), "round down")
    assert rejected("repeated_epoch", (417, 427008), "twice")
    assert rejected("repeated_epoch", (427008, 1251), "exchanged")
