import math
from dataclasses import dataclass

import pytest

from diptych.core.checks import check_keys, is_number, is_whole, settings_of


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


@dataclass(frozen=True)
class Kettle:
    size: int = 1
    heat: float = 1.0
    holes: tuple[int, ...] = ()
    name: str | None = None


def test_settings_come_from_json_with_their_types():
    assert settings_of(Kettle, "kettle", {"heat": 2, "holes": [1, 2], "name": None}) == Kettle(1, 2.0, (1, 2))
    for values, message in (
        ({"sise": 1}, "unknown kettle setting 'sise'; did you mean 'size'"),
        ({"size": True}, "kettle size must be a whole number, not True"),
        ({"size": None}, "kettle size must be a whole number, not None"),
        ({"holes": [1, "2"]}, "kettle holes must be a whole number, not '2'"),
        ({"name": 3}, "kettle name must be a string, not 3"),
    ):
        with pytest.raises(ValueError, match=message):
            settings_of(Kettle, "kettle", values)
