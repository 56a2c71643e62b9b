"""Published denoisers: tiny ones with random weights, written by diffusers itself, predict the same here."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diptych.core import weights
from diptych.interop.denoisers import open_denoiser

UNET = {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 24, "sample_size": 8}
ONE_WITH = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
XL = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (32, 32, 64),
    "transformer_layers_per_block": (1, 2, 3),
    "attention_head_dim": (1, 2, 4),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 20 + 6 * 8,
}
SD3 = {
    "sample_size": 16,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 8,
    "num_attention_heads": 4,
    "joint_attention_dim": 24,
    "caption_projection_dim": 32,
    "pooled_projection_dim": 20,
    "pos_embed_max_size": 12,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "axes_dims_rope": (4, 6, 6),
}
CONTEXT, POOLED = 24, 20


class Published(NamedTuple):
    make: Callable[..., Any]
    settings: dict[str, Any]


KINDS = {
    "sd1": Published(UNet2DConditionModel, {**UNET, **ONE_WITH, "attention_head_dim": 8}),
    "sd2": Published(
        UNet2DConditionModel,
        {**UNET, **ONE_WITH, "attention_head_dim": (2, 4), "use_linear_projection": True, "upcast_attention": True},
    ),
    "sdxl": Published(UNet2DConditionModel, UNET | XL),
    "scale-shift": Published(
        UNet2DConditionModel, {**UNET, **ONE_WITH, "resnet_time_scale_shift": "scale_shift", "flip_sin_to_cos": False}
    ),
    "sd3": Published(SD3Transformer2DModel, SD3),
    "sd3.5-large": Published(SD3Transformer2DModel, SD3 | {"qk_norm": "rms_norm"}),
    "sd3.5-medium": Published(SD3Transformer2DModel, SD3 | {"qk_norm": "rms_norm", "dual_attention_layers": (0, 1)}),
    "flux-dev": Published(FluxTransformer2DModel, FLUX | {"guidance_embeds": True}),
    "flux-schnell": Published(FluxTransformer2DModel, FLUX),
}


def written(kind: str, folder: Path, **how: Any) -> nn.Module:
    """A model of that kind as diffusers makes and writes it, its norms' weights away from one."""
    torch.manual_seed(0)
    model: nn.Module = KINDS[kind].make(**KINDS[kind].settings).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder, **how)  # type: ignore[operator]
    return model


def inputs(kind: str, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """x, time, context, pooled, numbers for two pictures at two noise levels."""
    random = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, *size, generator=random)
    context, pooled = torch.randn(2, 7, CONTEXT, generator=random), torch.randn(2, POOLED, generator=random)
    numbers = torch.tensor([[3.5], [7.0]])
    if kind == "sdxl":
        numbers = torch.tensor([[512.0, 768, 0, 64, 1024, 1024], [1024, 1024, 0, 0, 640, 1536]])
    return x, torch.tensor([981.0, 20.5]), context, pooled, numbers


