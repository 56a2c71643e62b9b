"""Device and dtype: what was asked for, or what is fast here; never a third thing."""

import pytest
import torch

from diptych.core import precision
from diptych.core.precision import DTYPES, choose


@pytest.mark.parametrize("name", DTYPES)
def test_a_dtype_that_is_named_is_taken(name):
    assert choose("cpu", name) == (torch.device("cpu"), getattr(torch, name))


@pytest.mark.parametrize(("is_fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_without_a_name_bfloat16_is_taken_only_where_the_machine_multiplies_it(monkeypatch, is_fast, expected):
    monkeypatch.setattr(precision, "CPU_MULTIPLIES_BFLOAT16", is_fast)
    assert choose("cpu") == (torch.device("cpu"), expected)


def test_without_a_device_an_accelerator_is_taken_where_there_is_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert precision.fast_device() == torch.device("cpu")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert precision.fast_device() == torch.device("mps")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert precision.fast_device() == torch.device("cuda")


@pytest.mark.parametrize("device", ["cuda:99", "toaster", "", "cpu:x"])
def test_a_device_that_is_not_here_is_named_with_those_that_are(device):
    with pytest.raises(ValueError, match=rf"^device '{device}' is not on this machine; allowed here: cpu"):
        choose(device)


def test_an_unknown_dtype_is_answered_with_the_nearest():
    with pytest.raises(ValueError, match="unknown dtype 'bfloat61'; did you mean 'bfloat16'"):
        choose("cpu", "bfloat61")
