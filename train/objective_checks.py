"""Whether the model can learn what the objective asks, and reads what its batches hold. Imports no JAX."""

from __future__ import annotations

from data import span_lengths
from data.objective_config import (
    MaskedObjective,
    QaObjective,
    ReplacedTokenObjective,
    Seq2SeqObjective,
    arrangement_of,
    denoisers_of,
    has_prefixes,
    reads_both_sides,
)
from data.span_lengths import raw_length
from train.config import Config

BFLOAT16_STEP = 2**-8  # between 1/2 and 1


def check_objective(config: Config) -> list[tuple[str, str]]:
    """Whether the model can learn what the objective asks, and reads what its batches hold."""
    checks = (
        *_stacks(config),
        *_generators(config),
        *_visibility(config),
        *_inputs_and_heads(config),
        *_groups_of_experts(config),
        *_sift(config),
    )
    return [(key, clash) for bad, key, clash in checks if bad]


def _stacks(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of a model that reads other batches than those of its objective."""
    objective, layers = config.data.objective, config.model.encoder_layers
    arranged = arrangement_of(objective) is not None
    paired = isinstance(objective, Seq2SeqObjective) or arrangement_of(objective) == "encoder_decoder"
    return (
        (
            paired and not layers,
            "model.encoder_layers",
            f"is 0, but data.objective {objective.name} has sources for an encoder to read; set it to the number of "
            f"its layers, or {'data.objective.arrangement=decoder' if arranged else 'data.objective.name=supervised'}",
        ),
        (
            layers > 0 and not paired,
            "model.encoder_layers",
            f"is {layers}, but batches of data.objective {objective.name} hold no sources; set it to 0"
            + (", or data.objective.arrangement=encoder_decoder" if arranged else ""),
        ),
    )


def _generators(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of a generator without replaced tokens to make, and the reverse."""
    model, detects = config.model, isinstance(config.data.objective, ReplacedTokenObjective)
    return (
        (
            detects and not model.generator_layers,
            "model.generator_layers",
            "is 0, but data.objective replaced_token needs a generator of the tokens to find; set it to the number of "
            "its layers, such as half of model.num_layers, and model.heads.replaced to true",
        ),
        (
            model.generator_layers > 0 and not detects,
            "model.generator_layers",
            f"is {model.generator_layers}, but data.objective {config.data.objective.name} has nothing to replace; set "
            "it to 0, or data.objective.name=replaced_token",
        ),
        (
            detects and model.experts.name != "none",
            "model.experts.name",
            f"is {model.experts.name}, but data.objective replaced_token trains two models without experts; set it to "
            "none",
        ),
    )


def _sift(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of SiFT where there are no outputs or no embeddings for it."""
    coefficient, objective = config.train.sift.coefficient, config.data.objective
    return (
        (
            coefficient > 0 and not isinstance(objective, MaskedObjective | QaObjective),
            "train.sift.coefficient",
            f"is {coefficient:g}, but SiFT regularises an encoder under data.objective masked or qa, and not under "
            f"{objective.name}; set it to 0",
        ),
        (
            coefficient > 0 and not config.model.embedding_norm,
            "train.sift.coefficient",
            f"is {coefficient:g}, but SiFT changes embeddings that a norm has normalised, and model.embedding_norm is "
            "false; set that to true, or train.sift.coefficient to 0",
        ),
        (
            coefficient > 0 and config.model.dtype == "bfloat16" and config.train.sift.step < BFLOAT16_STEP,
            "model.dtype",
            f"is bfloat16, in which embeddings of size 1 are {BFLOAT16_STEP:g} apart: it would round away the changes "
            f"of train.sift.step={config.train.sift.step:g}. Set it to float32",
        ),
    )


def target_length(config: Config) -> int:
    """Tokens of a decoder's row; where there is an encoder beside it, its rows have `data.length`."""
    data = config.data
    if isinstance(data.objective, Seq2SeqObjective):
        return data.objective.target_length
    if arrangement_of(data.objective) != "encoder_decoder":
        return data.length
    denoisers = denoisers_of(data.objective)
    raw = raw_length(denoisers, "encoder_decoder", data.length)
    return max(span_lengths.target_length(denoiser, raw) for denoiser in denoisers)


def _groups_of_experts(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of rows that the groups of a mixture of experts do not divide."""
    groups = getattr(config.model.experts, "groups", 1)
    lengths = {"data.length": config.data.length, "a decoder's rows": target_length(config)}
    return tuple(
        (length % groups != 0, "model.experts.groups", f"is {groups}, which does not divide {name}, {length} tokens")
        for name, length in lengths.items()
    )


def _visibility(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of which tokens see which."""
    model, objective = config.model, config.data.objective
    encoder, prefixes = reads_both_sides(objective), has_prefixes(objective)
    return (
        (
            encoder and model.attention.causal,
            "model.attention.causal",
            f"is true, but data.objective {objective.name} predicts a token from both of its sides; set it to false",
        ),
        (
            not encoder and not model.attention.causal,
            "model.attention.causal",
            f"is false, but data.objective {objective.name} would show each token its target; set it to true, or "
            "data.objective.name=masked",
        ),
        (
            prefixes and not model.attention.prefix,
            "model.attention.prefix",
            f"is false, but the tokens of a prefix of data.objective {objective.name} see one another; set it to true",
        ),
        (
            not prefixes and model.attention.prefix,
            "model.attention.prefix",
            f"is true, but batches of data.objective {objective.name} say of no prefix; set it to false",
        ),
    )


def _inputs_and_heads(config: Config) -> tuple[tuple[bool, str, str], ...]:
    """(whether it clashes, key, clash) of what the model reads and predicts beside tokens."""
    model, objective = config.model, config.data.objective
    pairs = isinstance(objective, MaskedObjective) and objective.next_sentence
    answers = isinstance(objective, QaObjective)
    return (
        (
            not model.language_head and not answers,
            "model.language_head",
            f"is false, but data.objective {objective.name} predicts tokens; set it to true",
        ),
        (
            pairs and model.token_types < 2,
            "model.token_types",
            f"is {model.token_types}, but data.objective.next_sentence tells two sentences apart; at least 2",
        ),
        (
            pairs and not model.heads.next_sentence,
            "model.heads.next_sentence",
            "is false, but data.objective.next_sentence is true; set both or neither",
        ),
        (
            answers and not model.heads.spans,
            "model.heads.spans",
            "is false, but data.objective qa predicts where answers start and end; set it to true",
        ),
        (
            answers and model.token_types == 1,
            "model.token_types",
            "is 1, but data.objective qa has two, of questions and of contexts; set it to 2, or to 0 for none",
        ),
        (
            answers and config.train.z_loss > 0,
            "train.z_loss",
            f"is {config.train.z_loss:g}, but data.objective qa has no logits over the vocabulary; set it to 0",
        ),
        (
            answers and config.train.label_smoothing > 0,
            "train.label_smoothing",
            f"is {config.train.label_smoothing:g}, but data.objective qa predicts places of a row, which are not "
            "smoothed; set it to 0",
        ),
        (
            not reads_both_sides(objective) and model.token_types > 0,
            "model.token_types",
            f"is {model.token_types}, but batches of data.objective {objective.name} hold none; set it to 0",
        ),
    )
