"""Checkpoints: a directory with `config.json`, `model.safetensors`, `tokenizer.json` and a model card. Never a pickle.

Past `SHARD_BYTES` the weights lie in `model-00001-of-0000N.safetensors` with `model.safetensors.index.json` beside
them, the layout that the field's other tools read and write.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diptych.core.files import atomic_directory, recover_directory
from diptych.core.tokenizer import Tokenizer

SHARD_BYTES = 5_000_000_000
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FORMAT = {"format": "pt"}  # the metadata that transformers looks for


def save(
    directory: str | Path,
    config: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    *,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    texts: Mapping[str, str] | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write a whole checkpoint directory at once: the old one stays until the new one is complete.

    Args:
        card: what its README.md says.
        texts: name -> text of further files.
    """
    with atomic_directory(directory) as temporary:
        (temporary / "config.json").write_text(json.dumps(dict(config), indent=2) + "\n")
        shards = _shards(tensors, shard_bytes)
        if len(shards) == 1:
            save_tensors(shards[0], temporary / WEIGHTS, FORMAT)
        else:
            names = [f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)]
            for name, shard in zip(names, shards, strict=True):
                save_tensors(shard, temporary / name, FORMAT)
            where = {key: name for name, shard in zip(names, shards, strict=True) for key in shard}
            size = sum(tensor.nbytes for tensor in tensors.values())
            index = {"metadata": {"total_size": size}, "weight_map": where}
            (temporary / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        if tokenizer is not None:
            tokenizer.save(temporary / "tokenizer.json")
        for name, text in (dict(texts or {}) | ({} if card is None else {"README.md": card})).items():
            (temporary / name).write_text(text, encoding="utf-8")


def _shards(tensors: Mapping[str, Tensor], shard_bytes: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    room = shard_bytes
    for name, tensor in tensors.items():
        if tensor.nbytes > room and shards[-1]:
            shards.append({})
            room = shard_bytes
        shards[-1][name] = whole(tensor.detach()).contiguous().cpu()
        room -= tensor.nbytes
    return shards


def whole(tensor: Tensor) -> Tensor:
    """A tensor that lies over several processes (a `DTensor`, whose import would slow every start by a second),
    gathered from all of them; any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    gathered: Tensor = tensor if gather is None else gather()
    return gathered


def mesh_of(tensor: Tensor) -> Any:
    """The processes that a tensor lies over (a `DeviceMesh`); None of one that this process has to itself."""
    return getattr(tensor, "device_mesh", None)


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file.

    Raises:
        OSError: what the system refuses, as in any other writing: safetensors says it in a text of its own, with the
            system's number at its end.
    """
    try:
        save_file(dict(tensors), path, None if metadata is None else dict(metadata))
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor that lies over several; any other as it is."""
    held = getattr(tensor, "to_local", None)
    part: Tensor = tensor if held is None else held()
    return part


def read_config(directory: str | Path) -> dict[str, Any]:
    """The config.json of a checkpoint. Raises: ValueError, in one line, where there is none or it is damaged."""
    recover_directory(directory)
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise ValueError(f"'{directory}' is not a checkpoint: it has no config.json")
    return read_object(path)


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises: ValueError, in one line, for anything else."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"'{path}' is not valid JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"'{path}' must hold a JSON object, not {type(found).__name__}")
    return found


def iterate_tensors(directory: str | Path, weights: str = WEIGHTS, index: str = INDEX) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a checkpoint one at a time, each mapped from its file and read only where it is used.

    Args:
        weights, index: what the file of weights is called, and the index in its place where there are several.

    Raises:
        ValueError: a missing, truncated or foreign file, named in one line.
    """
    directory = Path(directory)
    for name in _files(directory, weights, index):
        path = directory / name
        if Path(name).name != name or not path.is_file():
            raise ValueError(f"'{directory}' is not a whole checkpoint: {name} is missing")
        try:
            with safe_open(path, framework="pt") as opened:
                for key in opened.keys():  # noqa: SIM118 - a safe_open is not a dict
                    yield key, opened.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"'{path}' is damaged or not a safetensors file: {error}") from error


def _files(directory: Path, weights: str, index: str) -> list[str]:
    """The names of the files that hold the weights, from the index where there is one."""
    path = directory / index
    if not path.is_file():
        return [weights]
    where = read_object(path).get("weight_map")
    if not isinstance(where, dict) or not where or not all(isinstance(name, str) for name in where.values()):
        raise ValueError(f"'{path}' is not an index of weights: its weight_map must name a file for each tensor")
    return sorted(set(where.values()))


def read_tensors(directory: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint, mapped from its files: memory is taken when a tensor is used."""
    return dict(iterate_tensors(directory))


def stored_dtype(directory: str | Path) -> str:
    """The dtype of most of a checkpoint's numbers: "bfloat16", ..."""
    sizes: Counter[torch.dtype] = Counter()
    for _, tensor in iterate_tensors(directory):
        sizes[tensor.dtype] += tensor.numel()
    return str(sizes.most_common(1)[0][0]).removeprefix("torch.")


def load_into(module: nn.Module, directory: str | Path, prefix: str = "") -> None:
    """Fill `module` with the checkpoint's tensors whose names start with `prefix`, and check that all fit.

    Raises:
        ValueError: naming the first tensor that is missing, left over or of another shape.
    """
    fill(module, iterate_tensors(directory), directory, prefix)


def fill(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], source: str | Path, prefix: str = "") -> None:
    """As `load_into`, from tensors at hand; `source` is what a message calls them."""
    wanted = module.state_dict()
    for name, tensor in _fitting(wanted, tensors, source, prefix):
        with torch.no_grad():
            wanted[name].copy_(tensor)


@contextmanager
def outline() -> Iterator[None]:
    """Modules that are built here have shapes, on the device "meta", and no numbers."""
    with torch.device("meta"), _Undrawn():
        yield


class _Undrawn(TorchFunctionMode):
    """Normal numbers are not drawn: for tensors without memory torch imports its compiler for that, 42 MB."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (nn.init.normal_, Tensor.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def adopt(module: nn.Module, tensors: Iterable[tuple[str, Tensor]], source: str | Path) -> None:
    """As `fill`, for a module built in `outline`: the tensors themselves become its weights, without a copy.

    A module whose weights are mapped from a file takes memory as they are used. Changing them leaves the file alone.
    """
    for name, tensor in _fitting(module.state_dict(), tensors, source):
        place, _, leaf = name.rpartition(".")
        holder = module.get_submodule(place)
        is_parameter = leaf in dict(holder.named_parameters(recurse=False))
        setattr(holder, leaf, nn.Parameter(tensor.contiguous()) if is_parameter else tensor)
    for holder in module.modules():  # what no checkpoint has are counts
        for leaf, buffer in holder.named_buffers(recurse=False):
            if buffer.is_meta:
                holder.register_buffer(leaf, torch.zeros_like(buffer, device="cpu"), persistent=False)


def _fitting(
    wanted: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], source: str | Path, prefix: str = ""
) -> Iterator[tuple[str, Tensor]]:
    """Name and tensor of all that are wanted. Raises: ValueError as `load_into`."""
    missing = set(wanted)
    for key, tensor in tensors:
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name not in wanted:
            raise ValueError(f"'{source}' does not fit its config.json: it has '{key}', which the model has not")
        if wanted[name].shape != tensor.shape:
            raise ValueError(
                f"'{source}' does not fit its config.json: '{key}' is {tuple(tensor.shape)}, "
                f"the model needs {tuple(wanted[name].shape)}"
            )
        yield name, tensor
        missing.discard(name)
    if missing:
        raise ValueError(f"'{source}' does not fit its config.json: it lacks '{prefix}{min(missing)}'")


def digest(tensors: Mapping[str, Tensor]) -> str:
    """32 hexadecimal digits that change when a name, a dtype, a shape or a bit of a weight does.

    The order of the tensors, the device they are on and how they lie in memory change nothing.
    """
    hashed = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:32]
