"""DeBERTa (He et al. 2020) and its second and third versions, with any of their heads.

The key `mask_decoder_passes` of config.json is ours: with it a file's absolute positions are those of the enhanced mask
decoder, without it, or without a language head, they are left unread, as `transformers` leaves them, which has no such
decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

from model.checks import MOST_PASSES
from model.config import Attention, DisentangledPositions, FeedForward, Heads, Initialization, Model, Norm
from model.hub import bert
from model.hub.family import (
    ACTIVATIONS,
    Config,
    Family,
    Field,
    HubError,
    activation,
    depth,
    deviations,
    fixed,
    get_path,
    same,
    value_of,
)
from model.hub.layout import Tensor, convolution, interleaved, linear, plain

SELF = "encoder.layer.{}.attention.self."
ABSOLUTE = "embeddings.position_embeddings.weight"
OTHERS = ("embedding/position", "attention/query", "attention/key", "attention/value", "heads/next_sentence")
TENSORS = {
    **{key: tensor for key, tensor in bert.TENSORS.items() if key not in OTHERS},
    "relations/table": plain("encoder.rel_embeddings.weight"),
    "mask_decoder/table": plain(ABSOLUTE),
}
FIRST = {
    **{
        f"attention/{name}/kernel": interleaved(f"{SELF}in_proj.weight", part, 3)
        for part, name in enumerate(("query", "key", "value"))
    },
    "attention/query/bias": plain(f"{SELF}q_bias"),
    "attention/value/bias": plain(f"{SELF}v_bias"),
    "attention/position_key": linear(f"{SELF}pos_proj"),
    "attention/position_query": linear(f"{SELF}pos_q_proj"),
}
LATER = {
    **{f"attention/{name}": linear(f"{SELF}{name}_proj") for name in ("query", "key", "value")},
    "relations/norm": plain("encoder.LayerNorm"),
    "convolution/kernel": convolution("encoder.conv.conv.weight"),
    "convolution/bias": plain("encoder.conv.conv.bias"),
    "convolution/norm": plain("encoder.conv.LayerNorm"),
    "heads/replaced/norm": plain("mask_predictions.LayerNorm"),
    "heads/replaced/dense": linear("mask_predictions.dense"),
    "heads/replaced/output": linear("mask_predictions.classifier"),
}
BASE = Model(
    attention=Attention(causal=False, qkv_bias=True, output_bias=True),
    feed_forward=FeedForward(activation="gelu", gated=False, bias=True),
    norm=Norm("layernorm", placement="post", bias=True),
    positions=DisentangledPositions(),
    embedding_norm=True,
    language_head=False,
    heads=Heads(pooler_activation="gelu"),
    init=Initialization(position_std=0.02),
)
OUTER_ACTIVATIONS = {**ACTIVATIONS, "tanh": "tanh"}


def needed(key: str, wanted: Any, absent: Any) -> Field:
    """A key that must say `wanted`; without it `transformers` takes `absent`."""

    def read(config):
        found = value_of(config, key, absent)
        if found != wanted:
            raise HubError(f"config.json has {key} {found!r}; only {wanted!r} is implemented")

    return Field("", read, lambda model: {key: wanted})


def outer_activation(key: str, path: str, default: str) -> Field:
    """An activation outside of the feed-forward networks."""
    return activation(key, "gelu_new", default, path, OUTER_ACTIVATIONS)


def terms(config: Config) -> set[str]:
    """The terms beside that of content and content: a list, or their names between bars."""
    found = config.get("pos_att_type") or ()
    found = {term.strip() for term in (found.lower().split("|") if isinstance(found, str) else found)} - {""}
    if found - {"c2p", "p2c"}:
        raise HubError(f"config.json has pos_att_type {config['pos_att_type']!r}; only c2p and p2c are implemented")
    return found


def term_names(model: Model) -> dict:
    names = {"p2c": "position_to_content", "c2p": "content_to_position"}
    return {"pos_att_type": [name for name, path in names.items() if get_path(model, f"positions.{path}")]}


def span(config: Config) -> int:
    """The distance from which on all are the last: by default the longest context."""
    found = config.get("max_relative_positions", -1)
    return found if found > 0 else value_of(config, "max_position_embeddings", 512)


def of_hidden_size(key: str) -> Field:
    """A width that may only be that of the hidden states."""

    def read(config):
        if config.get(key) not in (None, config["hidden_size"]):
            raise HubError(f"config.json has {key} {config[key]!r}; only hidden_size is implemented")

    return Field("", read, lambda model: {})


def head_size(config: Config) -> None:
    found, parts = config.get("attention_head_size"), (config["hidden_size"], config["num_attention_heads"])
    if found is not None and found * parts[1] != parts[0]:
        raise HubError(f"config.json has attention_head_size {found!r}; only hidden_size / heads is implemented")


def passes(config: Config) -> int:
    """How often the last layer is the decoder's; its table is then needed as every tensor is."""
    found = config.get("mask_decoder_passes", 0)
    if not isinstance(found, int) or isinstance(found, bool) or not 0 <= found <= MOST_PASSES:
        wanted = f"must be a whole number from 0 to {MOST_PASSES}"
        raise HubError(f"config.json has mask_decoder_passes {found!r}, {wanted}")
    return found


def absolute_length(config: Config) -> int:
    """Rows of the decoder's table: the longest context, where there is a decoder."""
    default = DisentangledPositions().absolute_length
    return value_of(config, "max_position_embeddings", 512) if passes(config) else default


def decoder_keys(model: Model) -> dict:
    """The longest context is the decoder's, where there is one."""
    count = model.mask_decoder_passes
    return {"mask_decoder_passes": count, "max_position_embeddings": model.max_length} if count else {}


