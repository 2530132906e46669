"""The one line that tells an answer from the right one."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vimlearn.course.exercise import Wrong, choose, match

Y = torch.tensor([[1.0, -2.0, 4.0], [0.5, 3.0, -1.0]], dtype=torch.float64)


def line(got, expected, *args, **options) -> str:
    with pytest.raises(Wrong) as stop:
        match(got, expected, *args, **options)
    return str(stop.value)


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ("text", Y, "y should be a tensor, but it is a str"),
        (Y.numpy(), Y, "y should be a tensor, but it is a ndarray"),
        (Y[:1], Y, "y has shape (1, 3), expected (2, 3)"),
        (Y.T, Y, "y has shape (3, 2), expected (2, 3); are two axes exchanged?"),
        (Y.float(), Y, "y has dtype float32, expected float64; make new tensors with the dtype of the inputs"),
        (Y / torch.tensor([1.0, 0.0, 1.0]) * 0, Y, "y holds NaN, first at [0, 1]"),
        (Y / torch.tensor([1.0, 0.0, 1.0]), Y, "y holds an infinite value, first at [0, 1]"),
        (-Y, Y, "y has the opposite sign everywhere"),
        (Y.flip(1), Y, "y is in reversed order along axis 1"),
        (Y.roll(1, 1), Y, "y is one step too late along axis 1"),
        (Y.roll(-1, 1), Y, "y is one step too early along axis 1"),
        (3 * Y, Y, "y is 3 times what is expected, everywhere"),
        (Y + torch.eye(2, 3), Y, "y is 2 at [0, 0], expected 1; 2 of 6 entries are off"),
        (torch.tensor(2.0), torch.tensor(3.0), "y is 2, expected 3"),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), "y is 2 at [1], expected 3; 1 of 2 entries are off"),
        ("3", 3, "y should be a number, but it is a str"),
        (True, 1, "y should be a number, but it is a bool"),
        (4, 3, "y is not 4"),
        (0.36, 0.3679, "y is close to 0.36, but not equal; give more digits"),
        (float("nan"), 0.5, "y is not nan"),
        (1, True, "y should be a bool, but it is an int"),
        (False, True, "y is not False"),
        ("later", "now", "y is not 'later'"),
        (Y, (Y, Y), "y should be 2 values in a tuple, but it is a Tensor"),
        ((Y,), (Y, Y), "y should have 2 entries, but it has 1"),
        ((Y, -Y), (Y, Y), "y[1] has the opposite sign everywhere"),
        ([1, 2], (1, 3), "y[1] is not 2"),
        ({"a": 1}, {"b": 1}, "y should have the keys 'b'"),
        ({"b": 2}, {"b": 1}, "y['b'] is not 2"),
    ],
    ids=str,
)
def test_the_line_names_the_first_thing_that_is_wrong(got, expected, message):
    assert line(got, expected, name="y") == message


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (Y + 1e-11, Y),
        (torch.nn.Parameter(Y), Y),
        (np.float64(0.3679), 0.36788),
        (torch.tensor(0.368), 0.36788),
        (np.array([1, 2]), (1, 2)),
        (torch.tensor([1, 2]), [1, 2]),
        (torch.Size([2, 3]), (2, 3)),
        ([0.5, 1], np.array([0.5, 1.0])),
        ([Y, Y], (Y, Y)),
        (" Later. ", "later"),
        (torch.tensor(True), True),
        (3.0, 3),
        ({"b": 1}, {"b": 1}),
        (None, None),
    ],
    ids=str,
)
def test_equal_answers_of_the_allowed_kinds_pass(got, expected):
    match(got, expected)


def test_parts_of_a_tuple_have_their_own_names():
    assert line((Y, -Y), (Y, Y), name=("A_bar", "B_bar")) == "B_bar has the opposite sign everywhere"
    assert line(Y, (Y, Y), name=("A_bar", "B_bar")).startswith("(A_bar, B_bar) should be 2 values")


def test_known_mistakes_come_before_patterns_and_shapes():
    assert line(-Y, Y, mistakes={"A is negative": -Y}) == "A is negative"
    assert line(Y.T.float(), Y, mistakes={"the transpose": lambda: Y.T}, rtol=1e-4) == "the transpose"
    assert line((Y, -Y), (Y, Y), mistakes={"the second": (Y, -Y)}) == "the second"
    assert line(2, 3, mistakes={"one short": 2}) == "one short"


def test_a_right_answer_is_never_taken_for_a_mistake():
    assert match(Y, Y, mistakes={"the same value by chance": Y}) is None


def test_a_result_of_float32_is_told_so():
    """The digits of the message would else be the same for both numbers."""
    assert "was a part computed in float32" in line(Y.exp().float().sin().double(), Y.exp().sin())


def test_a_missing_small_term_is_seen():
    assert "entries are off" in line(Y + torch.tensor([0.0, 1e-5, 0.0]), Y)
    assert "entries are off" in line(Y.float() + torch.tensor([0.0, 1e-2, 0.0]), Y.float())


def test_choose_says_what_each_wrong_choice_overlooks():
    wrong = {"grows": "its modulus is below 1"}
    choose(" Shrinks.", "shrinks", wrong)
    for answer, message in (
        ("grows", "its modulus is below 1"),
        ("dances\naway", "answer with one of 'grows', 'shrinks'; 'dances away' is none of them"),
        (3, "answer with one of the texts 'grows', 'shrinks'; this is an int"),
    ):
        with pytest.raises(Wrong) as stop:
            choose(answer, "shrinks", wrong)
        assert str(stop.value) == message


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.complex_numbers() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=6,
)


@given(got=anything, expected=st.sampled_from([Y, (Y, Y), 0.123456, 12345, "one", True, {"a": 0.123456}, Y.numpy()]))
def test_any_python_value_is_right_or_wrong_and_nothing_else(got, expected):
    try:
        match(got, expected)
    except Wrong as stop:
        assert str(stop)
