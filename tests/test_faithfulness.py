"""Whether maps are true: curves whose values are known, overlaps by counting, and a fake method that is found out."""

import pytest
import torch
from torch import nn

from vimlearn import VimlearnError, VisionMamba
from vimlearn.explain import METHODS, explain
from vimlearn.explain.faithfulness import area, deletion_curve, insertion_curve, ranking, to_cells
from vimlearn.explain.overlap import energy, intersection_over_union, pointing
from vimlearn.explain.sanity import cascade, is_insensitive, rank_correlation


class Weighing(nn.Module):
    """Two classes; the logit of the second is a weighted sum of the pixels, the other 0. shown: counts of images."""

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight, self.shown = weight, []

    def forward(self, images):
        self.shown.append(len(images))
        sums = (images * self.weight).flatten(1).sum(1)
        return torch.stack([torch.zeros_like(sums), sums], 1)


def linear(count: int = 3):
    """A model whose answer is known: images of 8 x 8 ones, and what each of 4 x 4 tiles adds to the logit."""
    adds = torch.randn(4, 4, dtype=torch.float64)
    weight = adds.repeat_interleave(2, 0).repeat_interleave(2, 1)[None] / 4
    return Weighing(weight), torch.ones(count, 1, 8, 8, dtype=torch.float64), adds.expand(count, 4, 4)


ONES = torch.ones(3, dtype=torch.long)


def test_the_curves_of_a_perfect_map_are_known():
    model, images, adds = linear()
    ordered = adds[0].flatten().sort(descending=True).values
    left = torch.cat([ordered.flip(0).cumsum(0).flip(0), torch.zeros(1)])[::2].sigmoid()
    torch.testing.assert_close(deletion_curve(model, images, adds, ONES, steps=8), left.expand(3, 9))
    put_in = torch.cat([torch.zeros(1), ordered.cumsum(0)])[::2].sigmoid()
    torch.testing.assert_close(insertion_curve(model, images, adds, ONES, steps=8), put_in.expand(3, 9))


def test_no_map_does_better_than_the_perfect_one():
    model, images, adds = linear()
    least, most = (area(curve(model, images, adds, ONES, steps=16)) for curve in (deletion_curve, insertion_curve))
    for _ in range(20):
        other = torch.randn(3, 4, 4)
        assert (area(deletion_curve(model, images, other, ONES, steps=16)) > least).all()
        assert (area(insertion_curve(model, images, other, ONES, steps=16)) < most).all()
    # The worst one, turned around
    torch.testing.assert_close(area(deletion_curve(model, images, -adds, ONES, steps=16)), most)


def test_the_curve_of_the_other_class_is_the_rest():
    model, images, adds = linear()
    one, other = (deletion_curve(model, images, adds, target) for target in (ONES, 0 * ONES))
    torch.testing.assert_close(one + other, torch.ones(3, 9, dtype=torch.float64))


def test_each_image_goes_by_its_own_map():
    model, images, _ = linear()
    maps = torch.randn(3, 4, 4)
    together = deletion_curve(model, images, maps, ONES)
    alone = torch.cat([deletion_curve(model, images[i:i + 1], maps[i:i + 1], ONES[:1]) for i in range(3)])
    torch.testing.assert_close(together, alone)


def test_blur_keeps_an_even_image_and_removes_detail():
    model, images, adds = linear()
    even = deletion_curve(model, images, adds, ONES, fill="blur")
    torch.testing.assert_close(even, even[:, :1].expand_as(even))
    checks = (torch.arange(8)[:, None] + torch.arange(8)) % 2 * 2.0 - 1
    picky = Weighing(checks / 8)
    curve = deletion_curve(picky, checks.expand(3, 1, 8, 8), adds, ONES, fill="blur")
    # Half of the detail is half of the logit.
    assert curve[0, 0] > 0.99 and curve[0, 4].logit() == pytest.approx(4, abs=0.2) and curve[0, -1] < 0.55


def test_many_images_are_shown_in_parts(monkeypatch):
    monkeypatch.setattr("vimlearn.explain.faithfulness.SHOWN", 20)
    model, images, adds = linear()
    deletion_curve(model, images, adds, ONES)
    assert model.shown == [18, 9]


def test_area():
    torch.testing.assert_close(area(torch.tensor([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]])), torch.tensor([0.5, 0.25]))


def test_equal_cells_are_ranked_at_random():
    flat = torch.zeros(2, 10, 10)
    flat[1, 7, 7] = 1
    order = ranking(flat)
    assert order[0].tolist() != list(range(100)) and sorted(order[0].tolist()) == list(range(100))
    assert order[1, 0] == 77
    # From the top left to the bottom right, the mean place of the first half would be 24.5.
    assert abs(order[0, :50].double().mean() - 49.5) < 12


def test_cells_are_means_of_pixels():
    pixels = torch.arange(16.0).reshape(1, 4, 4)
    assert to_cells(pixels, (2, 2)).flatten().tolist() == [2.5, 4.5, 10.5, 12.5]
    assert to_cells(pixels, (4, 4)) is pixels


