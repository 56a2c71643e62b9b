"""--frames: the pictures on the way to another prompt or another seed, as a moving picture or a folder of PNGs."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.cli import UsageError, frame
from diptych.cli.image_save import stem

if TYPE_CHECKING:
    from diptych.cli.image_easel import Easel, Watch

MOST, FASTEST = 1000, 60
USUAL, PER_SECOND = 16, 12.0
REST = 1000  # milliseconds that the last frame stays


def place(out: Path | None, film: dict[str, Any]) -> Path | None:
    """Where frames go, checked: .webp, .gif, or a folder; None is named after prompt and seed later.

    Args:
        film: what is said of it; gets what is usual for the rest.
    """
    from diptych.core.checks import is_number, is_whole

    frames, per_second = film.setdefault("count", USUAL), film.setdefault("per_second", PER_SECOND)
    if not is_whole(frames) or not 2 <= frames <= MOST:
        raise UsageError(f"frames must be from 2 to {MOST}, not {frames}")
    if not is_number(per_second) or not 1 <= per_second <= FASTEST:
        raise UsageError(f"fps must be a number from 1 to {FASTEST}, not {per_second}")
    if out is None or out.suffix:
        return frame.output(out, ".webp", ".gif")
    from diptych.image.film import free_folder

    with frame.settings():
        return free_folder(out)


def paint_frames(easel: "Easel", out: Path | None, watch: "Watch") -> tuple[list[Path], dict[str, Any], str]:
    """The files, how they were made, and a line about them.

    Each picture is painted by itself, so that its own settings paint it again.
    """
    from diptych.image.film import save_frames, save_moving

    frames, per_second = easel.wanted["frames"]["count"], easel.wanted["frames"]["per_second"]
    changes = [{"share": number / (frames - 1)} for number in range(frames)]
    names = [f"frame {number + 1} of {frames}" for number in range(frames)]
    images, facts = easel.paint_each(changes, names, watch, ends_tell=True)
    whole = easel.whole_facts(facts[0], "frames")
    path = out or Path(f"{frame.unused(stem(facts[0]), '.webp')}.webp")
    said = f"{frames} frames, {images[0].width} x {images[0].height}, {per_second:g} a second, seed {whole['seed']}"
    if path.suffix:
        save_moving(images, path, milliseconds=round(1000 / per_second), rest=REST, facts=whole)
        return [path], whole, said
    save_frames(images, path, facts)
    frame.say(f"an MP4 of them: ffmpeg -framerate {per_second:g} -i {path}/%04d.png -pix_fmt yuv420p {path}.mp4")
    return [path], whole, said
