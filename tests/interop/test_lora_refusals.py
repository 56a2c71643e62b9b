"""What is wrong with a LoRA file is said in one line, before anything is painted with it."""

import json
from pathlib import Path

import pytest
import torch
from tests.interop.adapting import Here, saved
from tests.interop.test_denoisers import written
from torch import Tensor

from diptych.interop.lora import read_lora

PAIR = {"lora_A.weight": torch.zeros(2, 32), "lora_B.weight": torch.zeros(32, 2)}
QUERY = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
FIRST = {f"{QUERY}.{half}": tensor for half, tensor in PAIR.items()}
REFUSED = [
    ({f"{QUERY}.dora_scale": torch.ones(32, 1)}, "is more than LoRA: DoRA, 'unet.down_blocks.0"),
    ({f"{QUERY}.lora_magnitude_vector": torch.ones(32)}, "is more than LoRA: DoRA"),
    (
        {"lora_unet_conv_in.hada_w1_a": torch.ones(2, 2)},
        "is more than LoRA: LoHa, 'lora_unet_conv_in.hada_w1_a' (1 of",
    ),
    ({"lora_unet_conv_in.lokr_w1": torch.ones(2, 2)}, "is more than LoRA: LoKr"),
    ({"lora_unet_conv_in.diff": torch.ones(2, 2)}, "is more than LoRA: whole differences of weights"),
    ({f"{QUERY}.lora_B.bias": torch.ones(32)}, "is more than LoRA: biases"),
    ({f"{QUERY}.alpha": torch.tensor(float("nan"))}, "must be a finite number"),
    ({"unet.conv_in.lora_A.weight": torch.zeros(2, 4, 3, 3)}, "lacks the other half of 'unet.conv_in'"),
    (
        {f"lora_te2_text_model_x.{half}": tensor for half, tensor in PAIR.items()} | {"other": torch.ones(1)},
        "has no place for 'lora_te2_text_model_x.lora_A.weight' and 2 more (3 of 5 tensors)",
    ),
    (
        {f"unet.mid_block.nothing.{half}": tensor for half, tensor in PAIR.items()},
        "has no place for 'unet.mid",
    ),
    ({f"{QUERY}.lora_B.weight": torch.zeros(48, 2)}, "are (2, 32) and (48, 2), the weight there is (32, 32)"),
    ({f"{QUERY}.lora_A.weight": torch.zeros(2, 16)}, "are (2, 16) and (32, 2), the weight there is (32, 32)"),
    (
        {QUERY.replace("unet.", "lora_unet_").replace(".", "_") + ".lora_down.weight": PAIR["lora_A.weight"]},
        "twice, by two names",
    ),
]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Here:
    folder = tmp_path_factory.mktemp("small")
    written("sd1", folder)
    return Here("sd1", folder)


@pytest.mark.parametrize(("more", "message"), REFUSED)
def test_what_is_not_to_be_had_is_refused_in_one_line(
    more: dict[str, Tensor], message: str, small: Here, tmp_path: Path
) -> None:
    file = saved({name: tensor.clone() for name, tensor in (FIRST | more).items()}, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match=r"one\.safetensors'") as refused:
        read_lora(file, small.parts)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("{", "lora_adapter_metadata is no JSON"),
        ("[]", "lora_adapter_metadata must be a table"),
        (json.dumps({"unet.r": 2, "unet.lora_alpha": 2, "unet.use_dora": True}), "use_dora True is not supported"),
        (json.dumps({"unet.r": 2, "unet.lora_alpha": "much"}), "lora_alpha must be a number, not 'much'"),
    ],
)
def test_what_metadata_says_is_checked(about: str, message: str, small: Here, tmp_path: Path) -> None:
    file = saved(FIRST, tmp_path / "one.safetensors", {"lora_adapter_metadata": about})
    with pytest.raises(ValueError, match=message):
        read_lora(file, small.parts)


def test_files_are_found_and_pickles_are_not_opened(small: Here, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no LoRA file at"):
        read_lora(tmp_path / "none.safetensors", small.parts)
    (tmp_path / "lora.ckpt").write_bytes(b"x")
    with pytest.raises(ValueError, match="is a pickle, which may hold code"):
        read_lora(tmp_path / "lora.ckpt", small.parts)
    with pytest.raises(ValueError, match=r"has no pytorch_lora_weights\.safetensors \(a pickle is never opened"):
        read_lora(tmp_path, small.parts)
    file = saved(FIRST, tmp_path / "any.safetensors")
    assert read_lora(tmp_path, small.parts).layers.keys() == read_lora(file, small.parts).layers.keys()
    saved(FIRST, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="has several files, none of them pytorch_lora_weights"):
        read_lora(tmp_path, small.parts)
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ValueError, match="is damaged or not a safetensors file"):
        read_lora(file, small.parts)


def test_a_folder_of_pefts_has_its_alpha_beside_it(small: Here, tmp_path: Path) -> None:
    saved(
        {name.replace("unet.", "base_model.model."): one for name, one in FIRST.items()},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 7}))
    (layer,) = read_lora(tmp_path, small.parts).layers.values()
    assert layer.scale == 3.5
