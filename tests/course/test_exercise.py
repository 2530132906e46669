"""The language of checks: verdicts, names, messages, and the promise that no answer leads to a traceback."""

import random

import numpy as np
import pytest
import torch
from zoo import ZOO

from vimlearn.course import check, exercise
from vimlearn.course.exercise import Wrong, call, exercises, grade, gradients, match, parts
from vimlearn.errors import VimlearnError


@pytest.fixture
def registry(monkeypatch):
    """A registry of our own, so that these tests add no exercise to the course."""
    monkeypatch.setattr(exercise, "_registry", {})
    monkeypatch.setattr(exercise.pkgutil, "iter_modules", lambda path: [])


@pytest.fixture
def double(registry):
    @exercise.exercise("1.2", "Twice as much")
    def double(answer):
        x = torch.tensor([1.0, -2.0, 4.0])
        match(call(answer, x), 2 * x, name="y", mistakes={"this is the square": x**2, "added": lambda: x + 2})
        return "each entry is doubled."

    return double


def stub(x: torch.Tensor) -> torch.Tensor:
    """Return twice x."""
    ...


def verdict(answer):
    result = grade("double", answer)
    return result.status, result.message


def test_the_three_verdicts_are_one_printed_line_each(double, capsys):
    for answer in (lambda x: 2 * x, lambda x: x**2, stub):
        assert check.double(answer) is None
    right, wrong, open_ = capsys.readouterr().out.splitlines()
    assert right == "✓ Exercise 1.2, right: each entry is doubled."
    assert wrong == "✗ Exercise 1.2, not yet: this is the square"
    assert open_ == "○ Exercise 1.2, not started: replace the ... in stub above, then run this cell again"


@pytest.mark.parametrize("answer", [None, ..., stub, lambda x: ..., (None, None), {"a": None}], ids=repr)
def test_an_untouched_stub_is_not_started(double, answer):
    assert verdict(answer)[0] == "not started"


def test_a_check_without_an_argument_is_not_started(double, capsys):
    check.double()
    assert "not started" in capsys.readouterr().out


def test_a_class_is_not_started_while_one_method_is_a_stub(double):
    class Half(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return 2 * x

        @staticmethod
        def backward(ctx, dy):
            """Return the gradient."""
            ...

    assert verdict(Half) == ("not started", "replace the ... in Half.backward above, then run this cell again")


@pytest.mark.parametrize("answer", [lambda x: 0, lambda x: x, lambda x: None if x.sum() > 99 else x], ids=repr)
def test_a_written_function_is_started(double, answer):
    assert verdict(answer)[0] == "not yet"


def test_a_missing_return_is_named(double):
    def forgot(x):
        y = 2 * x  # noqa: F841

    assert verdict(forgot) == ("not yet", "your function returns None; does it end with a return line?")


def test_a_gap_that_is_left_in_the_middle_is_not_started(double):
    def gap(x):
        y = ...
        return y

    assert verdict(gap) == ("not started", "your function still returns ...; replace it, then run this cell again")


def test_an_error_in_a_helper_is_named_with_the_helpers_line(double):
    def helper(x):
        return x.sum(dim=3)

    def outer(x):
        return helper(x)

    message = verdict(outer)[1]
    assert f"at line {helper.__code__.co_firstlineno + 1} (`return x.sum(dim=3)`)" in message
    assert message.count("at line") == 1


def test_an_error_is_named_with_the_learners_own_line(double):
    def wrong_axis(x):
        return x.sum(dim=3)

    status, message = verdict(wrong_axis)
    line = wrong_axis.__code__.co_firstlineno + 1
    assert status == "not yet" and f"IndexError at line {line} (`return x.sum(dim=3)`): Dimension out of" in message


def test_a_change_of_the_input_is_named_and_harms_nobody(double):
    x = torch.ones(3)
    with pytest.raises(Wrong, match=r"changes its input x in place; work on a copy, for example x\.clone"):
        call(lambda x: x.mul_(2), x)
    assert torch.equal(x, torch.ones(3))
    with pytest.raises(Wrong, match="input rows in place"):
        call(lambda rows: rows.append(1) or rows, [1, 2])
    with pytest.raises(Wrong, match="input scale in place"):
        call(lambda x, scale: x * scale.mul_(2), x, scale=torch.ones(3))


def test_a_wrong_number_of_arguments_is_named(double):
    assert "TypeError" in verdict(lambda x, y: x)[1] and "'y'" in verdict(lambda x, y: x)[1]


def test_warnings_and_random_states_are_left_alone(double, recwarn):
    def restless(x):
        import warnings

        warnings.warn("noise", stacklevel=1)
        torch.rand(1), np.random.rand(), random.random()  # noqa: NPY002
        return 2 * x

    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    assert verdict(restless)[0] == "right"
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()  # noqa: NPY002
    assert torch.equal(before[0], after[0]) and (before[1] == after[1]).all() and before[2] == after[2]
    assert not recwarn.list


def test_an_error_outside_of_call_is_one_line_too(registry):
    @exercise.exercise("1.3", "Leave")
    def leave(answer):
        return answer()

    def go():
        raise SystemExit("good\nbye")

    assert grade("leave", go).message == "the check cannot read this answer (SystemExit: good bye)"


def test_stopping_by_hand_still_stops(double):
    def interrupted(x):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade("double", interrupted)


def test_parts_names_what_it_wants():
    assert parts((1, 2), "A_bar", "B_bar") == (1, 2)
    with pytest.raises(Wrong, match=r"should return 2 values \(A_bar, B_bar\), but it returns a Tensor"):
        parts(torch.ones(2), "A_bar", "B_bar")
    with pytest.raises(Wrong, match="but it returns 3"):
        parts([1, 2, 3], "A_bar", "B_bar")


def test_gradients_are_those_of_every_floating_point_argument():
    x, a = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 5.0])
    dx, da = gradients(lambda x, a, n: x * a * n, x, a, 2)
    torch.testing.assert_close(dx / da, a / x)
    assert not x.requires_grad
    assert gradients(lambda x, a: x, x, a)[1].eq(0).all()


