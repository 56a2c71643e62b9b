"""Against `torch.zeros`, and against what the system says about memory."""

import mmap
import re
from pathlib import Path

import pytest
import torch

from diptych.core import large_pages
from diptych.core.large_pages import PAGE, zeros

SHAPES = [(0,), (3, 5), (1, 3, 4200, 64), (2, 1000, 700), (PAGE // 2,), (PAGE - 1,), (3 * PAGE // 4,)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.int8], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("has_pages", [True, False])
def test_they_are_zeros_that_can_be_written(
    shape: tuple[int, ...], dtype: torch.dtype, has_pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not has_pages:
        monkeypatch.setattr(large_pages, "mmap", None)  # as where the system's is another
    found = zeros(shape, dtype, "cpu")
    assert found.is_contiguous()
    assert torch.equal(found, torch.zeros(shape, dtype=dtype))
    written = torch.randint(-100, 100, shape).to(dtype)
    found.copy_(written)
    assert torch.equal(found, written)


def test_two_are_two_and_one_outlives_its_maker() -> None:
    first, second = (zeros((PAGE,), torch.uint8, "cpu") for _ in range(2))
    first += 1
    assert second.sum() == 0
    part = first[10:20]
    del first
    assert part.tolist() == [1] * 10


@pytest.mark.skipif(not hasattr(mmap, "MADV_HUGEPAGE"), reason="the system has no large pages")
def test_the_system_is_asked_for_whole_large_pages_where_most_of_one_is_filled() -> None:
    """Of the mapping that a tensor lies in, smaps has the flag hg (madvised, huge) where it was asked for."""

    def large(tensor: torch.Tensor) -> int:
        """Bytes of a tensor that lie in such mappings."""
        found, begin, end = 0, tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes
        for area in re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(), flags=re.MULTILINE):
            if area and " hg" in area.split("VmFlags:")[1]:
                first, last = (int(place, 16) for place in area.split(maxsplit=1)[0].split("-"))
                found += max(0, min(end, last) - max(begin, first))
        return found

    tensors = [
        zeros((size,), torch.uint8, "cpu") for size in (PAGE // 2 - 1, PAGE // 2, PAGE, 5 * PAGE // 4, 7 * PAGE // 2)
    ]
    assert [large(one) for one in tensors] == [0, PAGE // 2, PAGE, PAGE, 7 * PAGE // 2]
    assert all(one.data_ptr() % PAGE == 0 for one in tensors[1:])
