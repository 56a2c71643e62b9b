import json
import re

import pytest

from diptych.text.settings import Settings, listed


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("temperature", float("nan"), "temperature must be a finite number >= 0, not nan"),
        ("temperature", float("inf"), "temperature must be a finite number >= 0, not inf"),
        ("temperature", -0.1, "temperature must be a finite number >= 0, not -0.1"),
        ("top_k", -1, "top_k must be a whole number >= 0"),
        ("top_k", 2.5, "top_k must be a whole number >= 0"),
        ("top_p", 0.0, "top_p must be a number > 0 and <= 1, not 0.0"),
        ("top_p", 1.01, "top_p must be a number > 0 and <= 1, not 1.01"),
        ("min_p", -0.5, "min_p must be a number >= 0 and <= 1, not -0.5"),
        ("typical_p", 1.5, "typical_p must be a number > 0 and <= 1, not 1.5"),
        ("repetition_penalty", 0.0, "repetition_penalty must be a finite number > 0"),
        ("presence_penalty", float("nan"), "presence_penalty must be a finite number (0 is none), not nan"),
        ("frequency_penalty", "much", "frequency_penalty must be a finite number (0 is none), not 'much'"),
        ("temperature", True, "temperature must be a finite number >= 0, not True"),
        ("max_tokens", 0, "max_tokens must be a whole number >= 1, not 0"),
        ("min_tokens", 300, "min_tokens must be at most max_tokens (200), not 300"),
        ("num_candidates", 5000, "num_candidates must be a whole number >= 1 and <= 1000, not 5000"),
        ("logit_bias", {"a": 1}, "logit_bias must give a number for each token id, not {'a': 1}"),
        ("logit_bias", {3: float("inf")}, "logit_bias must give finite numbers for token ids >= 0, not 3: inf"),
        ("stop", ("",), "stop must be texts of at least one character, not ('',)"),
    ],
)
def test_wrong_settings_are_named(setting, value, message):
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        Settings(**{setting: value})


def test_an_unknown_setting_is_named_with_the_nearest():
    with pytest.raises(ValueError, match="unknown setting 'temprature'; did you mean 'temperature'"):
        Settings.named({"temprature": 1})


def test_settings_survive_json():
    settings = Settings(stop="end", logit_bias={7: -1.5}, temperature=0, typical_p=0.5)
    again = Settings.named(json.loads(json.dumps(settings.to_dict())))
    assert (again, again.stop, again.logit_bias) == (settings, ("end",), {7: -1.5})


def test_every_setting_says_what_it_does():
    assert all(about.says.endswith(".") for _, about in listed().values())
