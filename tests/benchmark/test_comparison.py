"""Contestants in turns: ratios, rounds, and what becomes of one that cannot go on."""

import os
import signal

import pytest
import torch
from fakes import workers

from vimlearn import VimlearnError
from vimlearn.benchmark.case import MODELS, Case, build, check, groups
from vimlearn.benchmark.cores import Cores, busy_seconds
from vimlearn.benchmark.models import Rules, compare, measure
from vimlearn.benchmark.peak import PeakMeter
from vimlearn.benchmark.runner import Runner, is_out_of_memory
from vimlearn.benchmark.worker import Broken, Worker

LINUX = os.path.exists("/proc/self/clear_refs")
PAIR = [Case("vim-ti", 224), Case("deit-ti-plain", 224)]


def by_model(rows):
    return {row["model"]: row for row in rows}


def test_rows_hold_medians_and_ratios_to_the_first():
    rows = by_model(measure(PAIR, Rules(), workers({"vim-ti": 0.5, "deit-ti-plain": 2.0})))
    vim, deit = rows["vim-ti"], rows["deit-ti-plain"]
    assert (vim["median_ms"], vim["ratio"], deit["median_ms"], deit["ratio"]) == (500, 1, 2000, 4)
    assert (deit["to"], deit["images_per_second"], deit["peak_mb"], deit["parameters"]) == ("vim-ti", 0.5, 112, 7)
    assert (vim["tokens"], vim["status"], vim["spread"]) == (197, "ok", 0)


def test_contestants_alternate_and_end():
    log = []
    measure(PAIR, Rules(rounds=2, least_rounds=1), workers({"vim-ti": 1e-3, "deit-ti-plain": 1e-3}, log=log))
    turns = [model for model, _, command in log if command == "turn"]
    assert turns == ["vim-ti", "deit-ti-plain"] * 2
    assert {model for model, _, command in log if command == "close"} == {"vim-ti", "deit-ti-plain"}


@pytest.mark.parametrize("seconds, rounds", [(1e-3, 15), (5.0, 6), (100.0, 3)])
def test_slow_contestants_get_fewer_rounds_and_never_less_than_the_least(seconds, rounds):
    rows = measure(PAIR, Rules(budget=60), workers({"vim-ti": seconds, "deit-ti-plain": seconds}))
    assert [row["rounds"] for row in rows] == [rounds, rounds]


@pytest.mark.parametrize("command", ["load", "warm_up", "again", "turn"])
@pytest.mark.parametrize("status", ["out of memory", "killed"])
def test_one_that_breaks_is_a_row_and_the_others_go_on(command, status):
    rows = by_model(measure(PAIR, Rules(), workers({}, {("deit-ti-plain", 224): (status, "because", command)})))
    deit = rows["deit-ti-plain"]
    assert (deit["status"], deit["why"], deit.get("median_ms")) == (status, "because", None)
    assert rows["vim-ti"]["status"] == "ok" and rows["vim-ti"]["rounds"] == 15


def test_without_the_first_there_are_no_ratios():
    rows = by_model(measure(PAIR, Rules(), workers({}, {("vim-ti", 224): ("killed", "", "again")})))
    assert rows["deit-ti-plain"]["median_ms"] == 1000 and "ratio" not in rows["deit-ti-plain"]


def test_what_is_too_slow_is_called_no_more():
    log = []
    rows = by_model(measure(PAIR, Rules(longest=10), workers({"deit-ti-plain": 11.0}, log=log)))
    assert rows["deit-ti-plain"]["status"] == "too slow" and rows["deit-ti-plain"]["median_ms"] == 11_000
    assert ("deit-ti-plain", 224, "turn") not in log



def test_a_killed_process_is_told_from_one_that_fails():
    worker = Worker(Case("vim-ti", 32))
    worker.wait()
    os.kill(worker._process.pid, signal.SIGKILL)
    with pytest.raises(Broken, match="ended by signal 9, as the system does when memory runs out") as end:
        worker.ask("load")
    assert end.value.status == "killed"
    worker.close()


@pytest.mark.skipif(not LINUX, reason="memory of a process is watched on Linux")
def test_processes_measure_and_a_memory_limit_is_a_row():
    rows = compare(["vim-ti", "deit-ti-fused"], 32, Rules(rounds=2, least_rounds=2, turn=1e-3, threads=1))
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(0 < row["fastest_ms"] <= row["median_ms"] <= row["slowest_ms"] and row["peak_mb"] > 0 for row in rows)
    limited = compare(["deit-ti-plain"], 32, Rules(memory_limit=1e-3, threads=1))
    assert (limited[0]["status"], limited[0]["why"]) == ("out of memory", "it went over the memory limit")


def test_a_process_that_cannot_build_its_network_says_why():
    worker = Worker(Case("vim-ti", 8), threads=1)
    worker.wait()
    with pytest.raises(Broken, match=r"failed: VimlearnError: img_size .8, 8. is smaller than one patch") as end:
        worker.ask("load")
    assert end.value.status == "failed"
    worker.close()