def heads(prefix: str) -> Callable[[Config, Collection[str]], dict]:
    """The heads that a file's tensors, or its architecture, have; a classifier's kind is the architecture's."""

    def found(config: Config, names: Collection[str]) -> dict:
        architecture = next(iter(config.get("architectures") or []), "")

        def has(start: str, kind: str) -> bool:
            return any(name.startswith(start) for name in names) or architecture == f"{prefix}For{kind}"

        pooler, language = has("pooler.", "SequenceClassification"), has("cls.predictions.", "MaskedLM")
        token = architecture == f"{prefix}ForTokenClassification"
        classifies = token or has("classifier.", "SequenceClassification")
        classes = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
        return {
            "language_head": language,
            "head_transform": language,
            "head_bias": language,
            "positions.mask_decoder_passes": passes(config) if language else 0,
            "heads.pooler": pooler,
            "heads.replaced": any(name.startswith("mask_predictions.") for name in names),
            "heads.spans": has("qa_outputs.", "QuestionAnswering"),
            "heads.token_classes": classes if classifies and (token or not pooler) else 0,
            "heads.sequence_classes": classes if classifies and pooler and not token else 0,
        }

    return found


def architecture(prefix: str) -> Callable[[Model], str]:
    """The class whose heads are the model's."""

    def named(model: Model) -> str:
        kinds = (
            (model.language_head, "ForMaskedLM"),
            (model.heads.spans, "ForQuestionAnswering"),
            (model.heads.token_classes, "ForTokenClassification"),
            (model.heads.sequence_classes, "ForSequenceClassification"),
        )
        return prefix + next((kind for present, kind in kinds if present), "Model")

    return named


FIELDS = (
    same("vocab_size", "vocab_size"),
    depth("num_hidden_layers"),
    same("hidden_size", "embed_dim"),
    same("intermediate_size", "feed_forward.hidden_dim"),
    same("num_attention_heads", "attention.num_heads"),
    same("type_vocab_size", "token_types", 0),
    activation("hidden_act", "gelu_new", "gelu"),
    same("layer_norm_eps", "norm.epsilon", 1e-7, float),
    same("hidden_dropout_prob", "dropout", 0.1, float),
    same("attention_probs_dropout_prob", "attention.dropout", 0.1, float),
    same("tie_word_embeddings", "tied_head", True),
    outer_activation("pooler_hidden_act", "heads.pooler_activation", "gelu"),
    needed("relative_attention", True, absent=False),
    needed("position_biased_input", False, absent=True),
    Field("positions.content_to_position", lambda config: "c2p" in terms(config), term_names),
    Field("positions.position_to_content", lambda config: "p2c" in terms(config), lambda model: {}),
    Field("positions.span", span, lambda model: {"max_relative_positions": get_path(model, "positions.span")}),
    Field("positions.absolute_length", absolute_length, decoder_keys),
    fixed("legacy", True, False),
    of_hidden_size("embedding_size"),
    of_hidden_size("pooler_hidden_size"),
    Field("", lambda config: None, bert.labels),
    *deviations(),
)


def family(model_type: str, prefix: str, fields: tuple[Field, ...], tensors: dict[str, Tensor]) -> Family:
    """What both have in common, and what is theirs; `prefix` begins the names of the classes."""
    return Family(
        model_type=model_type,
        base=BASE,
        fields=(*FIELDS, *fields),
        length_key="max_position_embeddings",
        tensors={**TENSORS, **tensors},
        prefix="deberta.",
        architecture=architecture(prefix),
        bare=f"{prefix}Model",
        outside=("cls.", "mask_predictions.", "pooler.", "qa_outputs.", "classifier."),
        ignored=r"^embeddings\.position_ids$",
        aliases={
            "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
            "cls.predictions.decoder.bias": "cls.predictions.bias",
        },
        renamed=(
            (r"(LayerNorm)\.gamma$", r"\1.weight"),
            (r"(LayerNorm)\.beta$", r"\1.bias"),
            # As the published files, and `transformers` with `legacy: false`, name them.
            (r"^lm_predictions\.lm_head\.bias$", "cls.predictions.bias"),
            (r"^lm_predictions\.lm_head\.", "cls.predictions.transform."),
        ),
        heads=heads(prefix),
    )


def buckets(config: Config) -> int | None:
    found = config.get("position_buckets", -1)
    return found if found and found > 0 else None


def norms(config: Config) -> bool:
    """Whether the table of relative positions has a norm."""
    found = {part.strip() for part in config.get("norm_rel_ebd", "none").lower().split("|")}
    if found - {"none", "layer_norm"}:
        raise HubError(f"config.json has norm_rel_ebd {config['norm_rel_ebd']!r}; only layer_norm is implemented")
    return "layer_norm" in found


DEBERTA = family(
    "deberta",
    "Deberta",
    (
        fixed("talking_head", False, None),
        fixed("share_att_key", False, None),
        fixed("position_buckets", -1, 0, None),
        fixed("norm_rel_ebd", "none", None),
        fixed("conv_kernel_size", 0, None),
    ),
    FIRST,
)
DEBERTA2 = family(
    "deberta-v2",
    "DebertaV2",
    (
        needed("share_att_key", True, absent=False),
        Field("positions.shared_projections", lambda config: True, lambda model: {}),
        Field(
            "positions.buckets", buckets, lambda model: {"position_buckets": get_path(model, "positions.buckets") or -1}
        ),
        Field(
            "positions.norm",
            norms,
            lambda model: {"norm_rel_ebd": "layer_norm" if get_path(model, "positions.norm") else "none"},
        ),
        same("conv_kernel_size", "convolution.size", 0),
        outer_activation("conv_act", "convolution.activation", "tanh"),
        fixed("conv_groups", 1),
        Field("", head_size, lambda model: {}),
    ),
    LATER,
)
