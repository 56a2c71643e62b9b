"""The message for an unknown word names the nearest right one, and all of them."""

import pytest

from diptych.core.spelling import nearest, unknown

SAMPLERS = ("ddpm", "ddim", "euler", "euler-ancestral", "heun", "dpm++-2m")


@pytest.mark.parametrize(
    ("word", "meant"), [("dpm++2m", "dpm++-2m"), ("eular", "euler"), ("dddim", "ddim"), ("xyz", None)]
)
def test_nearest_is_what_was_probably_meant_or_nothing(word, meant):
    assert nearest(word, SAMPLERS) == meant
    assert nearest(word, iter(SAMPLERS)) == meant


def test_unknown_is_one_line_with_the_guess_and_all_that_is_known():
    message = str(unknown("sampler", "dpm++2m", iter(SAMPLERS)))
    known = "ddpm, ddim, euler, euler-ancestral, heun, dpm++-2m"
    assert message == f"unknown sampler 'dpm++2m'; did you mean 'dpm++-2m'? Known: {known}"
    assert str(unknown("sampler", "xyz", SAMPLERS)) == f"unknown sampler 'xyz'; known: {known}"


def test_unknown_with_nothing_known_still_reads():
    assert "unknown model 'quill'" in str(unknown("model", "quill", []))
