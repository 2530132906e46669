"""Counts of operations and bytes, against hand counts and PyTorch's own counter; parts of the floor against them."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from vimlearn.benchmark import network_floor
from vimlearn.benchmark.case import Case, build
from vimlearn.benchmark.counts import attention_matrix_bytes, deit_counts, model_counts, scan_bytes, vim_counts


@pytest.mark.parametrize("width, giga", [(192, 1.29), (384, 4.85), (768, 18.77)])
def test_products_and_convolutions_of_vim_at_224_pixels(width, giga):
    counts = vim_counts(197, width)
    assert (counts.matrix + counts.convolution) / 1e9 == pytest.approx(giga, abs=0.005)


def test_a_vim_of_one_token_by_hand():
    # d 16, e 32, r 1, n 2, k 4, one layer, no patch and no class.
    counts = vim_counts(1, 16, depth=1, states=2, patches=0, classes=0)
    assert counts.matrix == 16 * 64 + 32 * 16 + 2 * (32 * (1 + 4) + 32)
    assert counts.convolution == 2 * 32 * 4
    assert (counts.scan, counts.products, counts.exponentials) == (2 * (2 * 64 + 32), 2 * (2 * 64 + 32), 2 * 64)


def counted(case) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        build(case)(torch.randn(1, 3, case.size, case.size))
    return counter.get_total_flops()


def test_pytorchs_counter_finds_the_same_for_plain_attention():
    case = Case("deit-ti-plain", 64)
    assert counted(case) == model_counts(case).flops(a_multiply_add=2)


def test_pytorchs_counter_misses_what_stands_in_the_kernels_of_vim():
    case = Case("vim-ti", 64)
    counts = model_counts(case)
    # The steps' projection is part of the scan's kernel.
    inside = 24 * 2 * 17 * 12 * 384
    assert counted(case) == 2 * (counts.matrix - inside)


def test_conventions():
    counts = deit_counts(197, 192)
    assert counts.flops(2) == 2 * counts.flops(1)
    assert counts.flops() - counts.flops(attention=False) == 12 * 2 * 197**2 * 192
    vim = vim_counts(197, 192)
    assert vim.flops() - vim.flops(scan=False) == vim.scan + vim.products + vim.exponentials
    assert vim.flops(an_exponential=10) - vim.flops() == 9 * vim.exponentials
    assert model_counts(Case("resnet-50")) is None


def test_twice_the_tokens_cost_vim_twice_and_attention_four_times():
    one, two = (vim_counts(l, 192, classes=0, patches=0).flops() for l in (1024, 2048))
    assert two == 2 * one
    assert deit_counts(2048, 192).attention == 4 * deit_counts(1024, 192).attention


def test_the_matrix_of_all_pairs_fits_the_papers_memory():
    # Three copies at batch 64: 2.25 GiB at 512 pixels, and 36 GiB at 1024.
    assert [3 * attention_matrix_bytes(l, 3, 64) / 2**30 for l in (1024, 4096)] == [2.25, 36]


def test_bytes_of_a_scan():
    # e 64, n 16, r 2: two directions read 64 + 34 numbers a token each, gate and output are 64 each.
    assert scan_bytes(5, 64, 16) == 5 * 4 * (2 * 98 + 128)


def test_the_floors_products_are_those_of_the_counts():
    parts = network_floor.parts(224, 192)
    counts = vim_counts(197, 192, classes=0)
    assert sum(part.flops for part in parts) == 2 * counts.matrix
    assert sum(part.states for part in parts) == counts.exponentials


def test_a_part_takes_the_larger_of_arithmetic_and_bytes():
    part = network_floor.Part("projection in", flops=2_000_000, numbers=240)
    assert network_floor.part_ms(part, 1e9, 50.0, lambda numbers: 1e9) == pytest.approx(2.0)
    assert network_floor.part_ms(part, 1e9, 50.0, lambda numbers: 1e5 if numbers == 10 else 1e9) == pytest.approx(9.6)
    scans = network_floor.Part("scans", flops=2_000_000, states=1)
    assert network_floor.part_ms(scans, 1e9, 50.0, lambda numbers: 1e9) == pytest.approx(52.0)


def test_floor_rows_add_up(monkeypatch):
    monkeypatch.setattr(network_floor, "LARGE", 64)
    monkeypatch.setattr(network_floor, "copy_rate", lambda numbers: 1e10)
    rows = {row["contestant"]: row for row in network_floor.floor_rows("vim-ti", (32,), rounds=1)}
    parts = [float(row["median_ms"]) for name, row in rows.items() if name.startswith("floor: ")]
    assert len(parts) == 7 and sum(parts) == pytest.approx(float(rows["floor"]["median_ms"]), rel=1e-2)
    reached = float(rows["floor"]["median_ms"]) / float(rows["network"]["median_ms"])
    assert float(rows["floor"]["share_reached"]) == pytest.approx(reached, abs=2e-3)


def test_the_sentence_on_the_floor_adds_up():
    ms = {"network": 10.0, "floor": 8.0, "floor: scans": 4.0, "floor: patches": 0.5, "floor: projection in": 1.5,
          "floor: norm and residual sum": 1.25, "floor: convolutions": 0.75}
    rows = [{"what": "vim-ti", "contestant": name, "median_ms": f"{value}"} for name, value in ms.items()]
    assert network_floor.floor_lines(rows) == ["vim-ti: 10 ms, 1.25 times its floor of 8 ms, which is scans 4, matrix "
                                               "products 2, bytes 2"]
