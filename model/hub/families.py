"""Every family by its `model_type`, and what is done with one: configurations both ways, names of tensors.

To add a family, write its module (fields of its config.json, a table of its tensors) and enter it here.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import fields, is_dataclass, replace
from typing import Any

from model.checks import check
from model.config import CapacityExperts, DroplessExperts, Initialization, Layer, Model, RotaryPositions
from model.hub.bert import BERT
from model.hub.deberta import DEBERTA, DEBERTA2
from model.hub.family import Config, Family, HubError, layers, set_path, shortest
from model.hub.gemma import GEMMA, GEMMA2, GEMMA3
from model.hub.gpt2 import GPT2
from model.hub.gpt_neo import GPT_NEO
from model.hub.layout import Tensor
from model.hub.llama import LLAMA, MISTRAL, QWEN2, QWEN3
from model.hub.marian import MARIAN
from model.hub.mixtral import MIXTRAL
from model.hub.t5 import T5

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        BERT,
        GPT2,
        GPT_NEO,
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        GEMMA,
        GEMMA2,
        GEMMA3,
        T5,
        DEBERTA,
        DEBERTA2,
        MARIAN,
        MIXTRAL,
    )
} | {"mt5": T5}
SUFFIXES = {"kernel": ".weight", "scale": ".weight", "bias": ".bias"}
LARGEST_SIZE = 2**31 - 1
DIFFERS = ", there it is "
ENCODER = "encoder_"  # before the names of an encoder's parameters beside a decoder
HEADS = (
    "head",
    "head_bias",
    "head_transform",
    "heads",
    "mask_decoder",
)  # first part of the paths of parameters of heads


def family_of(config: Config) -> Family:
    """The family of a config.json; HubError where there is none, or its weights are quantized."""
    model_type = config.get("model_type")
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        raise HubError(f"config.json has model_type {model_type!r}, must be one of {', '.join(FAMILIES)}")
    if config.get("quantization_config"):
        raise HubError("config.json has a quantization_config: its tensors are packed, which is not implemented")
    return FAMILIES[model_type]


def from_config(config: Config, names: Collection[str] = ()) -> Model:
    """The Model of a parsed config.json. `names` are those of the tensors beside it, which tell BERT's heads.

    HubError where the config.json lacks a size, or says what this code does not implement.
    """
    family = family_of(config)
    model = family.base
    try:
        for field in family.fields:
            value = field.read(config)
            model = set_path(model, field.path, value) if field.path else model
        for path, value in family.heads(config, canonical_names(family, names)).items():
            model = set_path(model, path, value)
        problems = check(model) + [(path, f"is {size}, beyond any size") for path, size in absurd(model)]
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        if isinstance(error, HubError):
            raise
        reason = f"{type(error).__name__}: {error}"
        raise HubError(f"config.json cannot be read as {family.model_type}'s: {reason}") from error
    if problems:
        raise HubError("config.json describes no model: " + "; ".join(f"{key} {clash}" for key, clash in problems))
    return model


def absurd(part: Any, path: str = "") -> list[tuple[str, int]]:
    """The numbers of a configuration that no array's size can be, by their paths."""
    if is_dataclass(part):
        held = [(f"{path}.{field.name}".lstrip("."), getattr(part, field.name)) for field in fields(part)]
        return [found for name, value in held for found in absurd(value, name)]
    return [(path, part)] if isinstance(part, int) and part > LARGEST_SIZE else []


def context(config: Config) -> int | None:
    """The longest context in tokens that a config.json names."""
    return config.get(family_of(config).length_key)


def to_config(model: Model, family: Family, length: int, paths: Iterable[str] = ()) -> dict:
    """The config.json of a Model in `family`, `length` tokens being its longest context.

    `paths` are those of its parameters, which tell BERT's heads. HubError naming every field that the family
    cannot express: reading the result back must give the Model.
    """
    config: dict[str, Any] = {"model_type": family.model_type, "architectures": [family.architecture(model)]}
    config[family.length_key] = length
    try:
        for field in family.fields:
            config |= field.write(model)
        names = {tensor_of(family, path).name for path in paths}
        clashes = differences(canonical(model), canonical(from_config(config, names)))
    except HubError as error:
        raise HubError(f"{family.model_type} cannot express this model: {error}") from error
    if clashes:
        raise HubError(f"{family.model_type} cannot express this model: {'; '.join(clashes)}")
    return config


def expressing(model: Model, length: int, paths: Collection[str] = ()) -> tuple[Family, dict]:
    """The first family that expresses the Model, and its config.json; HubError with what the nearest one lacks."""
    if isinstance(model.experts, CapacityExperts):
        raise HubError(
            f"model.experts.name is {model.experts.name}: experts of limited capacity, GShard's and Switch's, are in "
            f"no family of {', '.join(FAMILIES)}"
        )
    refusals = []
    for family in FAMILIES.values():
        try:
            return family, to_config(model, family, length, paths)
        except HubError as error:
            refusals.append(str(error))
    nearest = min(refusals, key=lambda text: text.count(DIFFERS) or len(text))
    raise HubError(f"no family of {', '.join(FAMILIES)} can express this model; the nearest: {nearest}")


