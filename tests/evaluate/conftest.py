"""Twelve real scenes with their truth, kept beside the tests so that no sprites are needed."""

import json
from pathlib import Path

import pytest
from PIL import Image

SCENES = Path(__file__).parent.parent / "data" / "scenes"


@pytest.fixture(scope="session")
def real_scenes() -> list[tuple[dict[str, str], Image.Image]]:
    """(truth of every attribute, picture)."""
    found = []
    for name, truth in json.loads((SCENES / "truth.json").read_text()).items():
        with Image.open(SCENES / name) as opened:
            found.append(({part: value for part, value in truth.items() if part != "held_out"}, opened.convert("RGB")))
    return found
