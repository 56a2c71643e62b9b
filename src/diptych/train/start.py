"""Starting a run from a finished checkpoint instead of from random weights: `run.init_from`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from diptych.core import weights
from diptych.core.tokenizer import Tokenizer
from diptych.interop.published import is_published
from diptych.models import find
from diptych.train.recipe import Recipe


class Start:
    """The checkpoint that `run.init_from` names, by a bundled name or a directory.

    Args:
        parts: what its config.json must describe: "decoder", or "encoder" and "unet".

    Raises:
        ValueError: in one line with the recipe's, for anything that does not fit.
    """

    def __init__(self, recipe: Recipe, *parts: str) -> None:
        self.recipe = recipe
        with recipe.checking("run", "init_from"):
            self.directory: Path
            self.directory, self.config = find(recipe.run.init_from)
            if is_published(self.config):
                raise ValueError(
                    f"'{recipe.run.init_from}' is a Hugging Face directory; 'diptych models import' makes a checkpoint "
                    "of it, which a run can start from"
                )
            lacking = [part for part in parts if not isinstance(self.config.get(part), dict)]
            if lacking:
                raise ValueError(f"'{recipe.run.init_from}' is not a checkpoint to start from: it has no {lacking[0]}")

    @classmethod
    def of(cls, recipe: Recipe, *parts: str) -> "Start | None":
        """None where the run starts from random weights."""
        return cls(recipe, *parts) if recipe.run.init_from else None

    def tokenizer(self) -> Tokenizer:
        with self.recipe.checking("run", "init_from"):
            return Tokenizer.load(self.directory / "tokenizer.json")

    def check(
        self,
        part: str,
        sizes: Mapping[str, Any],
        free: tuple[str, ...] = (),
        read: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        """Hold the checkpoint's sizes against the recipe's, but for those that no weight depends on (`free`).

        Args:
            read: fills in what the checkpoint's config.json leaves to defaults.
        """
        with self.recipe.checking("run", "init_from"):
            found = read(self.config[part])
        for name in sizes:
            if name not in free and found.get(name) != sizes[name]:
                with self.recipe.checking("run", "init_from"):
                    raise ValueError(
                        f"'{self.recipe.run.init_from}' does not fit the recipe: the {part}'s {name} is "
                        f"{found.get(name)} there, {sizes[name]} here"
                    )

    def fill(self, module: nn.Module, prefix: str = "") -> None:
        """The checkpoint's weights into `module`, all that begin with `prefix`."""
        with self.recipe.checking("run", "init_from"):
            weights.load_into(module, self.directory, prefix)

    def fill_narrower(self, module: nn.Module, hidden: int) -> None:
        """The checkpoint's weights into a `module` whose feed-forwards have fewer units: the strongest `hidden` stay.

        A unit's strength is the product of the norms of what it reads and what it writes, so that leaving out the
        weakest changes the outputs little (structured pruning, as in Muralidharan et al. 2024); training on mends
        the rest.
        """
        with self.recipe.checking("run", "init_from"):
            tensors = weights.read_tensors(self.directory)
            for key in [key for key in tensors if key.endswith("feed_forward.down.weight")]:
                readers = [key.replace(".down.", f".{name}.") for name in ("gate", "up")]
                readers = [name for name in readers if name in tensors]
                strength = tensors[key].float().norm(dim=0)  # (hidden,)
                for name in readers:
                    strength = strength * tensors[name].float().norm(dim=1)
                kept = strength.topk(hidden).indices.sort().values
                tensors[key] = tensors[key][:, kept]
                tensors |= {name: tensors[name][kept] for name in readers}
            weights.fill(module, tensors.items(), self.directory)