def canonical(model: Model) -> Model:
    """What a Model computes without dropout: derived sizes spelt out, what only training reads at its defaults."""
    attention = model.attention
    spelt = replace(
        attention,
        num_kv_heads=model.num_kv_heads,
        head_dim=model.head_dim,
        scale=model.head_dim**-0.5 if attention.scale is None else attention.scale,
        dropout=0.0,
        kernel="auto",
    )
    pattern = shortest(layers(model))
    if not isinstance(model.positions, RotaryPositions):
        pattern = shortest([Layer(layer.window) for layer in layers(model)])
    training = {"init": Initialization(), "dropout": 0.0, "output_dropout": 0.0, "dtype": "float32", "remat": "none"}
    training["feed_forward"] = replace(model.feed_forward, dropout=0.0)
    if isinstance(model.experts, DroplessExperts):
        training["experts"] = replace(model.experts, groups=1, z_coefficient=0.0)
    return replace(model, attention=spelt, pattern=pattern, unroll=1, **training)


def differences(ours: Any, theirs: Any, path: str = "model") -> list[str]:
    """Each field in which two configurations differ, in words."""
    if is_dataclass(ours) and type(ours) is type(theirs):
        names = [field.name for field in fields(ours)]
        pairs = [(f"{path}.{name}", getattr(ours, name), getattr(theirs, name)) for name in names]
        return [clash for name, a, b in pairs for clash in differences(a, b, name)]
    return [] if ours == theirs else [f"{path} is {ours!r}{DIFFERS}{theirs!r}"]


def tensor_of(family: Family, path: str) -> Tensor:
    """The tensor of a parameter of ours, its name without prefix and with `{}` for the layer's index."""
    key = re.sub(r"^(encoder)_(stack|remainder)/\d+/", r"\1/", re.sub(r"^(stack|remainder)/\d+/", "", path))
    if key in family.tensors:
        return family.tensors[key]
    module, _, last = key.rpartition("/")
    if module not in family.tensors or last not in SUFFIXES:
        raise HubError(f"it has no tensor for the parameter {path}")
    found = family.tensors[module]
    return found._replace(name=found.name + SUFFIXES[last])


def places(family: Family, model: Model, path: str) -> list[Tensor]:
    """The tensors of a parameter: one for each entry of its leading axes, as `layout.leading` has them."""
    tensor, (top, *rest) = tensor_of(family, path), path.split("/")
    if top.removeprefix(ENCODER) not in ("stack", "remainder"):
        return [tensor]
    period, entry = len(model.pattern), int(rest[0])
    whole = (model.encoder_layers if top.startswith(ENCODER) else model.num_layers) // period * period
    indices = range(entry, whole, period) if top.removeprefix(ENCODER) == "stack" else [whole + entry]
    experts = range(model.experts.num_experts if tensor.layout == "per_expert" else 1)
    return [tensor._replace(name=tensor.name.format(index, expert)) for index in indices for expert in experts]


def as_stored(family: Family, names: Collection[str]) -> Family:
    """The family with the tensors that files of these canonical names have: of each expert, or of all in one."""
    other = family.stacked or {}
    stacked = any(tensor.name.format(0) in names for tensor in other.values())
    return replace(family, tensors={**family.tensors, **other}) if stacked else family


def canonical_names(family: Family, names: Iterable[str]) -> dict[str, str]:
    """`{name without prefix, as newer files spell it: name given}`, buffers left out; HubError where two are one."""
    found: dict[str, str] = {}
    for given in names:
        name = given.removeprefix(family.prefix)
        for pattern, replacement in family.renamed:
            name = re.sub(pattern, replacement, name)
        if re.search(family.ignored, name):
            continue
        if name in found:
            raise HubError(f"the tensors {found[name]} and {given} are one and the same to {family.model_type}")
        found[name] = given
    return found


def exported_name(family: Family, model: Model, name: str) -> str:
    """The name that the family's own files give a tensor."""
    alone = family.architecture(model) == family.bare
    own = family.exported(model, name)
    return own if alone or name.startswith(family.outside) else family.prefix + own


def is_head(path: str) -> bool:
    """Whether a parameter belongs to a head, which a checkpoint may lack, and not to what every head reads."""
    return path.split("/")[0] in HEADS


def of_heads(family: Family, name: str) -> bool:
    """Whether a tensor (by its canonical name) belongs to one of the family's heads."""
    heads = [tensor.name for key, tensor in family.tensors.items() if is_head(key)]
    return any(name == head or name.startswith(f"{head}.") for head in heads)