@pytest.mark.skipif(not LINUX, reason="the highest resident size can be forgotten on Linux")
def test_peak_memory_is_that_of_the_call_alone():
    meter, size = PeakMeter("cpu"), 64_000_000
    assert meter.after_warmup
    torch.ones(4 * size, dtype=torch.uint8)  # an earlier, higher peak
    meter.start()
    kept = torch.ones(size, dtype=torch.uint8)
    del kept
    assert meter.stop() == pytest.approx(size, rel=0.1)


def test_a_runner_times_calls_of_what_it_is_given():
    calls = []
    runner = Runner(Case("vim-ti", 32), lambda case: (lambda: calls.append(case), 3))
    assert runner.load() == {"parameters": 3}
    runner.warm_up()
    assert "peak_mb" in runner.again() or not runner.meter.after_warmup
    assert runner.turn(4)["seconds"] > 0 and len(calls) == 6


def test_a_runner_leaves_the_memory_of_a_gpu_to_the_others(monkeypatch):
    """Else the sum of all peaks would have to fit, and the first call of another would run out of memory."""
    log = []
    for name in ("synchronize", "empty_cache", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: log.append(name))
    for name in ("memory_allocated", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, lambda: 0)
    runner = Runner(Case("vim-ti", 32, device="cuda"), lambda case: (lambda: log.append("call"), 3))
    runner.load()
    for work in (runner.warm_up, runner.again, lambda: runner.turn(2)):
        work()
        assert "call" in log and log[-1] == "empty_cache"
        log.clear()


@pytest.mark.parametrize("error, found", [
    (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
    (torch.OutOfMemoryError("CUDA out of memory"), True), (MemoryError(), True),
    (RuntimeError("shapes do not fit"), False), (ValueError("out of memory"), False)])
def test_errors_of_memory_are_told_from_others(error, found):
    assert is_out_of_memory(error) == found


@pytest.mark.skipif(busy_seconds() is None, reason="the system does not say how busy its cores are")
def test_cores_that_others_use_are_seen(monkeypatch):
    busy = iter((100.0, 103.0))
    clock = iter((0.0, 2.0))
    monkeypatch.setattr("vimlearn.benchmark.cores.busy_seconds", lambda: next(busy))
    monkeypatch.setattr("vimlearn.benchmark.cores.time.perf_counter", lambda: next(clock))
    cores = Cores()
    with cores.turn() as turn:
        turn.own = 2.0
    # Three core seconds in two seconds, two of them the contestant's own.
    assert cores.elsewhere() == 0.5


def test_attention_is_fused_or_plain_as_the_name_says():
    for name, model in MODELS.items():
        if name.startswith("deit-ti"):
            network = build(Case(name, 32))
            assert {block.attn.fused_attn for block in network.blocks} == {model.fused}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_networks_are_built_in_their_dtype(dtype):
    network = build(Case("vim-ti", 32, dtype=dtype))
    assert {p.dtype for p in network.parameters()} == {getattr(torch, dtype)} and not network.training


def test_the_backbone_of_a_pyramid_has_no_class_token_and_no_head():
    levels = build(Case("vim-ti", 64, pyramid=True))
    # 196 - 16 positions less than at 224 pixels; the reference counts 7,113,600 at 512 pixels.
    assert sum(p.numel() for p in levels.backbone.parameters()) == 7_113_600 - (1024 - 16) * 192
    assert Case("vim-ti", 64, pyramid=True).tokens == 16


@pytest.mark.parametrize("case, words", [
    (Case("vim-tiny"), "unknown model 'vim-tiny', did you mean 'vim-ti'?; expected one of vim-ti"),
    (Case("vim-ti", 8), "size 8 is too small for Vim-Ti; expected at least 16 pixels"),
    (Case("vim-ti", 48, pyramid=True), "size 48 is too small for Vim-Ti with a pyramid; expected at least 64"),
    (Case("resnet-50", 16), "size 16 is too small for ResNet-50; expected at least 32"),
    (Case("vim-ti", 500), "not a multiple of the patch of 16 pixels, so an edge of 4 would not be seen; take 496 or"),
    (Case("vim-ti", 224, batch_size=0), "batch size 0; expected at least 1"),
    (Case("resnet-50", 224, pyramid=True), "the pyramid stands on Vim or DeiT"),
    (Case("vim-ti", 224, mode="training", pyramid=True), "and not on training"),
    (Case("vim-ti", 224, mode="training", dtype="float16"), "take bfloat16")])
def test_what_cannot_be_is_refused(case, words):
    with pytest.raises(VimlearnError) as error:
        check([case])
    assert words in str(error.value)


def test_the_papers_sizes_are_accepted_and_groups_share_all_but_the_model():
    found = groups(("vim-ti", "deit-ti-plain"), size=(1248, 512, 738), batch_size=(1,), dtype=("float32", "bfloat16"))
    assert [group[0].size for group in found] == [512, 512, 738, 738, 1248, 1248]
    assert all(len({case.settings for case in group}) == 1 and len(group) == 2 for group in found)


@pytest.mark.parametrize("change", [{"rounds": 0}, {"budget": -1.0}, {"memory_limit": 0.0}, {"threads": 0}])
def test_rules_want_positive_numbers(change):
    with pytest.raises(VimlearnError, match="expected more than 0"):
        Rules(**change)
