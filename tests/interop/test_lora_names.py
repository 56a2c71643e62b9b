"""LoRA files by the names of the original networks, and by older ones."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FluxPipeline, StableDiffusionXLPipeline
from diffusers.loaders.single_file_utils import convert_sd3_transformer_checkpoint_to_diffusers
from safetensors.torch import load_file
from tests.interop.adapting import HALVES, RANK, Here, adapt, agree, layers_of, random_pairs, saved, there
from tests.interop.test_denoisers import written

from diptych.interop.lora import write_lora

pytestmark = pytest.mark.filterwarnings("ignore:While injecting the PEFT adapters, an inconsistency was discovered")

ATTENTION = [f"attn{number}.{name}" for number in (1, 2) for name in ("to_q", "to_k", "to_v", "to_out.0")]
INSIDE = [f"transformer_blocks.0.{name}" for name in (*ATTENTION, "ff.net.0.proj", "ff.net.2")]
# Of the tiny SDXL: the original's name of a layer, and diffusers'.
SGM = {
    "input_blocks.1.0.in_layers.2": "down_blocks.0.resnets.0.conv1",
    "input_blocks.1.0.emb_layers.1": "down_blocks.0.resnets.0.time_emb_proj",
    "input_blocks.2.0.op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks.3.0.out_layers.3": "down_blocks.1.resnets.0.conv2",
    "input_blocks.3.1.proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks.5.0.skip_connection": "down_blocks.2.resnets.0.conv_shortcut",
    **{f"input_blocks.5.1.{name}": f"down_blocks.2.attentions.0.{name}" for name in INSIDE},
    "middle_block.0.in_layers.2": "mid_block.resnets.0.conv1",
    "middle_block.1.transformer_blocks.2.attn2.to_k": "mid_block.attentions.0.transformer_blocks.2.attn2.to_k",
    "middle_block.2.out_layers.3": "mid_block.resnets.1.conv2",
    "output_blocks.0.0.in_layers.2": "up_blocks.0.resnets.0.conv1",
    "output_blocks.1.1.proj_out": "up_blocks.0.attentions.1.proj_out",
    "output_blocks.1.2.conv": "up_blocks.0.upsamplers.0.conv",
    **{f"output_blocks.2.1.{name}": f"up_blocks.1.attentions.0.{name}" for name in INSIDE},
    "output_blocks.5.0.skip_connection": "up_blocks.2.resnets.1.conv_shortcut",
    "time_embed.0": "time_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.2": "conv_out",
}


def test_sdxl_by_the_original_networks_names(tmp_path: Path) -> None:
    """Against diffusers' own conversion."""
    reference: Any = written("sdxl", tmp_path)
    layers = layers_of(reference)
    pairs = random_pairs({name: tuple(layers[one].weight.shape) for name, one in SGM.items()})
    file = saved(pairs, tmp_path / "sgm.safetensors")
    here = Here("sdxl", tmp_path)
    bare, ours = here.bare(), here.painted(file)
    tensors, alphas = StableDiffusionXLPipeline.lora_state_dict(load_file(file), unet_config=reference.config)
    reference.load_lora_adapter(tensors, prefix="unet", network_alphas=alphas)
    agree(ours, there(reference, "sdxl"), bare)


WIDTH, HIDDEN, TOLD = 32, 128, 24
FLUX = {
    **{
        f"double_blocks.{block}.{side}_{name}": size
        for block in (0, 1)
        for side in ("img", "txt")
        for name, size in {
            "attn.qkv": (3 * WIDTH, WIDTH),
            "attn.proj": (WIDTH, WIDTH),
            "mlp.0": (HIDDEN, WIDTH),
            "mlp.2": (WIDTH, HIDDEN),
            "mod.lin": (6 * WIDTH, WIDTH),
        }.items()
    },
    "single_blocks.1.linear1": (3 * WIDTH + HIDDEN, WIDTH),
    "single_blocks.1.linear2": (WIDTH, WIDTH + HIDDEN),
    "single_blocks.1.modulation.lin": (3 * WIDTH, WIDTH),
    "img_in": (WIDTH, 16),
    "txt_in": (WIDTH, TOLD),
    "time_in.in_layer": (WIDTH, 256),
    "vector_in.out_layer": (WIDTH, WIDTH),
    "guidance_in.in_layer": (WIDTH, 256),
    "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    "final_layer.linear": (16, WIDTH),
}


