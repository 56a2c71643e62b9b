import math

import pytest

from diptych.core.checks import check_keys, is_number, is_whole


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        (3, True, True),
        (-1, True, True),
        (2.0, False, True),
        (True, False, False),
        ("3", False, False),
        (math.inf, False, False),
        (math.nan, False, False),
        (None, False, False),
    ],
)
def test_only_finite_numbers_are_numbers_and_true_is_none(value, whole, number):
    assert (is_whole(value), is_number(value)) == (whole, number)


def test_a_key_is_known_and_what_is_required_is_there():
    check_keys("kettle", {"size": 1}, ["size", "lid"], ["size"])
    with pytest.raises(ValueError, match="unknown kettle setting 'sice'; did you mean 'size'"):
        check_keys("kettle", {"sice": 1}, ["size", "lid"])
    with pytest.raises(ValueError, match=r"^kettle settings lack size, lid$"):
        check_keys("kettle", {}, ["size", "lid"], ["size", "lid"])
