"""Checks of chapter 07: loss, optimiser, schedule, mixed targets and epoch of a training run."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from vimlearn.course.exercise import call, choose, exercise, gradients, match, parts


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _smoothed(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    return F.cross_entropy(logits, labels, label_smoothing=smoothing)


@exercise("7.1", "Cross-entropy with label smoothing")
def smooth_cross_entropy(answer):
    """Mean over the batch of - sum over classes of target times log-probability."""
    logits, labels, smoothing = 2 * _randn(4, 3), torch.tensor([2, 0, 1, 1]), 0.2
    log_p = logits.log_softmax(-1)
    true = -log_p.gather(1, labels[:, None])[:, 0]
    others = -(log_p.sum(1) + true) / 2
    match(call(answer, logits, labels, smoothing), _smoothed(logits, labels, smoothing), name="the loss", mistakes={
        "this is the plain cross-entropy; smoothing plays no part": true.mean(),
        "the smoothed share goes to all c classes, the true one included, and not to the c - 1 others":
            ((1 - smoothing) * true + smoothing * others).mean(),
        "the true class keeps 1 - smoothing and gets smoothing / c on top of it":
            ((1 - smoothing) * true - smoothing / 3 * (log_p.sum(1) + true)).mean(),
        "the smoothed share is divided by c: each class gets smoothing / c":
            ((1 - smoothing) * true - smoothing * log_p.sum(1)).mean(),
        "take the mean over the batch alone; over the classes it is a sum": _smoothed(logits, labels, smoothing) / 3,
        "the true class gives up its smoothing: it keeps 1 - smoothing": (true - smoothing * log_p.mean(1)).mean(),
        "smoothing and 1 - smoothing are exchanged":
            (smoothing * true - (1 - smoothing) * log_p.mean(1)).mean(),
        "cross-entropy takes logits; a softmax before it is one too many": _smoothed(logits.softmax(-1), labels, 0.2),
        "take the mean over the batch, and not the sum": _smoothed(logits, labels, smoothing) * 4,
        "the logits go through a softmax before the logarithm":
            -((1 - smoothing) * logits.gather(1, labels[:, None])[:, 0] + smoothing * logits.mean(1)).mean(),
    })

    match(call(answer, logits, labels, 0.05), _smoothed(logits, labels, 0.05), name="the loss with smoothing 0.05")

    def own(logits):
        return answer(logits, labels, 0.2)

    match(gradients(own, logits), gradients(lambda x: _smoothed(x, labels, 0.2), logits), name=("dlogits",))
    return "each class gets smoothing / c, the true one 1 - smoothing more, and the gradient agrees."


def _adamw(w, g, m, v, t, lr, decay):
    m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
    step = (m / (1 - 0.9**t)) / ((v / (1 - 0.999**t)).sqrt() + 1e-8)
    return w - lr * decay * w - lr * step, m, v


@exercise("7.2", "One step of AdamW")
def adamw_step(answer):
    """Loshchilov and Hutter 2019, Algorithm 2; betas 0.9 and 0.999, eps 1e-8."""
    w, g, m, v = _randn(3), _randn(3, seed=1), 0.1 * _randn(3, seed=2), _randn(3, seed=3).square() * 0.01
    # Of both signs
    g = g * torch.tensor([1.0, -1.0, 1.0])
    t, lr, decay = 3, 0.1, 0.3
    new_w, new_m, new_v = parts(call(answer, w, g, m, v, t, lr, decay), "w", "m", "v")
    right_w, right_m, right_v = _adamw(w, g, m, v, t, lr, decay)
    match(new_m, right_m, name="m", mistakes={
        "m takes 0.1 of the new gradient and keeps 0.9, and not the other way round": 0.1 * m + 0.9 * g,
        "weight decay is decoupled: it acts on w, and does not go into the gradient": 0.9 * m + 0.1 * (g + decay * w),
    })
    match(new_v, right_v, name="v", mistakes={
        "v averages the square of the gradient, and not its size": 0.999 * v + 0.001 * g.abs(),
        "v averages the square of the gradient, and not the gradient": 0.999 * v + 0.001 * g,
        "v keeps 0.999, and not 0.9": 0.9 * v + 0.1 * g * g,
    })
    hat_m, hat_v = right_m / (1 - 0.9**t), right_v / (1 - 0.999**t)
    step, shrunk = lr * hat_m / (hat_v.sqrt() + 1e-8), w - lr * decay * w
    match(new_w, right_w, name="w", mistakes={
        "m and v are not corrected for starting at 0: divide by 1 - beta^t":
            shrunk - lr * right_m / (right_v.sqrt() + 1e-8),
        "only m is corrected for starting at 0; v is, too": shrunk - lr * hat_m / (right_v.sqrt() + 1e-8),
        "only v is corrected for starting at 0; m is, too": shrunk - lr * right_m / (hat_v.sqrt() + 1e-8),
        "the step takes the old m and v; it takes the new ones":
            shrunk - lr * m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8),
        "the step decays as well; only the old w does": (w - step) * (1 - lr * decay),
        "w keeps 1 - lr decay of itself, and loses lr decay": w - lr * (1 - decay) * w - step,
        "w does not decay": w - step,
        "the decay is a share lr times decay of w: the lr is missing": w - decay * w - step,
        "divide by the root of v, and not by v": shrunk - lr * hat_m / (hat_v + 1e-8),
        "the step goes against the gradient: the sign is wrong": shrunk + step,
    })
    # A gradient of the size of the 1e-8, so that its place shows.
    zero, g = torch.zeros(3, dtype=torch.float64), torch.tensor([1e-8, -3e-8, 5e-9], dtype=torch.float64)
    found, *_ = parts(call(answer, w, g, zero, zero, 1, lr, 0.0), "w", "m", "v")
    match(found, _adamw(w, g, zero, zero, 1, lr, 0.0)[0], name="w after a tiny gradient", mistakes={
        "the 1e-8 beside the root is missing": w - lr * g.sign(),
        "the 1e-8 stands outside of the root, and not under it": w - lr * g / (g * g + 1e-8).sqrt(),
    })
    return "averages, correction, step and decoupled decay agree with AdamW."


@exercise("7.3", "What decays")
def decayed(answer):
    """The only matrix among four parameters."""
    choose(answer, "A_log", wrong={
        "D": "D has one dimension, (e,); vectors are left alone",
        "dt_proj.bias": "a bias has one dimension; vectors are left alone",
        "pos_embed": "pos_embed is on the network's no_weight_decay list",
    })
    return "A_log is a matrix (e, n) and on no list, so it decays, in the published runs too."


def _rate(epoch, epochs, warmup, lr, min_lr, warmup_lr, delay=0):
    t = max(epoch - delay, 0)
    if t < warmup:
        return warmup_lr + t * (lr - warmup_lr) / warmup
    return min_lr + (lr - min_lr) * (1 + math.cos(math.pi * t / epochs)) / 2


@exercise("7.4", "The learning rate of an epoch")
def learning_rate(answer):
    """Linear warm-up, then a cosine over all epochs, counted from 0, the whole of it some epochs late."""
    facts = {"epochs": 20, "warmup": 5, "lr": 1e-3, "min_lr": 1e-5, "warmup_lr": 1e-6}
    values = tuple(facts.values())
    for epoch in (0, 2, 4):
        found = call(answer, epoch, *values, 0)
        name = f"the rate of epoch {epoch}, without delay,"
        match(found, _rate(epoch, *values), rtol=1e-6, atol=0, name=name, mistakes={
            "the line rises from warmup_lr to lr, so by lr - warmup_lr": 1e-6 + epoch * 1e-3 / 5,
            "epoch 0 is the first: it runs at warmup_lr": _rate(epoch + 1, *values),
            "the warm-up starts at warmup_lr, and not at 0": epoch * 1e-3 / 5,
            "before epoch `warmup` the rate rises; the cosine comes after": _cosine(epoch, 20),
        })
    for epoch in (12, 20, 5):
        found = call(answer, epoch, *values, 0)
        name = f"the rate of epoch {epoch}, without delay,"
        match(found, _rate(epoch, *values), rtol=1e-6, atol=0, name=name, mistakes={
            "the cosine falls from lr to min_lr: scale lr - min_lr, and not lr":
                1e-5 + 1e-3 * (1 + math.cos(math.pi * epoch / 20)) / 2,
            "the cosine ends at min_lr: add it": 0.99e-3 * (1 + math.cos(math.pi * epoch / 20)) / 2,
            "epoch `warmup` is the first on the cosine: the line is for epoch < warmup":
                facts["lr"] if epoch == facts["warmup"] else math.nan,
            "the cosine counts from epoch 0, and not from the end of the warm-up": _cosine(epoch - 5, 15),
            "the cosine ends at min_lr: add it, and scale lr - min_lr": 1e-3 * (1 + math.cos(math.pi * epoch / 20)) / 2,
            "the cosine reaches its end at epoch `epochs`, and not one epoch earlier": _cosine(epoch, 19),
            "the half is missing: 1 + cos runs from 2 to 0": 1e-5 + 0.99e-3 * (1 + math.cos(math.pi * epoch / 20)),
            "half a wave and no whole one: cos(pi epoch / epochs)":
                1e-5 + 0.99e-3 * (1 + math.cos(2 * math.pi * epoch / 20)) / 2,
        })
    # Late by 2, all at once: a single epoch does not tell a delay of one half from none. The warm-up's last is 6.
    late = (0, 1, 3, 5, 6, 7, 15)
    late_line = [_rate(e, *values, 2) if e < 7 else _rate(e, *values) for e in late]
    late_cosine = [_rate(e, *values) if e < 5 else _cosine(e - 2, 20) for e in late]
    match([call(answer, e, *values, 2) for e in late], [_rate(e, *values, 2) for e in late], rtol=1e-6, atol=0,
          name=tuple(f"the rate of epoch {e}, 2 epochs late," for e in late), mistakes={
        "before the schedule starts the rate stays at warmup_lr: an epoch below 0 counts as 0":
            [1e-6 + (e - 2) * (1e-3 - 1e-6) / 5 if e < 2 else _rate(e, *values, 2) for e in late],
        "before the schedule starts the rate is warmup_lr, and not 0":
            [0.0 if e < 2 else _rate(e, *values, 2) for e in late],
        "the delay plays no part": [_rate(e, *values) for e in late],
        "only the warm-up is late; the cosine is, too": late_line,
        "only the cosine is late; the warm-up is, too": late_cosine,
        "only what comes after epoch `warmup` + `delay` is late; the warm-up is, too":
            [_rate(e, *values, 2) if e >= 7 else _rate(e, *values) for e in late],
        "a late schedule is read at an earlier epoch: epoch - delay, and not epoch + delay":
            [_rate(e + 2, *values) for e in late],
        "the delayed epoch also decides where the warm-up ends":
            [_cosine(e - 2, 20) if e >= 5 else _rate(e, *values, 2) for e in late],
    })
    return "linear up to epoch 5, then half a cosine wave that counts from epoch 0, all of it `delay` epochs late."


def _cosine(epoch: int, epochs: int) -> float:
    return 1e-5 + 0.99e-3 * (1 + math.cos(math.pi * epoch / epochs)) / 2


def _mixed(labels, share, classes, smoothing, partner=None, rest=1.0, others=None):
    """Mix smoothed targets. rest: what the true class gets of its smoothing / c; others: how many classes share it."""
    true = F.one_hot(labels, classes).double()
    own = true * (1 - smoothing) + smoothing / (others or classes) * (1 - true * (1 - (0.0 if others else rest)))
    return share * own + (1 - share) * (own.flip(0) if partner is None else own[partner])


@exercise("7.5", "The targets of CutMix")
def cutmix_targets(answer):
    """The share is what is left of the first image, after the rectangle was limited to the image."""
    labels, classes, smoothing = torch.tensor([2, 0, 4, 1]), 5, 0.1
    for box, where in (((2, 5, 1, 7), "inside"), ((-3, 5, 6, 11), "beyond two edges")):
        top, bottom, left, right = box
        whole = (bottom - top) * (right - left) / 64
        gone = (min(bottom, 8) - max(top, 0)) * (min(right, 8) - max(left, 0)) / 64
        match(
            call(answer, labels, box, 8, classes, smoothing), _mixed(labels, 1 - gone, classes, smoothing),
            name=f"the targets for a rectangle {where}", mistakes={
                "the two shares are exchanged: the first image keeps 1 minus the area of the rectangle":
                    _mixed(labels, gone, classes, smoothing),
                "the rectangle is not limited to the image: what lies outside does not count":
                    _mixed(labels, 1 - whole if whole > gone else math.nan, classes, smoothing),
                "smoothing plays no part": _mixed(labels, 1 - gone, classes, 0.0),
                "the partners are the batch in reverse order, and not the next images":
                    _mixed(labels, 1 - gone, classes, smoothing, torch.tensor([1, 2, 3, 0])),
                "the partners are the batch in reverse order, and not the images before":
                    _mixed(labels, 1 - gone, classes, smoothing, torch.tensor([3, 0, 1, 2])),
                "the ends of the rectangle are not part of it":
                    _mixed(labels, 1 - (bottom - top + 1) * (right - left + 1) / 64, classes, smoothing),
                "every class gets smoothing / c, the true ones on top of their 1 - smoothing":
                    _mixed(labels, 1 - gone, classes, smoothing, rest=0.0),
                "smoothing is shared by c classes, and not by the c - 1 others":
                    _mixed(labels, 1 - gone, classes, smoothing, others=classes - 1),
                "the partner's target is missing: mix both by their shares":
                    _mixed(labels, 1.0, classes, smoothing),
                "every class gets smoothing / c, the true ones as well":
                    _mixed(labels, 1 - gone, classes, smoothing) - smoothing / classes
                    * (_mixed(labels, 1 - gone, classes, 0.0) > 0),
            })
    return "the share is what can be seen, and both smoothed targets are mixed by it."


@exercise("7.6", "An epoch of ImageNet")
def repeated_epoch(answer):
    """1,281,024 places: 1,251 batches of 1,024, and a third of them different images."""
    places = 1_281_167 // 256 * 256
    steps, images = places // 1024, places // 3
    match(answer, (steps, images), name=("steps", "images"), mistakes={
        "an epoch does not grow with the repeats: it has as many places as without": (3 * steps, places),
        "steps are right; the epoch does not grow, so a third of the places are different images": (steps, places),
        "steps are right; take a third of the places, and not of all images": (steps, 1_281_167 // 3),
        "what is less than a batch is not used: round down": (steps + 1, images),
        "steps are right; places are cut to whole groups of 256 before they are divided by 3": (steps, 427_056),
        "images are right; an epoch does not grow with the repeats": (3 * steps, images),
        "images are right; a batch has 1,024 places, and not 256": (4 * steps, images),
        "that divides twice: three places are one image, but a step is 1,024 places": (steps // 3, images),
        "the two numbers are exchanged: steps first": (images, steps),
    })
    return "1,251 steps and 427,008 images; the published trainer counts the same steps."