@pytest.mark.parametrize("form", ["lora_unet_{}.{}.weight", "diffusion_model.{}.{}.weight"])
def test_flux_by_the_original_networks_names(form: str, tmp_path: Path) -> None:
    """Matrices that hold several of ours are split, halves that stand the other way exchanged. Diffusers' conversion
    knows no alphas for the layers around the blocks, so there are none, and forgets the beginning of their names; the
    width of what is split into four is written into it, so that one is split by hand."""
    reference: Any = written("flux-dev", tmp_path)
    pairs = {name: tensor for name, tensor in random_pairs(FLUX, form).items() if not name.endswith("alpha")}
    file = saved(pairs, tmp_path / "bfl.safetensors")
    here = Here("flux-dev", tmp_path)
    bare, ours = here.bare(), here.painted(file)
    write_lora(here.adapters[str(file)], here.parts, tmp_path / "again.safetensors")
    here.adapters.use(None)
    torch.testing.assert_close(here.painted(tmp_path / "again.safetensors"), ours, rtol=0, atol=1e-5)
    a, b = (pairs.pop(next(key for key in pairs if "linear1" in key and half in key)) for half in ("down", "up"))
    found = FluxPipeline.lora_state_dict(pairs)
    tensors = {f"transformer.{name.removeprefix('transformer.')}": tensor for name, tensor in found.items()}
    four = ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")
    for name, rows in zip(four, b.split([WIDTH] * 3 + [HIDDEN]), strict=True):
        whole = f"transformer.single_transformer_blocks.1.{name}"
        tensors |= {f"{whole}.lora_A.weight": a, f"{whole}.lora_B.weight": rows}
    reference.load_lora_adapter(tensors, prefix="transformer")
    agree(ours, there(reference, "flux-dev"), bare)


def test_flux_by_the_names_of_xlabs(tmp_path: Path) -> None:
    reference: Any = written("flux-dev", tmp_path)
    shapes = {"single_blocks.0.processor.qkv_lora": (3 * WIDTH, WIDTH)}
    shapes["single_blocks.0.processor.proj_lora"] = (WIDTH, WIDTH + HIDDEN)
    for number in (1, 2):
        shapes[f"double_blocks.1.processor.qkv_lora{number}"] = (3 * WIDTH, WIDTH)
        shapes[f"double_blocks.1.processor.proj_lora{number}"] = (WIDTH, WIDTH)
    pairs = {
        name.replace("lora_down", "down").replace("lora_up", "up"): tensor
        for name, tensor in random_pairs(shapes, "{}.{}.weight").items()
        if not name.endswith("alpha")
    }
    file = saved(pairs, tmp_path / "xlabs.safetensors")
    here = Here("flux-dev", tmp_path)
    bare, ours = here.bare(), here.painted(file)
    reference.load_lora_adapter(FluxPipeline.lora_state_dict(load_file(file)), prefix="transformer")
    agree(ours, there(reference, "flux-dev"), bare)


