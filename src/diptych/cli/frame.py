"""What the commands share: options, seeds, checks at the door, and what the terminal can show."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from diptych.cli import UsageError

if TYPE_CHECKING:
    import torch

    from diptych.image.model import ImageModel
    from diptych.text.model import TextModel
    from diptych.train.recipe import Recipe

Seed = Annotated[int | None, typer.Option(help="Of every random draw: the same seed, the same result. [fresh]")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps. [the fastest here]")]
Bits = Annotated[
    int | None, typer.Option(help="8 or 4: the model's matrices in so many bits each number; faster. [all]")
]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16. [what is fast here]")]
CacheDtype = Annotated[
    str | None, typer.Option("--cache", help="int8 keeps what was read in half the memory. [as it is computed]")
]
RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="A TOML file that describes the run.")]
Changes = Annotated[
    list[str] | None, typer.Argument(help="Settings to change, like run.steps=100.", metavar="[section.key=value]")
]
Threads = Annotated[int | None, typer.Option(help="CPU threads of this machine. [all]")]


class InSections(TyperCommand):
    """A command whose help lists its options in sections: those of one `rich_help_panel` stand together under it."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            name = getattr(parameter, "rich_help_panel", None) or usual
            if record is not None:
                sections.setdefault(name, []).append(record)
        for name, records in sections.items():
            with formatter.section(name):
                formatter.write_dl(records)


def application(about: str | None = None) -> typer.Typer:
    """A typer with plain help, which leaves errors to `diptych.cli.main`."""
    return typer.Typer(
        help=about,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["--help", "-h"]},
    )


Adapter = Annotated[Path | None, typer.Option(help="A folder with a LoRA adapter to write with.")]


@contextmanager
def settings() -> Iterator[None]:
    """A ValueError in this block is a wrong setting, not a failure."""
    try:
        yield
    except ValueError as error:
        raise UsageError(str(error)) from error


def one_of(**flags: bool) -> str | None:
    """The one flag that is set; an error when two exclude each other."""
    chosen = [name for name, is_set in flags.items() if is_set]
    if len(chosen) > 1:
        raise UsageError(f"choose one of {', '.join(f'--{name}' for name in chosen)}".replace("_", "-"))
    return chosen[0] if chosen else None


def output(path: Path | None, *endings: str) -> Path | None:
    """`path`, whose folder exists and whose name ends as it must; None stays None."""
    if path is None:
        return None
    from diptych.core.files import output_path

    if endings and path.suffix.lower() not in endings:
        raise UsageError(f"'{path}' must end in {' or '.join(endings)}")
    with settings():
        return output_path(path)


def unused(stem: str, *endings: str) -> str:
    """`stem`, or `stem`-2, ... so that none of stem + ending exists."""
    number, name = 1, stem
    while any(Path(f"{name}{ending}").exists() for ending in endings):
        number += 1
        name = f"{stem}-{number}"
    return name


def seed_or_fresh(seed: int | None) -> int:
    """`seed`, checked, or a fresh one."""
    from diptych.core.randomness import check_seed

    with settings():
        return check_seed(seed)


def tell_fresh_seed(seed: int | None, used: int) -> None:
    """A seed that was not given is told, so that the result can be made again."""
    if seed is None:
        say(f"seed {used}; --seed {used} makes the same again")


def text_model(
    name: str,
    device: str | None,
    dtype: str | None,
    adapter: Path | None = None,
    *,
    bits: int | None = None,
    compile: bool = False,
) -> "TextModel":
    model = _load(name, device, dtype, bits, compile)
    if model.panel != "text":
        raise UsageError(f"model '{name}' paints pictures; 'diptych image --model {name}' uses it")
    if adapter:
        from diptych.interop.peft import load_adapter

        model.use_adapter(load_adapter(model, adapter))
    return model


def begin_compiling(device: str | None, dtype: str | None, *, learns: bool = False) -> None:
    """What a CPU needs compiled, once a machine, is compiled beside what comes before: the import of torch, data.
    `learns` says that gradients are, too."""
    from diptych.core import machine_code

    if machine_code.is_for(device, dtype):
        machine_code.begin(machine_code.of_many(learns))


def image_model(name: str, device: str | None, dtype: str | None) -> "ImageModel":
    model = _load(name, device, dtype)
    if model.panel != "image":
        raise UsageError(f"model '{name}' writes text; 'diptych text --model {name}' uses it")
    return model


def _load(
    name: str, device: str | None, dtype: str | None, bits: int | None = None, compile: bool = False
) -> "TextModel | ImageModel":
    import diptych
    from diptych.core.precision import choose
    from diptych.core.quantised import check_bits

    with settings():
        choose(device, dtype)
        check_bits(bits)
    return diptych.load(name, device, dtype, bits=bits, compile=compile)


def recipe(path: Path, changes: list[str] | None, threads: int | None) -> "Recipe":
    """The recipe at `path` with its changes, checked, and the threads, too."""
    from diptych.train.recipe import read_recipe

    if not path.is_file():
        raise ValueError(f"there is no recipe at '{path}'")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, not {threads}")
    with settings():
        return read_recipe(path, changes)


def training_format(dtype: str | None) -> "tuple[torch.device, torch.dtype]":
    """The device and the dtype that a run computes with."""
    from diptych.core.precision import choose

    with settings():
        if dtype == "float16":
            raise ValueError(
                "dtype float16 cannot train here: small gradients become 0 in it; allowed: bfloat16, float32, float64"
            )
        return choose(None, dtype)


def say(line: str) -> None:
    """A line for the person, on standard error."""
    print(line, file=sys.stderr, flush=True)


def is_terminal(stream: IO[str]) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def has_colour(stream: IO[str]) -> bool:
    """https://no-color.org: any value that is not empty means no."""
    return is_terminal(stream) and not os.environ.get("NO_COLOR")


def has_true_colour(stream: IO[str]) -> bool:
    return has_colour(stream) and os.environ.get("COLORTERM", "").lower() in ("truecolor", "24bit")


def bold(words: str, stream: IO[str] | None = None) -> str:
    return f"\x1b[1m{words}\x1b[0m" if has_colour(stream or sys.stdout) else words


def columns() -> int:
    """Width of the terminal; 80 in a pipe."""
    return max(40, shutil.get_terminal_size((80, 24)).columns)


def json_line(value: dict[str, Any]) -> None:
    """One JSON object a line on standard output."""
    import json

    print(json.dumps(value, ensure_ascii=False, allow_nan=False), flush=True)


def spread(among: range, most: int) -> list[int]:
    """At most so many of a range, evenly spread, its ends among them; the last one where one is wanted."""
    if most < 2:
        return [among[-1]]
    return sorted({among[round(place * (len(among) - 1) / (most - 1))] for place in range(most)})


def noise_share(facts: dict[str, Any]) -> float:
    """Share of the picture's variance that is noise at a recorded step, for a picture of unit variance."""
    sigma, alpha = float(facts["sigma"]), float(facts["alpha"])
    return sigma**2 / (alpha**2 + sigma**2)


def step_caption(facts: list[dict[str, Any]], index: int) -> list[str]:
    """What stands under the picture of a recorded step."""
    return [f"step {index + 1} of {len(facts)}", f"{100 * noise_share(facts[index]):.0f} % noise"]
