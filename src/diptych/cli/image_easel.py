"""The easel: settings and the files that they name become generations, one pass of painting or two."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import frame
from diptych.cli.image_settings import EXTRAS, SOURCES

if TYPE_CHECKING:
    from PIL import Image

    from diptych.core.generation import Generation
    from diptych.image.model import ImageModel
    from diptych.image.record import ImageResult, ImageStep

Watch = Callable[["Generation[ImageStep, ImageResult]", str], None]


@dataclass(frozen=True)
class Painted:
    """Finished pictures, each with how it was made; result: what the last pass gave, for its trace."""

    images: "list[Image.Image]"
    facts: list[dict[str, Any]]
    result: "ImageResult"


class Easel:
    """Paints under settings.

    Args:
        wanted: settings, as `image_settings` names them.
        weaker: the model that `wanted["weaker"]` names.

    Attributes:
        waited: seconds for what is compiled once a machine.
    """

    def __init__(self, painter: "ImageModel", wanted: dict[str, Any], weaker: "ImageModel | None") -> None:
        self.painter, self.weaker, self.waited = painter, weaker, 0.0
        habits = painter.habits
        usual = {"steps": habits.steps, "guidance_scale": habits.guidance_scale, "sampler": habits.sampler}
        has_own = "sampler" in wanted or "sampler" in wanted.get("grid", {})
        nodes = {} if has_own else {"nodes": habits.nodes}
        self.wanted: dict[str, Any] = {"negative_prompt": "", "count": 1} | usual | nodes | wanted
        self.pictures = self._opened()

    def _opened(self) -> "dict[str, Image.Image]":
        """The files that the settings name; with `outpaint` the picture as it is to become, and its mask."""
        from diptych.image.outpaint import widened
        from diptych.image.photo import open_picture

        grounds = {"picture": "white", "mask": "black"}
        opened = {
            name: open_picture(Path(self.wanted[name]["path"]), grounds[name])
            for name in SOURCES
            if name in self.wanted
        }
        margins = self.wanted.get("outpaint")
        if margins is not None:
            painter = self.painter
            step = painter.autoencoder.config.downsampling * painter.multiple
            area = painter.height * painter.width
            with frame.settings():
                wide, mask = widened(opened["picture"], margins, area=area, step=step, mask=opened.get("mask"))
            self.wanted |= {"height": wide.height, "width": wide.width}
            opened |= {"picture": wide, "mask": mask}
        if "picture" in opened and self.wanted.get("strength") is None:
            from diptych.image.start import usual_strength

            self.wanted["strength"] = usual_strength(has_mask="mask" in opened)
        return opened

    def _settings(self, changes: dict[str, Any]) -> dict[str, Any]:
        kept = {name: value for name, value in self.wanted.items() if name not in (*SOURCES, *EXTRAS, "variations")}
        return kept | changes | self.pictures | {"weaker": self.weaker}

    def begin(self, **changes: Any) -> "Generation[ImageStep, ImageResult]":
        """The first pass, checked and not begun; some settings are other than those of the easel."""
        from diptych.image.enlarge import check

        with frame.settings():
            if "enlarge" in self.wanted:
                check(self.wanted["enlarge"].get("factor"))
            return self.painter.generate(**self._settings(changes))

    def paint(self, first: "Generation[ImageStep, ImageResult]", watch: Watch, **changes: Any) -> Painted:
        """A first pass to its end, and the second where there is one.

        Args:
            watch: is given each generation, and what it is where it is one of two; runs it.
        """
        enlarge, before = self.wanted.get("enlarge"), time.perf_counter()
        self.painter.prepare()
        self.waited += time.perf_counter() - before
        watch(first, "" if enlarge is None else "first pass")
        result = first.result()
        result.settings.pop("mask", None)  # outpainting has one without a file
        result.settings.update(self._named())
        start = result.settings["sample"]
        about = result.settings
        facts = [about | {"sample": start + number, "first_sample": start} for number in range(len(result.images))]
        if enlarge is None:
            return Painted(result.images, facts, result)
        images = []
        for number, second in enumerate(self._second(result, enlarge, changes)):
            watch(second, "second pass")
            result = second.result()
            result.settings.clear()
            result.settings.update(facts[number])
            images.append(result.image)
        return Painted(images, facts, result)

    def paint_each(
        self, changes: list[dict[str, Any]], names: list[str], watch: Watch, *, ends_tell: bool = False
    ) -> "tuple[list[Image.Image], list[dict[str, Any]]]":
        """Pictures that differ in some settings, one after the other, and how each was made. Nothing else of them is
        kept, since there may be many.

        What is checked before the first is painted is what is painted, so that no prompt or picture is encoded twice.

        Args:
            ends_tell: if the first and the last can be painted, so can all between; these begin when it is their turn.

        Raises:
            UsageError: settings of which some cannot be painted; none is painted then.
        """
        images, facts, last = [], [], len(changes) - 1
        begun = {place: self.begin(**changes[place]) for place in ({0, last} if ends_tell else range(len(changes)))}
        for place, (change, name) in enumerate(zip(changes, names, strict=True)):

            def told(one: "Generation[ImageStep, ImageResult]", which: str, name: str = name) -> None:
                watch(one, f"{name} {which}".strip())

            first = begun.pop(place) if place in begun else self.begin(**change)
            painted = self.paint(first, told, **change)
            images += painted.images
            facts += painted.facts
        return images, facts

    def whole_facts(self, one: dict[str, Any], name: str) -> dict[str, Any]:
        """How a grid or a film was made, from how one of its pictures was: what is the same for all, and `name`."""
        same = {key: value for key, value in self.wanted.items() if value is not None and key != "count"}
        own = {"nodes": self.wanted.get("nodes")}  # a sampler's own are not those of another
        return {key: value for key, value in one.items() if key != "share"} | own | same | {name: self.wanted[name]}

    def _second(
        self, result: "ImageResult", enlarge: dict[str, Any], changes: dict[str, Any]
    ) -> "Iterator[Generation[ImageStep, ImageResult]]":
        from diptych.image.enlarge import enlarge as enlarged

        own = self._settings(changes) | {"count": 1}
        mask = own.pop("mask", None)
        settings = {name: value for name, value in own.items() if name not in ("picture", "strength")}
        for number, image in enumerate(result.images):
            settings["first_sample"] = result.settings["sample"] + number
            yield enlarged(self.painter, image, enlarge["factor"], strength=enlarge["strength"], mask=mask, **settings)

    def _named(self) -> dict[str, Any]:
        """What a picture's metadata says besides the settings of `generate`."""
        return {name: self.wanted[name] for name in (*SOURCES, "outpaint", "enlarge") if name in self.wanted}