def test_gradients_weigh_the_outputs_unevenly():
    # The entries of a softmax sum to 1, so that the gradient of their plain sum would be 0 whatever was computed.
    (dx,) = gradients(lambda x: torch.softmax(x, 0), torch.tensor([1.0, 2.0, 4.0]))
    assert dx.abs().max() > 0.01


def test_lost_and_failing_gradients_are_named():
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, dy):
            raise ValueError("no way back")

    with pytest.raises(Wrong, match="no gradient flows"):
        gradients(lambda x: x.detach(), torch.ones(2))
    with pytest.raises(Wrong, match=r"backward pass fails with ValueError at line .*no way back"):
        gradients(Failing.apply, torch.ones(2))


def test_names_and_numbers_are_taken_once(double):
    with pytest.raises(VimlearnError, match=r"'triple' of exercise 1\.2 clashes with 'double' of 1\.2"):

        @exercise.exercise("1.2", "Three times as much")
        def triple(answer): ...

    with pytest.raises(VimlearnError, match=r"number 'one' is not of the form '3\.2'"):
        exercise.exercise("one", "One")


def test_an_unknown_check_suggests_the_nearest(double):
    with pytest.raises(VimlearnError, match="no exercise 'duoble', did you mean 'double'"):
        check.duoble  # noqa: B018
    assert not hasattr(check, "something_else") and dir(check) == ["double"]


def test_exercises_come_in_the_order_of_their_numbers(registry):
    for number, name in (("10.1", "c"), ("2.10", "b"), ("2.9", "a")):

        def body(answer):
            return "yes"

        body.__name__ = name
        exercise.exercise(number, name)(body)
    assert [made.name for made in exercises()] == ["a", "b", "c"]
    assert [made.chapter for made in exercises()] == ["02", "02", "10"]


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("kind", ZOO)
def test_no_absurd_answer_passes_or_stops_this_check(double, kind):
    status, message = verdict(ZOO[kind])
    assert status == "not yet" and message and "\n" not in message and len(message) <= 300


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("made", exercises(), ids=lambda made: made.name)
def test_no_absurd_answer_passes_or_stops_a_check_of_the_course(made):
    for kind, answer in ZOO.items():
        result = made.grade(answer)
        assert result.status in ("not yet", "not started"), f"{made.name} takes '{kind}' for {result.status}"
        assert result.message and "\n" not in result.message and len(result.message) <= 300, kind
