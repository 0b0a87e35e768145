"""What no single field's type can refuse of an architecture. Imports no JAX."""

from __future__ import annotations

from model.config import (
    ACTIVATIONS,
    ATTENTION_KERNELS,
    DTYPES,
    EXPERT_RULES,
    NORMS,
    OUTER_ACTIVATIONS,
    PLACEMENTS,
    REMAT,
    SECOND_POLICIES,
    SINUSOIDS,
    CapacityExperts,
    DisentangledPositions,
    Model,
    NoExperts,
    NoScaling,
    RelativePositions,
    RotaryPositions,
    SinusoidalPositions,
)

MOST_PASSES = 16  # of the mask decoder, each of which is traced by itself
MOST_BUCKETS = 4096
POSITION_COUNTS = ("length", "buckets", "max_distance", "span", "absolute_length")


def check(config: Model) -> list[tuple[str, str]]:
    """What is wrong with an architecture, as (key below `model`, clash) pairs; empty when sound."""
    experts, positions = config.experts, config.positions
    chosen = []
    if isinstance(experts, CapacityExperts):
        chosen += [("experts.rule", experts.rule, EXPERT_RULES)]
        chosen += [("experts.second_policy", experts.second_policy, SECOND_POLICIES)]
    if isinstance(positions, SinusoidalPositions):
        chosen += [("positions.layout", positions.layout, SINUSOIDS)]
    problems = [
        (key, f"is {value!r}, must be one of {', '.join(choices)}")
        for key, value, choices in (
            *chosen,
            ("attention.kernel", config.attention.kernel, ATTENTION_KERNELS),
            ("feed_forward.activation", config.feed_forward.activation, ACTIVATIONS),
            ("convolution.activation", config.convolution.activation, OUTER_ACTIVATIONS),
            ("heads.pooler_activation", config.heads.pooler_activation, OUTER_ACTIVATIONS),
            ("norm.name", config.norm.name, NORMS),
            ("norm.placement", config.norm.placement, PLACEMENTS),
            ("dtype", config.dtype, DTYPES),
            ("remat", config.remat, REMAT),
        )
        if value not in choices
    ]
    if not config.pattern:
        problems.append(("pattern", "is empty, must hold at least one layer"))
    problems += _check_ranges(config) + _check_experts(config)
    together = (_check_shapes, _check_stacks, _check_relative, _check_disentangled, _check_between)
    return problems or [problem for found in together for problem in found(config)]


def _of_positions(config: Model, *keys: str) -> dict[str, int | None]:
    """What `config.positions` has under `keys`, by key; None where its kind has it not."""
    return {f"positions.{key}": getattr(config.positions, key, None) for key in keys}


def _counts(config: Model) -> dict[str, int | None]:
    """What must be at least 1, by key; None where it does not apply."""
    attention = config.attention
    return {
        "vocab_size": config.vocab_size,
        "num_layers": config.num_layers,
        "embed_dim": config.embed_dim,
        "attention.num_heads": attention.num_heads,
        "attention.num_kv_heads": attention.num_kv_heads,
        "attention.head_dim": attention.head_dim,
        "feed_forward.hidden_dim": config.feed_forward.hidden_dim,
        **_of_positions(config, *POSITION_COUNTS),
        "unroll": config.unroll,
        **{f"pattern.{index}.window": layer.window for index, layer in enumerate(config.pattern)},
    }


def _sizes(config: Model) -> dict[str, int | None]:
    """What must be at least 0."""
    return {
        "encoder_layers": config.encoder_layers,
        "generator_layers": config.generator_layers,
        "convolution.size": config.convolution.size,
        **_of_positions(config, "offset"),
        "token_types": config.token_types,
        "heads.sequence_classes": config.heads.sequence_classes,
        "heads.token_classes": config.heads.token_classes,
    }


def _scales(config: Model) -> dict[str, float | None]:
    """What must be above 0."""
    attention, found = config.attention, {}
    for index, layer in enumerate(config.pattern):
        found[f"pattern.{index}.rotary_base"] = layer.rotary_base
        if not isinstance(layer.rotary_scaling, NoScaling):
            found[f"pattern.{index}.rotary_scaling.factor"] = layer.rotary_scaling.factor
    return {
        **found,
        "attention.scale": attention.scale,
        "attention.soft_cap": attention.soft_cap,
        "norm.epsilon": config.norm.epsilon,
        "embedding_scale": config.embedding_scale,
        "output_scale": config.output_scale,
        "logit_soft_cap": config.logit_soft_cap,
        "init.truncation": config.init.truncation,
    }