@pytest.mark.parametrize("change, message", [
    ({"maps": torch.zeros(2, 4, 4)}, r"maps have shape \(2, 4, 4\); expected \(3, rows, columns\)"),
    ({"maps": torch.zeros(3, 3, 3)}, r"cannot be cut into \(3, 3\) tiles"),
    ({"maps": torch.full((3, 4, 4), torch.nan)}, "numbers that are not finite"),
    ({"target": torch.ones(2, dtype=torch.long)}, r"target has shape \(2,\); expected \(3,\)"),
    ({"steps": 17}, "steps is 17; expected 1 to 16, the count of tiles"),
    ({"steps": 0}, "steps is 0"),
    ({"fill": "white"}, "unknown fill 'white'; expected one of mean, blur"),
])
def test_what_does_not_fit_is_refused(change, message):
    model, images, adds = linear()
    with pytest.raises(VimlearnError, match=message):
        deletion_curve(**{"model": model, "images": images, "maps": adds, "target": ONES} | change)


# Overlap

def masks_and_maps():
    """A mask of 3 of 16 tiles, of which one is half covered, and the map that is right."""
    mask = torch.zeros(1, 8, 8, dtype=torch.bool)
    mask[0, 2:4, 2:6] = True
    mask[0, 4:6, 4] = True
    share = to_cells(mask.double(), (4, 4))
    return mask, share


def test_a_right_map_overlaps_fully():
    mask, share = masks_and_maps()
    assert pointing(share, mask).item() == 1
    assert energy((share > 0).double(), mask).item() == pytest.approx(2.5 / 3)
    # Of 2.5 tiles, 2 are taken: all of them object.
    assert intersection_over_union(share, mask).item() == pytest.approx(2 / 2.5)


def test_a_map_beside_the_object_does_not():
    mask, share = masks_and_maps()
    assert pointing(-share, mask).item() == 0
    assert energy((share == 0).double(), mask).item() == 0
    assert intersection_over_union((share == 0).double(), mask).item() == 0


def test_a_random_map_scores_what_the_object_covers():
    mask, _ = masks_and_maps()
    mask, maps = mask.expand(4000, 8, 8), torch.rand(4000, 4, 4)
    covered = mask[0].double().mean().item()
    assert pointing(maps, mask).mean().item() == pytest.approx(covered, abs=0.02)
    assert energy(maps, mask).mean().item() == pytest.approx(covered, abs=0.01)
    assert intersection_over_union(maps, mask).mean().item() < 0.12


def test_parts_below_zero_carry_no_energy():
    mask, share = masks_and_maps()
    assert energy(share - 0.75, mask).item() == 1
    # Nothing above 0: as an even map
    assert energy(-torch.ones(1, 4, 4), mask).item() == pytest.approx(mask.double().mean().item())


def test_an_empty_mask_is_refused():
    with pytest.raises(VimlearnError, match="mask 1 is empty; expected at least one pixel"):
        pointing(torch.rand(2, 4, 4), torch.stack([torch.ones(8, 8), torch.zeros(8, 8)]))
    with pytest.raises(VimlearnError, match=r"expected \(b, rows, columns\) and \(b, H, W\)"):
        energy(torch.rand(2, 4, 4), torch.ones(3, 8, 8))


# Fresh weights

@pytest.fixture(scope="module")
def trained() -> VisionMamba:
    """A network whose weights are far from fresh ones, as after training."""
    torch.manual_seed(1)
    model = VisionMamba(img_size=16, patch_size=4, num_classes=3, embed_dim=16, depth=2, d_state=2).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def test_fresh_weights_come_from_the_head_down(trained):
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    changed = {}
    for name, network in cascade(trained):
        state = network.state_dict()
        changed[name] = {key for key, value in before.items() if not torch.equal(value, state[key])}
        assert not network.training
    assert list(changed) == ["head", "layer 1", "layer 0", "all"]
    assert changed["head"] == {"head.weight", "head.bias"}
    assert changed["layer 1"] - changed["head"] == {key for key in before if key.startswith("layers.1.")}
    assert changed["all"] == set(before)
    assert all(torch.equal(value, trained.state_dict()[key]) for key, value in before.items())


def last_correlation(trained, method) -> torch.Tensor:
    images = torch.randn(4, 3, 16, 16)
    *_, (_, network) = cascade(trained)
    return rank_correlation(method(trained, images), method(network, images))


def test_a_method_that_ignores_the_weights_is_found(trained):
    def edges(model, images):
        return to_cells(images.diff(dim=2, append=images[:, :, :1]).abs().sum(1), (4, 4))

    assert is_insensitive(last_correlation(trained, edges))
    assert not is_insensitive(last_correlation(trained, lambda model, images: explain(model, images, "attribution")))


def test_the_head_is_none_of_the_business_of_hidden_attention(trained):
    images = torch.randn(4, 3, 16, 16)
    _, network = next(cascade(trained))
    torch.testing.assert_close(explain(trained, images, "hidden"), explain(network, images, "hidden"))
    assert rank_correlation(*(to_cells(explain(model, images, "input-gradient", target=1), (4, 4))
                              for model in (trained, network))).mean() < 0.9


def test_rank_correlation():
    from scipy.stats import spearmanr

    first, second = torch.randint(0, 9, (2, 5, 3, 4)).double()
    expected = [spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(rank_correlation(first, second), torch.tensor(expected, dtype=torch.float64))
    assert rank_correlation(first, torch.ones_like(first)).tolist() == [0] * 5
    assert rank_correlation(first, -first.exp()).tolist() == pytest.approx([-1] * 5)


def test_every_method_gives_maps_that_can_be_measured(trained):
    images = torch.randn(2, 3, 16, 16)
    for name in METHODS:
        maps = to_cells(explain(trained, images, name), (4, 4))
        curve = deletion_curve(trained, images, maps, torch.zeros(2, dtype=torch.long), steps=4)
        assert curve.shape == (2, 5) and ((0 <= curve) & (curve <= 1)).all()