def theirs(model: nn.Module, kind: str, x: Tensor, time: Tensor, context: Tensor, *told: Tensor) -> Tensor:
    pooled, numbers = told
    if kind.startswith("flux"):
        batch, channels, height, width = x.shape
        rows = x.view(batch, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
        ids = torch.zeros(height // 2, width // 2, 3)
        ids[..., 1] += torch.arange(height // 2)[:, None]
        ids[..., 2] += torch.arange(width // 2)
        out: Tensor = model(
            hidden_states=rows.reshape(batch, height * width // 4, -1),
            timestep=time / 1000,
            guidance=numbers[:, 0] if "dev" in kind else None,
            pooled_projections=pooled,
            encoder_hidden_states=context,
            txt_ids=torch.zeros(context.shape[1], 3),
            img_ids=ids.view(-1, 3),
        )[0]
        out = out.view(batch, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
        return out.reshape(x.shape)
    if kind.startswith("sd3"):
        painted: Tensor = model(x, context, pooled, time)[0]
        return painted
    added = {"text_embeds": pooled, "time_ids": numbers} if kind == "sdxl" else None
    painted = model(x, time, context, added_cond_kwargs=added)[0]
    return painted


@pytest.mark.parametrize("kind", KINDS)
def test_a_published_denoiser_predicts_the_same_here(kind: str, tmp_path: Path) -> None:
    reference, ours = written(kind, tmp_path), open_denoiser(tmp_path)
    for size in ((8, 8), (16, 8), (12, 20)):
        x, time, context, pooled, numbers = inputs(kind, size)
        expected = theirs(reference, kind, x, time, context, pooled, numbers)
        found = ours(x, time, context, None, pooled, numbers)
        assert expected.std() > 0.05
        assert torch.allclose(found, expected, atol=1e-4), f"{size}: {(found - expected).abs().max()}"


def test_sides_that_do_not_halve_evenly_are_painted_all_the_same(tmp_path: Path) -> None:
    """As the reference does, which brings what grows to the size of what comes across."""
    reference, ours = written("sdxl", tmp_path), open_denoiser(tmp_path)
    told = inputs("sdxl", (9, 14))
    expected = theirs(reference, "sdxl", *told)
    x, time, context, pooled, numbers = told
    assert torch.allclose(ours(x, time, context, None, pooled, numbers), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_hides_words_as_if_they_were_not_there(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path)
    ours = open_denoiser(tmp_path)
    x, time, context, pooled, numbers = inputs(kind, (8, 8))
    mask = (torch.arange(7) < 5).expand(2, 7)
    short = ours(x, time, context[:, :5], None, pooled, numbers)
    assert torch.allclose(ours(x, time, context, mask, pooled, numbers), short, atol=1e-4)
    assert not torch.allclose(ours(x, time, context, None, pooled, numbers), short, atol=1e-3)


@pytest.mark.parametrize("kind", ["sd2", "sd3", "flux-dev"])
def test_shards_are_read_by_their_index(kind: str, tmp_path: Path) -> None:
    written(kind, tmp_path / "one")
    written(kind, tmp_path / "many", max_shard_size="100KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    one, many = (open_denoiser(tmp_path / folder).state_dict() for folder in ("one", "many"))
    assert one.keys() == many.keys()
    assert all(torch.equal(one[name], many[name]) for name in one)


@pytest.mark.parametrize("kind", ["sd1", "sdxl", "sd3.5-medium", "flux-dev"])
def test_weights_stay_where_the_file_has_them(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is renamed, split or given other axes is a view of the mapped tensor: opening takes no memory."""
    written(kind, tmp_path)
    read, mapped = weights.iterate_tensors, []

    def noted(*where: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in read(*where):
            mapped.append(tensor)
            yield name, tensor

    monkeypatch.setattr(weights, "iterate_tensors", noted)
    ours = open_denoiser(tmp_path)
    ranges = [(tensor.data_ptr(), tensor.data_ptr() + tensor.nbytes) for tensor in mapped]
    for name, tensor in ours.state_dict().items():
        assert any(start <= tensor.data_ptr() < end for start, end in ranges), name


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("sd1", {"in_channels": 9}, r"'in_channels' \(9\) is supported only if it is out_channels \(4\)"),
        ("sd1", {"class_embed_type": "timestep"}, "'class_embed_type' is supported only as None, not 'timestep'"),
        ("sd1", {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"]}, "'down_block_types' must name 2 of"),
        ("sd1", {"up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"]}, "'up_block_types' must be down_block_types"),
        ("sd1", {"attention_head_dim": [8]}, "'attention_head_dim' must be a whole number or 2 of them"),
        ("sd1", {"layers_per_block": [1, 2]}, "'layers_per_block' is supported only as one whole number"),
        ("sd1", {"attention_head_dim": 3}, r"U-Net heads must divide the widths \[32, 64\]"),
        ("sdxl", {"addition_embed_type": "image"}, "'addition_embed_type' is supported only as None or 'text_time'"),
        ("sdxl", {"addition_time_embed_dim": None}, "'addition_embed_type' needs projection_class_embeddings_input_d"),
        ("sd3", {"qk_norm": "layer_norm"}, "'qk_norm' is supported only as None or 'rms_norm', not 'layer_norm'"),
        ("sd3", {"caption_projection_dim": 48}, "'caption_projection_dim' must be num_attention_heads x attention_he"),
        ("sd3", {"dual_attention_layers": [3]}, r"MMDiT dual_layers must be below joint_layers \(3\), not \[3\]"),
        ("flux-dev", {"axes_dims_rope": [4, 6, 8]}, r"MMDiT axes must be two or more even numbers that add up to head"),
        ("flux-dev", {"in_channels": 18}, "'in_channels' must be a multiple of 4"),
        ("flux-dev", {"colour": 1}, "unknown setting of FluxTransformer2DModel 'colour'"),
        ("flux-dev", {"_class_name": "PixArtTransformer2DModel"}, "unknown class 'PixArtTransformer2DModel'"),
    ],
)
def test_what_is_not_supported_is_refused_by_its_key(
    kind: str, change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    written(kind, tmp_path)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=said) as refused:
        open_denoiser(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("sdxl", "down_blocks.1.attentions.0.transformer_blocks.1.ff.net.0.proj.weight"),
        ("sd3", "pos_embed.pos_embed"),
        ("flux-dev", "single_transformer_blocks.1.proj_out.weight"),
    ],
)
def test_tensors_that_do_not_fit_are_named(kind: str, name: str, tmp_path: Path) -> None:
    written(kind, tmp_path)
    (file,) = tmp_path.glob("*.safetensors")
    whole = load_file(file)
    for changed, said in (
        ({key: value for key, value in whole.items() if key != name}, f"it lacks '{name}'"),
        (whole | {"extra": torch.zeros(1)}, "it has 'extra', which the model has not"),
        (whole | {name: torch.zeros(3, 3)}, f"'{name}' is \\(3, 3\\), the model needs"),
    ):
        save_file(changed, file)
        with pytest.raises(ValueError, match=said):
            open_denoiser(tmp_path)