def _check_ranges(config: Model) -> list[tuple[str, str]]:
    rates = {
        "dropout": config.dropout,
        "output_dropout": config.output_dropout,
        "attention.dropout": config.attention.dropout,
        "feed_forward.dropout": config.feed_forward.dropout,
    }
    passes, buckets = _of_positions(config, "mask_decoder_passes"), _of_positions(config, "buckets")
    distances = _of_positions(config, "max_distance", "span")
    ranges = (
        (passes, lambda value: 0 <= value <= MOST_PASSES, f"from 0 to {MOST_PASSES}"),
        (buckets, lambda value: value <= MOST_BUCKETS, f"at most {MOST_BUCKETS}"),
        (distances, lambda value: value < 2**31, f"at most {2**31 - 1}"),
        (_sizes(config), lambda value: value >= 0, "at least 0"),
        (_counts(config), lambda value: value >= 1, "at least 1"),
        (_scales(config), lambda value: value > 0, "above 0"),
        (rates, lambda value: 0 <= value < 1, "at least 0 and below 1"),
        ({f"init.{key}": value for key, value in vars(config.init).items()}, lambda value: value >= 0, "at least 0"),
    )
    return [
        (key, f"is {value}, must be {wanted}")
        for values, holds, wanted in ranges
        for key, value in values.items()
        if value is not None and not holds(value)
    ]


def _check_experts(config: Model) -> list[tuple[str, str]]:
    """The numbers of a mixture of experts, and whether the layers that want one have one."""
    experts, wanted = config.experts, any(layer.experts for layer in config.pattern)
    if isinstance(experts, NoExperts):
        return [("experts.name", "is none, but a layer of model.pattern has experts: true")] if wanted else []
    kept, all_room = lambda value: value >= 0, experts.num_experts  # with which an expert has room for all tokens
    factor = (lambda value: 0 < value <= all_room, f"above 0 and at most num_experts, {all_room}: all tokens")
    most = min(2, experts.num_experts) if isinstance(experts, CapacityExperts) else experts.num_experts
    ranges = {
        "num_experts": (lambda value: value >= 2, "at least 2"),
        "top_k": (lambda value: 1 <= value <= most, f"from 1 to {most}"),
        "groups": (lambda value: value >= 1, "at least 1"),
        "capacity_factor": factor,
        "eval_capacity_factor": factor,
        "min_capacity": (lambda value: value >= 1, "at least 1"),
        "balance_coefficient": (kept, "at least 0"),
        "z_coefficient": (kept, "at least 0"),
        "jitter": (lambda value: 0 <= value < 1, "at least 0 and below 1"),
    }
    values = {key: value for key, value in vars(experts).items() if key in ranges and value is not None}
    problems = [
        (f"experts.{key}", f"is {value}, must be {ranges[key][1]}")
        for key, value in values.items()
        if not ranges[key][0](value)
    ]
    if not wanted:
        problems.append(("pattern", f"has no layer with experts: true, but model.experts is {experts.name}"))
    return problems


