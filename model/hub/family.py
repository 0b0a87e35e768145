"""What a family of published models is: its config.json, field by field, and the names of its tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any, NamedTuple

from model.config import Layer, LinearScaling, Llama3Scaling, Model, NoScaling
from model.hub.layout import Tensor

Config = Mapping[str, Any]  # a parsed config.json
REQUIRED = object()
MOST_LAYERS = 100_000  # beyond it a config.json is damaged, and its lists would not fit into memory
ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


class HubError(ValueError):
    """A config.json that this code does not implement, or a model that a family cannot express."""


class Field(NamedTuple):
    """One thing a config.json says: `read` gives the value at `path` of a Model, `write` the keys that say it."""

    path: str  # dotted; empty: nothing of the Model, only checked and written
    read: Callable[[Config], Any]
    write: Callable[[Model], dict]


@dataclass(frozen=True)
class Family:
    """One `model_type`. `tensors` maps a module, or a parameter without one, to its tensor, `prefix` left out.

    A module's kernel and scale are its tensor's `.weight`, its bias `.bias`.
    """

    model_type: str
    base: Model  # what no key of a config.json says
    fields: tuple[Field, ...]
    length_key: str  # the key that holds the longest context
    tensors: Mapping[str, Tensor]
    prefix: str  # before the names of the base model, in files that hold a head too
    architecture: Callable[[Model], str]  # the class of `transformers` that reads an export
    bare: str = ""  # the class without heads, in whose files no name has the prefix
    outside: tuple[str, ...] = ("lm_head.",)  # names that never carry the prefix
    ignored: str = r"$^"  # a regular expression: buffers, which are no parameters
    aliases: Mapping[str, str] | None = None  # a name that files may hold as well: the tensor it equals
    renamed: tuple[tuple[str, str], ...] = ()  # (regular expression, replacement): names of older files
    stacked: Mapping[str, Tensor] | None = None  # by a parameter's path: in files that stack experts in one tensor
    logit_bias: str = ""  # the tensor [1, vocabulary] that is added to the logits
    exported: Callable[[Model, str], str] = lambda model, name: name  # what a model's own files call a tensor
    heads: Callable[[Config, Collection[str]], dict] = lambda config, names: {}  # {path: value} from tensors' names


def value_of(config: Config, key: str, default: Any = REQUIRED) -> Any:
    """`config[key]`, or the default; HubError where neither is there."""
    found = config.get(key, default)
    if found is REQUIRED:
        raise HubError(f"config.json has no {key}, which its model_type needs")
    return found


def layer_count(config: Config, key: str) -> int:
    """The number of layers at `key`; HubError where it is none."""
    found = value_of(config, key)
    if not isinstance(found, int) or not 1 <= found <= MOST_LAYERS:
        raise HubError(f"config.json has {key} {found!r}, must be a whole number from 1 to {MOST_LAYERS}")
    return found


def get_path(model: Any, path: str) -> Any:
    """The field at a dotted path; HubError where the Model's choices do not have it."""
    try:
        return reduce(getattr, path.split("."), model)
    except AttributeError:
        raise HubError(f"the model has no {path}") from None


def set_path(model: Any, path: str, value: Any) -> Any:
    """A copy with the field at a dotted path replaced."""
    name, _, rest = path.partition(".")
    return replace(model, **{name: set_path(getattr(model, name), rest, value) if rest else value})


def same(key: str, path: str, default: Any = REQUIRED, kind: Callable = lambda value: value) -> Field:
    """A key that holds what the Model does; `kind` makes it of the field's type."""

    def read(config):
        found = value_of(config, key, default)
        return None if found is None else kind(found)

    return Field(path, read, lambda model: {key: get_path(model, path)})


def depth(key: str) -> Field:
    """The number of layers."""
    return Field("num_layers", lambda config: layer_count(config, key), lambda model: {key: model.num_layers})


def derived(key: str, path: str, resolve: Callable[[Config], Any], property_path: str) -> Field:
    """A key that may be null or absent, and then is `resolve(config)`; written from a property of the Model."""

    def read(config):
        found = config.get(key)
        return resolve(config) if found is None else found

    return Field(path, read, lambda model: {key: get_path(model, property_path)})


