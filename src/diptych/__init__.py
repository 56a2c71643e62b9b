"""Diptych: images and text made the way modern generative AI makes them, with every step in sight.

>>> quill = diptych.load("quill")
>>> quill.generate("Once upon a time", seed=1).result().text
"""

from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from typing import Literal

    from diptych.image.model import ImageModel
    from diptych.text.model import TextModel

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:

    @overload
    def load(
        name: Literal["quill"],
        device: str | None = None,
        dtype: str | None = None,
        *,
        bits: int | None = None,
        compile: bool = False,
    ) -> TextModel: ...
    @overload
    def load(name: Literal["brush"], device: str | None = None, dtype: str | None = None) -> ImageModel: ...
    @overload
    def load(
        name: str,
        device: str | None = None,
        dtype: str | None = None,
        *,
        bits: int | None = None,
        compile: bool = False,
    ) -> TextModel | ImageModel: ...


def load(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    *,
    bits: int | None = None,
    compile: bool = False,
) -> "TextModel | ImageModel":
    """A model by the name of a bundled one ("quill" writes, "brush" paints), by its checkpoint directory, which may be
    one of Hugging Face's, or by its id on their hub ("org/name").

    Args:
        device: "cpu", "cuda", "cuda:1", "mps"; None takes the fastest here.
        dtype: "float32", "bfloat16", ...; None takes what is fast here.
        bits: 8 or 4 keeps the matrices of a model that writes in so many bits: it writes faster, and nearly as well.
        compile: a model that writes is compiled (`torch.compile`) while it writes its first tokens.

    Raises:
        ValueError: unknown name, or a checkpoint that is missing parts or damaged.
    """
    from diptych.core.machine_code import open_early
    from diptych.core.memory import settle

    open_early(device, dtype)
    from diptych.models import open_model

    model = open_model(name, device=device, dtype=dtype, bits=bits, compile=compile)
    settle()
    return model