def sd3_shapes() -> dict[str, tuple[int, ...]]:
    """The matrices of the original network of the tiny SD3.5 medium."""
    found: dict[str, tuple[int, ...]] = {
        "x_embedder.proj": (WIDTH, 4, 2, 2),
        "context_embedder": (WIDTH, TOLD),
        "t_embedder.mlp.0": (WIDTH, 256),
        "t_embedder.mlp.2": (WIDTH, WIDTH),
        "y_embedder.mlp.0": (WIDTH, 20),
        "y_embedder.mlp.2": (WIDTH, WIDTH),
        "final_layer.linear": (16, WIDTH),
        "final_layer.adaLN_modulation.1": (2 * WIDTH, WIDTH),
    }
    for block in range(3):
        for side in ("x", "context"):
            begin, is_last = f"joint_blocks.{block}.{side}_block", side == "context" and block == 2
            is_dual = side == "x" and block < 2
            found[f"{begin}.adaLN_modulation.1"] = ((2 if is_last else 9 if is_dual else 6) * WIDTH, WIDTH)
            for attention in ("attn", "attn2") if is_dual else ("attn",):
                found[f"{begin}.{attention}.qkv"] = (3 * WIDTH, WIDTH)
                if not is_last:
                    found[f"{begin}.{attention}.proj"] = (WIDTH, WIDTH)
            if not is_last:
                found |= {f"{begin}.mlp.fc1": (HIDDEN, WIDTH), f"{begin}.mlp.fc2": (WIDTH, HIDDEN)}
    return found


def test_sd3_by_the_original_networks_names(tmp_path: Path) -> None:
    """Against diffusers' conversion of whole checkpoints, of one with the adapter added and one without."""
    reference = written("sd3.5-medium", tmp_path)
    shapes = sd3_shapes()
    torch.manual_seed(3)
    whole = {f"{name}.weight": torch.randn(size) * 0.8 * size[1] ** -0.5 for name, size in shapes.items()}
    whole |= {f"{name}.bias": torch.randn(size[0]) * 0.1 for name, size in shapes.items()}
    whole["pos_embed"] = reference.state_dict()["pos_embed.pos_embed"]
    for block in range(3):
        for norm in ("x_block.attn", "context_block.attn") + (("x_block.attn2",) if block < 2 else ()):
            whole |= {f"joint_blocks.{block}.{norm}.ln_{half}.weight": torch.ones(8) for half in "qk"}
    pairs = random_pairs(shapes)
    file = saved(pairs, tmp_path / "kohya.safetensors")
    added = dict(whole)
    for name, size in shapes.items():
        down, up = (pairs[f"lora_unet_{name.replace('.', '_')}.lora_{half}.weight"] for half in ("down", "up"))
        added[f"{name}.weight"] = whole[f"{name}.weight"] + 2 / RANK * (up.flatten(1) @ down.flatten(1)).view(size)
    outputs = []
    for checkpoint in (added, whole):
        reference.load_state_dict(convert_sd3_transformer_checkpoint_to_diffusers(checkpoint))
        outputs.append(there(reference, "sd3.5-medium"))
    reference.save_pretrained(tmp_path)  # type: ignore[operator]
    here = Here("sd3.5-medium", tmp_path)
    bare = here.bare()
    torch.testing.assert_close(bare, outputs[1], rtol=0, atol=1e-4)
    agree(here.painted(file), outputs[0], bare)


OLD = {"to_q": "to_q_lora", "to_k": "to_k_lora", "to_v": "to_v_lora", "to_out.0": "to_out_lora"}


@pytest.mark.parametrize("prefix", ["unet.", ""])
def test_older_names_of_diffusers(prefix: str, tmp_path: Path) -> None:
    """...attn1.processor.to_q_lora.down.weight, ...ff.net.2.lora.down.weight."""
    reference = written("sd1", tmp_path)
    layers = [name for name in layers_of(reference) if ".attn" in name or ".ff." in name]
    tensors = adapt(reference, target_modules=layers, lora_alpha=RANK)
    older = {}
    for key, tensor in tensors.items():
        name, half = key.removesuffix(".weight").rsplit(".", 1)
        begin, _, last = name.partition(".attn")
        if last:
            number, which = last.split(".", 1)
            older[f"{prefix}{begin}.attn{number}.processor.{OLD[which]}.{HALVES[half]}.weight"] = tensor
        else:
            older[f"{prefix}{name}.lora.{HALVES[half]}.weight"] = tensor
    here = Here("sd1", tmp_path)
    bare = here.bare()
    agree(here.painted(saved(older, tmp_path / "older.safetensors")), there(reference, "sd1"), bare)
