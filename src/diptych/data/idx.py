"""IDX, the format of MNIST and Fashion-MNIST: one file of grey pictures, one of class numbers, plain or gzipped.

A file begins with two zero bytes, the kind of number (8: unsigned bytes), the number of axes, and each axis's length as
a big-endian 32-bit number; the numbers follow in C order (yann.lecun.com/exdb/mnist).
"""

import gzip
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diptych.data.pictures import digest_of, file_facts
from diptych.data.stored import MappedArray, stored_arrays

PIECE = 1 << 20
FASHION = (  # Xiao et al. 2017, in the order of its class numbers
    "a t-shirt", "a pair of trousers", "a pullover", "a dress", "a coat",
    "a sandal", "a shirt", "a sneaker", "a bag", "an ankle boot",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class IdxPictures:
    """`pixels` is (N, H, W) uint8, `labels` (N,) uint8 or None; `names[label]` is what a picture shows."""

    path: Path
    pixels: MappedArray
    labels: np.ndarray | None
    names: tuple[str, ...]
    wording: str
    key: str

    def __len__(self) -> int:
        return len(self.pixels)

    def name(self, index: int) -> str:
        return f"{self.path}, picture {index}"

    def size(self, index: int) -> tuple[int, int]:
        height, width = self.pixels.array.shape[1:]
        return width, height

    def read(self, index: int) -> np.ndarray:
        return np.repeat(self.pixels.array[index][..., None], 3, axis=-1)

    def caption(self, index: int, sight: int = 0) -> str:
        return "" if self.labels is None else self.wording.format(name=self.names[int(self.labels[index])])


def idx_pictures(images: Path, wording: str = "a picture of {name}", names: Sequence[str] = FASHION) -> IdxPictures:
    """The pictures of an IDX file, captioned by the labels beside it (`...-images-idx3...` -> `...-labels-idx1...`).

    Args:
        wording: a caption, in which `{name}` becomes the name of the class.
        names: of the classes, with their articles.

    Raises:
        ValueError: a damaged file, labels that do not fit the pictures, or a wording with another field.
    """
    key = digest_of([images.name, *file_facts(images)])
    try:
        wording.format(name="")
    except (LookupError, ValueError) as error:
        raise ValueError(f"wording must have no field but {{name}}, not '{wording}'") from error
    (pixels,) = stored_arrays(f"idx-{key}", ("pixels",), 1, 1, lambda _: [_read(images, axes=3)])
    labels = next((_read(path, axes=1) for path in _labels_of(images) if path.is_file()), None)
    if labels is not None and len(labels) != len(pixels):
        raise ValueError(f"'{images}' has {len(pixels)} pictures, and its file of labels {len(labels)}")
    if labels is not None and labels.max(initial=0) >= len(names):
        raise ValueError(f"'{images}' has pictures of class {labels.max()}, and only {len(names)} classes have names")
    return IdxPictures(images, pixels, labels, tuple(names), wording, key)


def holds_images(path: Path) -> bool:
    """By its name: three axes are pictures, one is labels."""
    return "idx3" in path.name.lower()


def _labels_of(images: Path) -> list[Path]:
    plain = images.name.removesuffix(".gz").replace("images", "labels").replace("idx3", "idx1")
    return [images.with_name(plain), images.with_name(f"{plain}.gz")]


def _read(path: Path, axes: int) -> np.ndarray:
    """Raises: ValueError, naming the file, where it is not what its head says."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes((0, 0, 8, axes)):
                raise ValueError(f"it does not begin as one of unsigned bytes along {axes} axes")
            shape = struct.unpack(f">{axes}I", head[4:])
            wanted, pieces = int(np.prod([int(length) for length in shape], dtype=object)), []
            while wanted > 0 and (piece := file.read(min(PIECE, wanted))):
                pieces.append(piece)
                wanted -= len(piece)
            if wanted:
                raise ValueError(f"it ends {wanted} bytes too early")
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"'{path}' is not an IDX file that can be read: {error}") from error
    if 0 in shape:
        raise ValueError(f"'{path}' is empty")
    return np.frombuffer(b"".join(pieces), np.uint8).reshape(shape)
