"""What the corpora and sprites are and under which licences they come: what a model card must say of its data."""

from pathlib import Path
from typing import NamedTuple

from diptych.data import passkeys
from diptych.data.hub_texts import PREFIX, local_folder, parse
from diptych.data.sprites import FLUENT, TWEMOJI

BACKGROUNDS = "backgrounds"
SCENES = (FLUENT, TWEMOJI, BACKGROUNDS)  # what `data.scenes` composes


class Source(NamedTuple):
    """`home` is where it comes from, "" where that is not known."""

    title: str
    licence: str
    home: str


SOURCES = {
    "tinystories": Source(
        "TinyStories by Ronen Eldan and Yuanzhi Li, parts of the train split; stories that came in lower case got "
        "their capitals back by statistics",
        "CDLA-Sharing-1.0",
        "https://huggingface.co/datasets/roneneldan/TinyStories",
    ),
    "african_storybook_en": Source(
        "African Storybook, the English stories whose own page allows commercial use, authors named in each",
        "CC BY",
        "https://www.africanstorybook.org",
    ),
    "fairytaleqa": Source(
        "FairytaleQA (Xu et al. 2022), the tales, which come from Project Gutenberg",
        "Apache-2.0",
        "https://github.com/uci-soe/FairytaleQAData",
    ),
    "chilit": Source(
        "ChiLit, children's books of the 19th century, from Project Gutenberg",
        "public domain in the USA",
        "https://github.com/birmingham-ccr/corpora",
    ),
    "tinyshakespeare": Source(
        "Tiny Shakespeare, scenes from the plays",
        "public domain",
        "https://github.com/karpathy/char-rnn",
    ),
    FLUENT: Source(
        "Fluent UI Emoji in the 3D style, copyright Microsoft Corporation, scaled and composed",
        "MIT",
        "https://github.com/microsoft/fluentui-emoji",
    ),
    TWEMOJI: Source(
        "Twemoji graphics, copyright Twitter, Inc. and other contributors, scaled and composed",
        "CC BY 4.0",
        "https://github.com/twitter/twemoji",
    ),
    BACKGROUNDS: Source("backgrounds, scarves, headphones and boats, drawn by Diptych itself", "Apache-2.0", ""),
}


def source(name: str) -> Source:
    """What is known of a corpus or of sprites; of what a recipe names by a path, that nothing is."""
    if name.startswith(PREFIX) and local_folder(name) is None:
        path = parse(name).path
        return Source(f"the data set `{path}`", "as its card states", f"https://huggingface.co/datasets/{path}")
    if name.startswith(passkeys.PREFIX):
        length = name.removeprefix(passkeys.PREFIX)
        return Source(f"numbers hidden in {length} tokens of filler, made by Diptych itself", "Apache-2.0", "")
    return SOURCES.get(name) or Source(f"data of the recipe's author, `{Path(name).name}`", "not stated", "")
