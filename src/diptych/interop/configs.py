"""config.json of a published decoder -> `DecoderConfig`, and back.

What the decoder cannot do is refused by the key that asks for it: a model that opens computes what its authors' does.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from diptych.core.experts import ExpertsConfig
from diptych.core.positions import RopeScaling
from diptych.core.spelling import unknown
from diptych.interop.architectures import ARCHITECTURES, Architecture
from diptych.text.decoder import DecoderConfig

# Their names of activations -> ours. The first of those that mean the same is the one that is written.
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu-tanh",
    "gelu_pytorch_tanh": "gelu-tanh",
    "relu": "relu",
    "relu2": "relu2",
}
MOST_LAYERS = 10_000  # what is listed for each layer is built before a tensor is looked for
# The rotary settings that each kind has besides its factor: ours -> theirs.
ROPE_KEYS: dict[str, dict[str, str]] = {
    "linear": {},
    "dynamic": {},
    "yarn": {
        "original_context": "original_max_position_embeddings",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
        "truncates": "truncate",
        "attention_factor": "attention_factor",
        "mscale": "mscale",
        "mscale_all_dim": "mscale_all_dim",
    },
    "llama3": {
        "original_context": "original_max_position_embeddings",
        "low_freq_factor": "low_freq_factor",
        "high_freq_factor": "high_freq_factor",
    },
}


def architecture_of(entries: Mapping[str, Any]) -> Architecture:
    """The row that config.json names.

    Raises:
        ValueError: an architecture that is not known; the message lists those that are.
    """
    names = entries.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise ValueError(f"its config.json names no architecture; known: {', '.join(ARCHITECTURES)}")
    if names[0] not in ARCHITECTURES:
        raise unknown("architecture", names[0], ARCHITECTURES)
    return ARCHITECTURES[names[0]]


def decoder_config(entries: Mapping[str, Any]) -> DecoderConfig:
    """The decoder that a config.json describes; dropout is off.

    Raises:
        ValueError: naming the key that is missing, has an impossible value, or asks for what the decoder cannot do.
    """
    row = architecture_of(entries)
    entries = {**row.absent, **{row.spellings.get(key, key): value for key, value in entries.items()}}
    _check_supported(row, entries)
    settings: dict[str, Any] = dict(row.fixed)
    for name, key in row.keys.items():
        settings[name] = _setting(name, key, entries)
    width, heads = settings["width"], settings["num_heads"]
    if settings.get("num_kv_heads") is None:
        settings["num_kv_heads"] = heads
    if settings.get("head_dim") is None:
        if width % heads:
            raise ValueError(f"width {width} is no multiple of {heads} heads, and no head_dim is given")
        settings["head_dim"] = width // heads
    if settings["hidden"] is None:
        settings["hidden"] = 4 * width
    if row.is_rotary:
        settings |= _rope(entries, settings["context"])
    windows = _windows(row, entries, settings["num_layers"])
    if any(windows):
        settings["windows"] = windows
    if row.expert_keys:
        settings["experts"] = _experts(row, entries, settings["num_layers"])
    return DecoderConfig.from_dict(settings)


def config_json(config: DecoderConfig, row: Architecture) -> dict[str, Any]:
    """What config.json of that architecture says of a decoder. Where the two differ, it reads back differently."""
    written: dict[str, Any] = {"architectures": [row.name], "model_type": row.model_type, **row.only}
    written |= {key: getattr(config, name) for name, key in row.keys.items()}
    activation = next(key for key in row.keys.values() if key in ("hidden_act", "activation_function"))
    written[activation] = next(theirs for theirs, ours in ACTIVATIONS.items() if ours == config.activation)
    if row.is_rotary:
        parameters = _rope_parameters(config)
        written |= {"rope_parameters": parameters, "rope_theta": config.rope_theta}  # the latter for transformers 4
        if config.rope_scaling is not None:
            written["rope_scaling"] = {key: value for key, value in parameters.items() if key != "rope_theta"}
        if config.rope_scaling is not None and config.rope_scaling.kind == "dynamic":
            written[row.keys["context"]] = config.rope_scaling.original_context
        if "partial_rotary_factor" in row.absent:
            written["partial_rotary_factor"] = 1.0
    return written | _written_windows(row, config) | _written_experts(row, config)


def architecture_for(config: DecoderConfig) -> tuple[Architecture, dict[str, Any]]:
    """The architecture that computes what this decoder does, and its config.json.

    Raises:
        ValueError: there is none; the message says what the nearest lacks.
    """
    config = _without_ntk(config)
    wanted = _without_training(config)
    differences: dict[str, list[str]] = {}
    for row in ARCHITECTURES.values():
        if bool(row.expert_keys) != (config.experts is not None):
            continue
        written = config_json(config, row)
        try:
            found = _without_training(decoder_config(written))
        except ValueError as error:
            differences[row.name] = [str(error)]
            continue
        if found == wanted:
            return row, written
        differences[row.name] = _differences(found, wanted)
    nearest = min(differences, key=lambda name: len(differences[name]))
    raise ValueError(f"no architecture computes the same; nearest is {nearest}, but {'; '.join(differences[nearest])}")


def _differences(found: DecoderConfig, wanted: DecoderConfig) -> list[str]:
    """What differs, in words; settings within experts and scaling by themselves."""
    there, here = (dict(_flat(config.to_dict())) for config in (found, wanted))
    differing = [name for name in here if there.get(name) != here[name]]
    return [f"there {name} is {there.get(name)}, here {here[name]}" for name in differing]


def _flat(entries: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", deep) for inner, deep in value.items())
        else:
            yield name, value


def _without_ntk(config: DecoderConfig) -> DecoderConfig:
    """The NTK-aware scaling, which others do not know by name, as the larger theta that it is."""
    scaling = config.rope_scaling
    if scaling is None or scaling.kind != "ntk":
        return config
    theta = config.rope_theta * scaling.factor ** (config.head_dim / (config.head_dim - 2))
    return replace(config, rope_theta=theta, rope_scaling=None)


def _without_training(config: DecoderConfig) -> DecoderConfig:
    """The config with what changes nothing that the decoder computes in evaluation as if left out."""
    plain = replace(config, dropout=0.0, windows=config.windows if any(config.windows) else ())
    experts = config.experts
    if experts is None:
        return plain
    if len(experts.layers) in (0, config.num_layers):  # no layer has the other feed-forward
        plain, experts = replace(plain, hidden=experts.hidden), replace(experts, layers=())
    balance = experts.balance if experts.balance == "bias" else "none"
    idle = replace(experts, balance=balance, balance_weight=0.0, bias_rate=0.0, z_loss_weight=0.0)
    return replace(plain, experts=idle)


def _shown(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _check_supported(row: Architecture, entries: Mapping[str, Any]) -> None:
    quantised = entries.get("quantization_config")
    if quantised:
        method = quantised.get("quant_method", "?") if isinstance(quantised, dict) else quantised
        raise ValueError(
            f"its weights are quantised (quantization_config, '{method}'), which is not supported: open the checkpoint "
            "that they were made from"
        )
    for key, value in row.only.items():
        if key in entries and entries[key] != value:
            raise ValueError(f"'{key}' is supported only as {value!r}, not {entries[key]!r}")


def _setting(name: str, key: str, entries: Mapping[str, Any]) -> Any:
    """The value of one setting; None where it follows from others."""
    value = entries.get(key)
    if name == "activation":
        value = "silu" if value is None else value
        if not isinstance(value, str) or value not in ACTIVATIONS:
            raise unknown(f"activation ('{key}')", str(value), ACTIVATIONS)
        return ACTIVATIONS[value]
    if name == "ties_embeddings":
        value = False if value is None else value
    if name == "norm_eps":
        return _number(key, value)
    if name.startswith("has_") or name == "ties_embeddings":
        if not isinstance(value, bool):
            raise ValueError(f"'{key}' must be true or false, not {value!r}")
        return value
    if value is None and name in ("num_kv_heads", "head_dim", "hidden") and key != "intermediate_size":
        return None
    if key not in entries:
        raise ValueError(f"it has no '{key}'")
    if name == "num_layers" and _whole(key, value) > MOST_LAYERS:
        raise ValueError(f"'{key}' must be at most {MOST_LAYERS}, not {value}")
    return _whole(key, value)


def _whole(key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"'{key}' must be a whole number >= 1, not {value!r}")
    return value


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"'{key}' must be a number, not {value!r}")
    return float(value)


def _rope(entries: Mapping[str, Any], context: int) -> dict[str, Any]:
    """Theta, scaling, and the context that comes with the scaling."""
    key = "rope_parameters" if entries.get("rope_parameters") else "rope_scaling"
    found = entries.get(key) or {}
    if not isinstance(found, dict) or any(isinstance(value, dict) for value in found.values()):
        raise ValueError(f"'{key}' must be one table of settings for all layers, not {found!r}")
    share = found.get("partial_rotary_factor", entries.get("partial_rotary_factor", 1.0))
    if share != 1:
        raise ValueError(f"'partial_rotary_factor' is supported only as 1.0, not {share!r}")
    theta = found.get("rope_theta", entries.get("rope_theta", 10000.0))
    kind = found.get("rope_type", found.get("type", "default"))
    if kind == "default":
        return {"rope_theta": _number("rope_theta", theta)}
    if not isinstance(kind, str) or kind not in ROPE_KEYS:
        raise unknown("rope_type", str(kind), ["default", *ROPE_KEYS])
    settings = {ours: found[theirs] for ours, theirs in ROPE_KEYS[kind].items() if found.get(theirs) is not None}
    if kind != "linear":
        settings.setdefault("original_context", context)
    scaling = RopeScaling.from_dict({"kind": kind, "factor": _number("factor", found.get("factor")), **settings})
    if kind in ("yarn", "dynamic"):  # often switched on without a word about the context that it gives
        context = max(context, int(scaling.factor * scaling.original_context))
    return {"rope_theta": _number("rope_theta", theta), "rope_scaling": scaling, "context": context}


def _rope_parameters(config: DecoderConfig) -> dict[str, Any]:
    written: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling is None:
        return written
    written |= {"rope_type": scaling.kind, "factor": scaling.factor}
    found = {theirs: getattr(scaling, ours) for ours, theirs in ROPE_KEYS.get(scaling.kind, {}).items()}
    return written | {key: value for key, value in found.items() if value is not None}


def _windows(row: Architecture, entries: Mapping[str, Any], num_layers: int) -> tuple[int, ...]:
    """Of each layer, 0 where it has none."""
    window, is_asked = entries.get("sliding_window"), entries.get("use_sliding_window", False)
    if not isinstance(is_asked, bool):
        raise ValueError(f"'use_sliding_window' must be true or false, not {is_asked!r}")
    is_on = row.windows == "all" or (row.windows != "none" and is_asked)
    if window is None or not is_on:
        return ()
    window = _whole("sliding_window", window)
    if row.windows != "by layer":
        return (window,) * num_layers
    kinds = entries.get("layer_types")
    if kinds is None:
        first = _number("max_window_layers", entries.get("max_window_layers", 28))
        kinds = ["sliding_attention" if layer >= first else "full_attention" for layer in range(num_layers)]
    known = {"sliding_attention": window, "full_attention": 0}
    if not isinstance(kinds, list) or len(kinds) != num_layers or not known.keys() >= set(kinds):
        raise ValueError(f"'layer_types' must be {num_layers} of {' and '.join(known)}, not {kinds!r}")
    return tuple(known[kind] for kind in kinds)


def _written_windows(row: Architecture, config: DecoderConfig) -> dict[str, Any]:
    if row.windows == "none":
        return {}
    window = max(config.windows, default=0)
    written: dict[str, Any] = {"sliding_window": window or None}
    if row.windows != "all":
        written["use_sliding_window"] = bool(window)
    if row.windows == "by layer":
        spans = config.windows or (0,) * config.num_layers
        written["layer_types"] = ["sliding_attention" if span else "full_attention" for span in spans]
        written["max_window_layers"] = 0 if window else config.num_layers
    return written


def _experts(row: Architecture, entries: Mapping[str, Any], num_layers: int) -> ExpertsConfig | None:
    """None where every layer has a feed-forward. The losses on the load are those that transformers trains with."""
    step, dense = entries.get("decoder_sparse_step", 1), entries.get("mlp_only_layers") or []
    if not isinstance(dense, list):
        raise ValueError(f"'mlp_only_layers' must be a list of layers, not {dense!r}")
    step = _whole("decoder_sparse_step", step)
    layers = tuple(layer for layer in range(num_layers) if layer not in dense and (layer + 1) % step == 0)
    missing = [key for key in row.expert_keys.values() if key not in entries]
    if missing:
        raise ValueError(f"it has no '{missing[0]}'")
    if not layers:
        return None
    settings = {name: entries[key] for name, key in row.expert_keys.items()}
    return ExpertsConfig(
        **settings,
        balance="pooled",
        balance_weight=_number("router_aux_loss_coef", entries["router_aux_loss_coef"]),
        z_loss_weight=0.0,
        layers=() if len(layers) == num_layers else layers,
    )


def _written_experts(row: Architecture, config: DecoderConfig) -> dict[str, Any]:
    experts = config.experts
    if not row.expert_keys or experts is None:
        return {}
    written = {key: getattr(experts, name) for name, key in row.expert_keys.items()}
    if "mlp_only_layers" in row.absent:
        layers = experts.layers or range(config.num_layers)
        written["mlp_only_layers"] = [layer for layer in range(config.num_layers) if layer not in layers]
    weight = experts.balance_weight if experts.balance in ("loss", "pooled") else 0.0
    return {**written, "router_aux_loss_coef": weight}
