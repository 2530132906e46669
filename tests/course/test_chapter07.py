"""Chapter 07: plausible wrong answers are named."""

import math

import torch
import torch.nn.functional as F


def test_ignorance(rejected):
    rejected("ignorance", 0.1, "probability itself")
    rejected("ignorance", 3.3219, "base 2")
    rejected("ignorance", -2.3026, "sign")


def test_smooth_cross_entropy(rejected):
    rejected("smooth_cross_entropy", lambda x, y, s: F.cross_entropy(x, y), "smoothing plays no part")

    def others_only(logits, labels, smoothing):
        c = logits.shape[1]
        target = torch.full_like(logits, smoothing / (c - 1))
        target[torch.arange(len(labels)), labels] = 1 - smoothing
        return -(target * logits.log_softmax(1)).sum(1).mean()

    rejected("smooth_cross_entropy", others_only, "true one included")
    rejected("smooth_cross_entropy", lambda x, y, s: F.cross_entropy(x, y, label_smoothing=s, reduction="sum"), "mean")

    def cut(logits, labels, smoothing):
        return F.cross_entropy(logits.detach().requires_grad_(), labels, label_smoothing=smoothing)

    rejected("smooth_cross_entropy", cut, "dlogits")


def adam(w, g, m, v, t, lr, decay, *, corrected=True, coupled=False, decays=True):
    if coupled:
        g = g + decay * w
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
    a, b = (m / (1 - 0.9**t), v / (1 - 0.999**t)) if corrected else (m, v)
    return w * (1 - lr * decay * (decays and not coupled)) - lr * a / (b.sqrt() + 1e-8), m, v


def test_adamw_step(rejected):
    rejected("adamw_step", lambda *x: adam(*x, corrected=False), "starting at 0")
    rejected("adamw_step", lambda *x: adam(*x, coupled=True), "decoupled")
    rejected("adamw_step", lambda *x: adam(*x, decays=False), "does not decay")
    rejected("adamw_step", lambda *x: adam(*x)[0], "3 values")

    def small_number(inside):
        def step(w, g, m, v, t, lr, decay):
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
            a, b = m / (1 - 0.9**t), v / (1 - 0.999**t)
            return w * (1 - lr * decay) - lr * a / ((b + 1e-8).sqrt() if inside else b.sqrt()), m, v
        return step

    rejected("adamw_step", small_number(False), "1e-8", "missing")


def test_decayed(rejected):
    rejected("decayed", "pos_embed", "list")
    rejected("decayed", "D", "one dimension")


def test_learning_rate(rejected):
    def rate(epoch, epochs, warmup, lr, low, start, after=0, first=0):
        if epoch < warmup:
            return start + (epoch + first) * (lr - start) / warmup
        return low + (lr - low) / 2 * (1 + math.cos(math.pi * (epoch - after) / (epochs - after)))

    rejected("learning_rate", lambda *x: rate(*x, after=5), "counts from epoch 0")
    rejected("learning_rate", lambda *x: rate(*x, first=1), "runs at warmup_lr")

    def no_floor(epoch, epochs, warmup, lr, low, start):
        return rate(epoch, epochs, warmup, lr, low if epoch < warmup else 0, start)

    rejected("learning_rate", no_floor, "min_lr")

    def one_more(epoch, epochs, warmup, lr, low, start):
        if epoch <= warmup:
            return start + epoch * (lr - start) / warmup
        return rate(epoch, epochs, warmup, lr, low, start)

    rejected("learning_rate", one_more, "epoch < warmup")
    rejected("learning_rate", lambda e, n, *x: rate(e, n if e < 5 else n - 1, *x), "one epoch earlier")


def test_confusion_matrix(rejected):
    def by_index(labels, predictions, classes):
        matrix = torch.zeros(classes, classes, dtype=torch.int64)
        matrix[labels, predictions] += 1
        return matrix

    def exchanged(labels, predictions, classes):
        return torch.bincount(predictions * classes + labels, minlength=classes**2).view(classes, classes)

    rejected("confusion_matrix", by_index, "count once")
    rejected("confusion_matrix", exchanged, "exchanged")
