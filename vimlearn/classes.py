"""Classes by name: which of those that a network knows is which of those in the data.

ImageNet-1K's are wnids in folders and checkpoints, and words in the hub's dataset.
"""

__all__ = ["as_wnids", "class_number", "imagenet_wnids", "in_words", "positions", "stored_names"]

import json
from collections.abc import Mapping, Sequence
from functools import cache

from timm.data import ImageNetInfo

from .errors import VimlearnError, nearest

# Of 1,000 names, how many must agree: a few are worded differently from place to place.
ENOUGH = 950


@cache
def imagenet_wnids() -> tuple[str, ...]:
    """Return the 1,000 wnids of ImageNet-1K, n01440764 to n15075141, in the order of the labels."""
    return tuple(ImageNetInfo().label_names())


def as_wnids(names: Sequence[str]) -> tuple[str, ...]:
    """Return `names` as they are, or the wnids where they are ImageNet-1K's classes in words and in order."""
    words = ImageNetInfo().label_descriptions() if len(names) == 1000 else []
    same = sum(name == word for name, word in zip(names, words, strict=False))
    return imagenet_wnids() if same >= ENOUGH else tuple(names)


def positions(found: Sequence[str], known: Sequence[str]) -> tuple[int, ...]:
    """Return where each name in `found` stands in `known`. Raises VimlearnError where one is not there."""
    order = {name: i for i, name in enumerate(known)}
    strange = [name for name in found if name not in order]
    if strange:
        raise VimlearnError(f"{len(strange)} of the {len(found)} classes of the images, such as {strange[0]!r}, are "
                            f"not among the {len(known)} that the network knows, such as {known[0]!r}; expected images "
                            "of classes that it was trained on, under the same names")
    return tuple(order[name] for name in found)


def in_words(names: Sequence[str]) -> tuple[str, ...]:
    """Return names that people read: of wnids the first of ImageNet's words, such as "tench"; others as they are."""
    if tuple(names) != imagenet_wnids():
        return tuple(names)
    return tuple(words.split(",")[0] for words in ImageNetInfo().label_descriptions())


def class_number(name: str, names: Sequence[str] | None, count: int) -> int:
    """Return the number of the class that is called `name`, or whose number it is, out of `count` classes.

    Arguments: names, in order, wnids or words; None where nobody says them. Raises VimlearnError where there is none.
    """
    if name.removeprefix("-").isdigit():
        if not 0 <= int(name) < count:
            raise VimlearnError(f"there is no class {name}; expected 0 to {count - 1}")
        return int(name)
    if names is None:
        raise VimlearnError(f"the network does not name its classes, so {name!r} is not among them; expected a number, "
                            f"0 to {count - 1}")
    for known in (tuple(names), in_words(names)):
        if name in known:
            return known.index(name)
    raise VimlearnError(f"there is no class {name!r}{nearest(name, in_words(names))}; expected a number, 0 to "
                        f"{count - 1}, or a name such as {in_words(names)[0]}")


def stored_names(notes: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the names of the classes, in the order of the labels, that a file of weights says beside them.

    `notes` are those of `vimlearn.checkpoint.read_notes`. None where they say nothing; () where it cannot be read.
    """
    if "classes" not in notes:
        return None
    try:
        return tuple(map(str, json.loads(notes["classes"])))
    except (ValueError, TypeError, RecursionError):
        return ()