def fixed(key: str, *values: Any) -> Field:
    """A key whose other values this code does not implement; the first one is written."""

    def read(config):
        if key in config and config[key] not in values:
            wanted = " or ".join(repr(value) for value in values)
            raise HubError(f"config.json has {key} {config[key]!r}; only {wanted} is implemented")

    return Field("", read, lambda model: {key: values[0]})


def activation(
    key: str, tanh: str, default: str, path: str = "feed_forward.activation", known: Mapping[str, str] = ACTIVATIONS
) -> Field:
    """An activation, the feed-forward's or another; `tanh` is how the family spells the tanh form of GELU."""

    def read(config):
        found = value_of(config, key, default)
        if found not in known:
            raise HubError(f"config.json has {key} {found!r}, must be one of {', '.join(known)}")
        return known[found]

    def write(model):
        ours = get_path(model, path)
        return {key: tanh if ours == "gelu_tanh" else ours}

    return Field(path, read, write)


def deviations(key: str = "initializer_range") -> tuple[Field, Field]:
    """Standard deviations of initial values: they matter to heads that a checkpoint lacks."""
    paths = ("init.kernel_std", "init.embedding_std")
    kernel, embedding = (same(key, path, 0.02, float) for path in paths)
    return kernel._replace(write=lambda model: {}), embedding


def layers(model: Model) -> list[Layer]:
    """The entry of the pattern of every layer."""
    return [model.pattern[index % len(model.pattern)] for index in range(model.num_layers)]


def shortest(found: list[Layer]) -> tuple[Layer, ...]:
    """The shortest pattern that repeats to these layers."""
    periods = range(1, len(found) + 1)
    period = next(p for p in periods if all(layer == found[i % p] for i, layer in enumerate(found)))
    return tuple(found[:period])


def rotary(config: Config, kind: str, default_base: float, base_key: str = "rope_theta") -> tuple[float, Any]:
    """(base, scaling) of the rotary positions, of layers of one `kind` where settings differ.

    Reads `rope_theta` beside `rope_scaling`, and `rope_parameters`, which newer files hold in their place.
    """
    both = config.get("rope_parameters") or {}
    own = both.get(kind) if isinstance(both.get(kind), Mapping) else both
    old = config.get("rope_scaling") if base_key == "rope_theta" else None
    settings = own if own.get("rope_type") else old or {}
    base = float(own.get("rope_theta", config.get(base_key, default_base)))
    name = settings.get("rope_type", settings.get("type", "default"))
    if own.get("partial_rotary_factor", config.get("partial_rotary_factor", 1.0)) != 1.0:
        raise HubError("config.json has a partial_rotary_factor, which is not implemented")
    if name == "default":
        return base, NoScaling()
    if name == "linear":
        return base, LinearScaling(factor=float(settings["factor"]))
    if name == "llama3":
        return base, Llama3Scaling(
            factor=float(settings["factor"]),
            low_frequency_factor=float(settings["low_freq_factor"]),
            high_frequency_factor=float(settings["high_freq_factor"]),
            original_length=int(settings["original_max_position_embeddings"]),
        )
    raise HubError(f"config.json scales rotary positions by {name!r}; only linear and llama3 are implemented")


def rope_scaling(scaling: Any) -> dict | None:
    """The `rope_scaling` of a config.json."""
    if isinstance(scaling, LinearScaling):
        return {"rope_type": "linear", "type": "linear", "factor": scaling.factor}
    if isinstance(scaling, Llama3Scaling):
        return {
            "rope_type": "llama3",
            "factor": scaling.factor,
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_length,
        }
    return None


def layer_types(config: Config, otherwise: Callable[[int], bool]) -> list[bool]:
    """Whether each layer has a window: as `layer_types` says, or `otherwise(index)`."""
    count, kinds = layer_count(config, "num_hidden_layers"), config.get("layer_types")
    if kinds is None:
        return [otherwise(index) for index in range(count)]
    if len(kinds) != count or set(kinds) - {"sliding_attention", "full_attention"}:
        raise HubError(f"config.json has layer_types {kinds}, must be {count} of sliding_attention, full_attention")
    return [kind == "sliding_attention" for kind in kinds]


def window_keys(model: Model) -> dict:
    """`sliding_window` and `layer_types` of a Model's layers."""
    windows = [layer.window for layer in layers(model)]
    return {
        "sliding_window": next(filter(None, windows), None),
        "layer_types": ["full_attention" if window is None else "sliding_attention" for window in windows],
    }
