"""Adapters of PEFT's beside models of diffusers and transformers, and the same parts here."""

from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file
from tests.interop.test_denoisers import inputs, theirs
from torch import Tensor, nn

from diptych.core.adapters import Adapters
from diptych.interop.denoisers import open_denoiser
from diptych.interop.lora import read_lora

RANK = 3
HALVES = {"lora_A": "down", "lora_B": "up"}


def layers_of(model: nn.Module) -> dict[str, nn.Module]:
    """By name; those that PEFT has put into layers of its own by the names that they had."""
    found = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    return {name.removesuffix(".base_layer"): layer for name, layer in found.items() if ".lora_" not in name}


def adapt(model: Any, name: str = "default", seed: int = 0, **settings: Any) -> dict[str, Tensor]:
    """An adapter of PEFT's beside a model of diffusers' or transformers', none of whose matrices is zero; its tensors.

    Beside all linear layers and convolutions, unless `target_modules` says which.
    """
    targets = {"target_modules": sorted(layers_of(model)), "r": RANK} | settings
    model.add_adapter(LoraConfig(init_lora_weights=False, **targets), adapter_name=name)
    torch.manual_seed(seed)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if f".{name}." in key:
                fan = parameter[0].numel() if ".lora_A." in key else RANK
                parameter.normal_(0, 0.4 * fan**-0.5)
    found: dict[str, Tensor] = get_peft_model_state_dict(model, adapter_name=name)
    return found


class Here:
    """The same parts here: what they compute with an adapter file, and without one."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.kind, self.network = kind, open_denoiser(folder)
        self.parts = {"network": self.network}
        self.adapters = Adapters(nn.ModuleDict(self.parts), casts=True)

    def painted(self, *files: Path, strength: float = 1.0) -> Tensor:
        for file in files:
            self.adapters.add(str(file), read_lora(file, self.parts))
        self.adapters.use({str(file): strength for file in files})
        return self.bare()

    @torch.no_grad()
    def bare(self) -> Tensor:
        x, time, context, pooled, numbers = inputs(self.kind, (8, 12))
        found: Tensor = self.network(x, time, context, None, pooled, numbers)
        return found


def there(model: nn.Module, kind: str) -> Tensor:
    with torch.no_grad():
        return theirs(model, kind, *inputs(kind, (8, 12)))


def agree(ours: Tensor, expected: Tensor, bare: Tensor) -> None:
    assert (expected - bare).abs().max() > 0.1
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-4)


def saved(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str] | None = None) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    return path


def kohyas(tensors: dict[str, Tensor], begin: str, alpha: float = RANK) -> dict[str, Tensor]:
    """The matrices of an adapter of PEFT's by kohya's names: dots become underscores."""
    found = {}
    for key, tensor in tensors.items():
        module, _, half = key.removesuffix(".weight").rpartition(".")
        name = begin + module.replace(".", "_")
        found[f"{name}.{'lora_down' if half == 'lora_A' else 'lora_up'}.weight"] = tensor
        found[f"{name}.alpha"] = torch.tensor(float(alpha))
    return found


def random_pairs(shapes: dict[str, tuple[int, ...]], form: str = "lora_unet_{}.{}.weight") -> dict[str, Tensor]:
    """A kohya file for weights of these sizes, by their names with dots."""
    torch.manual_seed(7)
    found: dict[str, Tensor] = {}
    for name, (height, *rest) in shapes.items():
        name = name.replace(".", "_") if form.startswith("lora") else name
        down = torch.randn(RANK, *rest) * 0.5 * torch.Size(rest).numel() ** -0.5
        found[form.format(name, "lora_down")] = down
        found[form.format(name, "lora_up")] = torch.randn(height, RANK, *[1] * (len(rest) - 1)) * 0.5
        found[form.format(name, "").removesuffix("..weight") + ".alpha"] = torch.tensor(2.0)
    return found