def _check_relative(config: Model) -> list[tuple[str, str]]:
    """Whether the buckets of relative positions are whole, and the farthest distance beyond those of one each."""
    positions = config.positions
    if not isinstance(positions, RelativePositions):
        return []
    sides = 2 if config.encoder_layers or not config.attention.causal else 1  # an encoder has half of them for each
    if positions.buckets % sides or positions.buckets < 2 * sides:
        multiple = "an even number of at least 4" if sides == 2 else "at least 2"
        return [("positions.buckets", f"is {positions.buckets}, must be {multiple}")]
    near = (positions.buckets if config.attention.causal else positions.buckets // 2) // 2
    if positions.max_distance <= near:
        clash = f"is {positions.max_distance}, must be above {near}: so many distances have a bucket of their own"
        return [("positions.max_distance", clash)]
    return []


def _check_disentangled(config: Model) -> list[tuple[str, str]]:
    """Whether disentangled attention has a term of positions, and buckets that are some."""
    positions = config.positions
    if not isinstance(positions, DisentangledPositions):
        return []
    attention, kv_heads = config.attention, config.num_kv_heads
    checks = [
        (
            attention.causal or config.encoder_layers > 0,
            "positions.name",
            "is disentangled, which is an encoder's alone; set attention.causal to false and encoder_layers to 0",
        ),
        (
            kv_heads != attention.num_heads,
            "attention.num_kv_heads",
            f"is {kv_heads}, but positions.name is disentangled, which has one of each for every head; set it to none",
        ),
        (attention.qk_norm, "attention.qk_norm", "is true, which disentangled positions do not have"),
        (
            not (positions.content_to_position or positions.position_to_content),
            "positions.content_to_position",
            "is false, and position_to_content as well: set one of them to true, or positions.name to none",
        ),
    ]
    if positions.buckets is not None:
        even = positions.buckets % 2 == 0 and positions.buckets >= 4
        near = positions.buckets // 2 + 1
        clash = f"is {positions.span}, must be above {near}: half of the buckets hold one distance each"
        checks += [
            (not even, "positions.buckets", f"is {positions.buckets}, must be an even number of at least 4"),
            (even and positions.span <= near, "positions.span", clash),
        ]
    return [(key, clash) for bad, key, clash in checks if bad]


def _check_between(config: Model) -> list[tuple[str, str]]:
    """What DeBERTa's convolution and mask decoder, which stand between layers, cannot be joined with."""
    attention = config.attention
    passes, convolved = config.mask_decoder_passes, config.convolution.size > 0
    decoded = config.generator_layers or config.num_layers  # layers of the model that predicts masked tokens
    checks = (
        (
            convolved and config.convolution.size % 2 == 0,
            "convolution.size",
            f"is {config.convolution.size}, must be odd, as many tokens being read behind as before",
        ),
        (
            convolved and (attention.causal or config.encoder_layers > 0),
            "convolution.size",
            f"is {config.convolution.size}, but a convolution reads later tokens: set attention.causal to false and "
            "encoder_layers to 0, or convolution.size to 0",
        ),
        (
            (convolved or passes > 0) and len(config.pattern) > 1,
            "pattern",
            f"has {len(config.pattern)} entries, must have one where there is a convolution or a mask decoder",
        ),
        (
            convolved and passes > 0 and decoded < 2,
            "generator_layers" if config.generator_layers else "num_layers",
            f"is {decoded}, must be at least 2: one before the convolution, and one for the mask decoder",
        ),
        (
            passes > 0 and config.norm.placement != "post",
            "norm.placement",
            f"is {config.norm.placement}, must be post where positions.mask_decoder_passes is above 0",
        ),
        (
            passes > 0 and any(layer.experts for layer in config.pattern),
            "pattern",
            "has a layer with experts: true, but positions.mask_decoder_passes is above 0: set one of them off",
        ),
        (
            passes > 0 and config.generator_layers == 0 and (not config.language_head or _heads(config)),
            "positions.mask_decoder_passes",
            f"is {passes}, but the mask decoder serves language_head alone, and no other head; set it to 0",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]


def _heads(config: Model) -> list[str]:
    """The heads beside that of language, by key."""
    parts = ("pooler", "next_sentence", "spans", "sequence_classes", "token_classes", "replaced")
    return [f"heads.{part}" for part in parts if getattr(config.heads, part)]


def _check_stacks(config: Model) -> list[tuple[str, str]]:
    """Whether a decoder stands beside an encoder, and an encoder beside the generator of what it finds."""
    attention, heads = config.attention, _heads(config)
    untrained = [key for key in heads if key != "heads.replaced"]
    checks = (
        (
            config.encoder_layers > 0 and bool(heads),
            next(iter(heads), ""),
            "is set, but a model with encoder_layers above 0 has no head but language_head; leave it out",
        ),
        (
            config.generator_layers > 0 and bool(untrained),
            next(iter(untrained), ""),
            "is set, but of a model with generator_layers above 0 only heads.replaced and language_head are trained; "
            "leave it out, and add it to the run that goes on from these weights",
        ),
        (
            config.encoder_layers > 0 and not attention.causal,
            "attention.causal",
            "is false, but encoder_layers is above 0: the decoder beside an encoder is causal; set it to true",
        ),
        (
            config.encoder_layers > 0 and config.token_types > 0,
            "token_types",
            f"is {config.token_types}, but a model with encoder_layers above 0 reads no token types; set it to 0",
        ),
        (
            config.generator_layers > 0 and (attention.causal or not config.heads.replaced),
            "generator_layers",
            f"is {config.generator_layers}, but the model is no encoder that finds replaced tokens: set "
            "attention.causal to false and heads.replaced to true",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]


def _check_shapes(config: Model) -> list[tuple[str, str]]:
    """Clashes between fields, each of which is sound by itself."""
    attention, heads, kv_heads = config.attention, config.attention.num_heads, config.num_kv_heads
    checks = (
        (
            attention.head_dim is None and config.embed_dim % heads != 0,
            "attention.num_heads",
            f"is {heads}, which does not divide embed_dim {config.embed_dim}; choose a divisor or set "
            "attention.head_dim",
        ),
        (
            heads % kv_heads != 0,
            "attention.num_kv_heads",
            f"is {kv_heads}, which does not divide num_heads {heads}",
        ),
        (
            isinstance(config.positions, RotaryPositions) and config.head_dim % 2 != 0,
            "attention.head_dim",
            f"is {config.head_dim}; rotary positions turn pairs, so it must be even",
        ),
        (
            isinstance(config.positions, SinusoidalPositions) and config.embed_dim % 2 != 0,
            "embed_dim",
            f"is {config.embed_dim}; sinusoidal positions are pairs of a sine and a cosine, so it must be even",
        ),
        (
            attention.prefix and not attention.causal,
            "attention.prefix",
            "is true, but attention.causal is false: in an encoder all tokens see one another; set it to false",
        ),
        (config.norm.bias and config.norm.name == "rmsnorm", "norm.bias", "is true, but rmsnorm has no bias"),
        (
            config.heads.next_sentence and not config.heads.pooler,
            "heads.next_sentence",
            "is true, but heads.pooler, which it reads, is false",
        ),
        (
            not config.language_head and (config.head_transform or config.head_bias),
            "language_head",
            "is false, but head_transform or head_bias, which are parts of it, is true",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]
