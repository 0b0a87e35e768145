"""Configurations read and checked: values, clashes of sections, meshes, all that no field's type refuses. No JAX."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence

import data.config
import model.checks
from data import settings, tokenizer_config
from data.errors import ConfigError
from data.objective_config import MaskedObjective, ReplacedTokenObjective
from data.schema import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE, SHARE, Rule, refusals, split_duration
from train.config import Config, Duration, Group, Mesh
from train.duration import to_steps
from train.objective_checks import check_objective, target_length
from train.ramp import batches_of

AXIS = Rule(lambda size: size >= 1 or size == -1, "at least 1, or -1 for the rest of the devices")
INSIDE = Rule(lambda value: 0 < value < 1, "above 0 and below 1")
PARAMETER_KINDS = ("kernel", "embedding", "bias", "scale", "table")  # model.parameters.KINDS, without JAX

RULES = {
    "optim.optimizer.momentum": BELOW_ONE,
    "optim.optimizer.b1": BELOW_ONE,
    "optim.optimizer.b2": BELOW_ONE,
    "optim.optimizer.epsilon": POSITIVE,
    "optim.optimizer.weight_decay": NOT_NEGATIVE,
    "optim.optimizer.decay_rate": INSIDE,
    "optim.optimizer.clipping_threshold": POSITIVE,
    "optim.optimizer.min_dim_size_to_factor": COUNT,
    "optim.optimizer.newton_schulz_steps": COUNT,
    "optim.optimizer.adam_learning_rate_factor": NOT_NEGATIVE,
    "optim.optimizer.adam_b1": BELOW_ONE,
    "optim.optimizer.adam_b2": BELOW_ONE,
    "optim.optimizer.adam_epsilon": POSITIVE,
    "optim.learning_rate": POSITIVE,
    "optim.schedule.final": SHARE,
    "optim.clip_norm": POSITIVE,
    "optim.decay_kinds": Rule(
        lambda kinds: set(kinds) <= set(PARAMETER_KINDS), f"a list out of {', '.join(PARAMETER_KINDS)}"
    ),
    "optim.groups.*.learning_rate_factor": NOT_NEGATIVE,
    "optim.groups.*.weight_decay": NOT_NEGATIVE,
    "optim.ema_decay": INSIDE,
    "train.batch_size": COUNT,
    "train.accumulate": COUNT,
    "train.batch_ramp.start": COUNT,
    "train.batch_ramp.increment": COUNT,
    "train.seed": NOT_NEGATIVE,
    "train.z_loss": NOT_NEGATIVE,
    "train.label_smoothing": BELOW_ONE,
    "train.replaced_coefficient": NOT_NEGATIVE,
    "train.sift.coefficient": NOT_NEGATIVE,
    "train.sift.std": POSITIVE,
    "train.sift.step": POSITIVE,
    "train.loss_chunks": COUNT,
    "train.max_bad_steps": COUNT,
    "train.hang_timeout": POSITIVE,
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "mesh.expert": AXIS,
    "checkpoint.keep": COUNT,
    "eval.batch_size": COUNT,
    "eval.batches": COUNT,
}


def load(spec: str, overrides: Sequence[str] = ()) -> Config:
    """The checked configuration of `FILE.py[:arg]` or `FILE.json` and `--config.a.b=value` overrides."""
    config = settings.load(spec, overrides, Config)
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse, with all its clashes in one ConfigError, a configuration that no machine could run."""
    problems = [(f"model.{key}", clash) for key, clash in model.checks.check(config.model)]
    problems += [(f"data.{key}", clash) for key, clash in data.config.check(config.data)]
    problems += value_problems(config)
    if not problems:  # the checks below divide and compare what the ones above have found sound
        problems = _check_shapes(config) + check_objective(config) + _check_ramp(config) + _check_durations(config)
    if problems:
        raise ConfigError("; ".join(f"{key} {clash}" for key, clash in problems))


def value_problems(config: Config) -> list[tuple[str, str]]:
    """(key, clash) of what the sections other than `model` and `data` refuse by themselves."""
    return refusals(config, RULES) + _check_groups(config.optim.groups) + _check_mesh(config.mesh)


def _check_groups(groups: tuple[Group, ...]) -> list[tuple[str, str]]:
    problems = []
    for index, group in enumerate(groups):
        key = f"optim.groups.{index}.pattern"
        if not group.pattern:
            problems.append((key, 'is empty, must be a regular expression; "." matches every parameter'))
        try:
            re.compile(group.pattern)
        except re.error as error:
            problems.append((key, f"is {json.dumps(group.pattern)}, no regular expression: {error}"))
    return problems


def _check_mesh(mesh: Mesh) -> list[tuple[str, str]]:
    rest = [axis for axis, size in vars(mesh).items() if size == -1]
    if len(rest) < 2:
        return []
    return [(f"mesh.{rest[1]}", f"is -1, as mesh.{rest[0]} is; only one axis can take the rest")]


def _check_shapes(config: Config) -> list[tuple[str, str]]:
    length, longest, train = config.data.length, config.model.max_length, config.train
    tokenizer, vocabulary = config.data.tokenizer, config.model.vocab_size
    ids = tokenizer_config.vocabulary(tokenizer)
    objective, decoded = config.data.objective, target_length(config)
    bound = "absolute_length" if config.model.mask_decoder_passes else "length"
    predicted = ("data.length" if decoded == length else "a decoder's row of", decoded)
    if isinstance(objective, MaskedObjective | ReplacedTokenObjective):
        predicted = ("data.objective.max_predictions", objective.max_predictions)
    checks = (
        (
            longest is not None and length > longest,
            "data.length",
            f"is {length}, longer than the learned table's model.positions.{bound} {longest}; shorten one or lengthen "
            "the other",
        ),
        (
            longest is not None and decoded > longest >= length,
            "model.positions.length",
            f"is {longest}, but the rows of the decoder have {decoded} tokens; lengthen the one or shorten the other",
        ),
        (
            config.model.convolution.size > 2 * length,
            "model.convolution.size",
            f"is {config.model.convolution.size}, wider than any row reaches of data.length {length}; shorten it",
        ),
        (
            ids is not None and ids > vocabulary,
            "model.vocab_size",
            f"is {vocabulary}, but tokenizer {tokenizer.name} has {ids} ids; the model needs as many",
        ),
        (
            train.batch_size % train.accumulate != 0,
            "train.accumulate",
            f"is {train.accumulate}, which does not divide train.batch_size {train.batch_size}",
        ),
        (
            predicted[1] % train.loss_chunks != 0,
            "train.loss_chunks",
            f"is {train.loss_chunks}, which does not divide {predicted[0]} {predicted[1]}",
        ),
        (
            config.eval.ema and config.optim.ema_decay is None,
            "eval.ema",
            "is true, but no average is kept; set optim.ema_decay, such as 0.999",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]


def _check_ramp(config: Config) -> list[tuple[str, str]]:
    """Whether the batch can grow to its size by whole micro-batches, and its durations still say something."""
    train, ramp = config.train, config.train.batch_ramp
    if ramp.name == "none" or train.batch_size % train.accumulate:
        return []
    rows, whole = train.batch_size // train.accumulate, train.batch_size - ramp.start
    kept = config.checkpoint.keep_every
    checks = (
        (
            ramp.start % rows != 0,
            "train.batch_ramp.start",
            f"is {ramp.start}, no multiple of a micro-batch of {rows} rows; raise train.accumulate, or start with more",
        ),
        (
            ramp.increment % rows != 0,
            "train.batch_ramp.increment",
            f"is {ramp.increment}, no multiple of a micro-batch of {rows} rows; raise train.accumulate or it",
        ),
        (
            whole < 1 or whole % ramp.increment != 0,
            "train.batch_ramp.start",
            f"is {ramp.start}, from which steps of train.batch_ramp.increment {ramp.increment} do not lead to "
            f"train.batch_size {train.batch_size}",
        ),
        (
            split_duration(ramp.duration)[1] != "tokens",
            "train.batch_ramp.duration",
            f'is {json.dumps(ramp.duration)}, must be in tokens, such as "4e9 tokens"',
        ),
        (
            kept is not None and split_duration(kept)[1] in ("tokens", "epochs"),
            "checkpoint.keep_every",
            f"is {json.dumps(kept)}, but while train.batch_ramp lasts steps have different sizes; give it in steps",
        ),
    )
    return [(key, clash) for bad, key, clash in checks if bad]


def known_steps(config: Config, duration: Duration, total: int | None, **place: int | None) -> int | None:
    """The steps of `duration` in a run of `total`, where no token store is needed to know them; else None.

    `place` is the `start` or the `end` that `to_steps` counts from.
    """
    unit = split_duration(duration)[1]
    if unit == "epochs" or (unit == "%" and total is None):
        return None
    return to_steps(duration, total_steps=total, batches=batches_of(config), rows_per_epoch=1, **place)


def _check_durations(config: Config) -> list[tuple[str, str]]:
    steps = config.train.steps
    if split_duration(steps)[1] == "%":
        return [("train.steps", f"is {json.dumps(steps)}, a share of itself; give steps, tokens or epochs")]
    problems = [
        (key, f"is {json.dumps(duration)}, must be at least one step")
        for key, duration in (
            ("train.steps", steps),
            ("checkpoint.every", config.checkpoint.every),
            ("checkpoint.keep_every", config.checkpoint.keep_every),
            ("eval.every", config.eval.every),
        )
        if duration is not None and split_duration(duration)[0] == 0
    ]
    return problems + _check_schedule(config, known_steps(config, steps, None))


def _check_schedule(config: Config, total: int | None) -> list[tuple[str, str]]:
    """Whether the warm-up and the decay fit one after another into the run's `total` steps."""
    schedule, used = vars(config.optim.schedule), 0
    for key in ("warmup", "decay"):
        duration = schedule.get(key)
        if duration is None:
            continue
        amount, unit = split_duration(duration)
        last = key == "decay" and schedule["name"] == "wsd"
        used += known_steps(config, duration, total, **({"end": total} if last else {"start": used})) or 0
        if (unit == "%" and amount > 100) or (total is not None and used > total):
            after = " after the warm-up" if key == "decay" else ""
            clash = f"is {json.dumps(duration)}, which does not fit{after} into train.steps"
            fix = "shorten the schedule or lengthen the run"
            return [(f"optim.schedule.{key}", f"{clash} {json.dumps(config.train.steps)}; {fix}")]
    amount, unit = split_duration(schedule.get("hold") or 0)
    if unit == "%" and amount > 100:
        return [("optim.schedule.hold", f"is {json.dumps(schedule['hold'])}, longer than the run; at most 100%")]
    return []


def mesh_sizes(mesh: Mesh, device_count: int) -> dict[str, int]:
    """The devices along each mesh axis, -1 resolved. ConfigError where the mesh does not fit the machine.

    A mesh smaller than the machine leaves the other devices idle; only -1 promises to take them all.
    """
    sizes = dict(vars(mesh))
    shown = " x ".join(f"{axis} {size}" for axis, size in sizes.items())
    fixed = math.prod(size for size in sizes.values() if size != -1)
    rest = [axis for axis, size in sizes.items() if size == -1]
    if fixed > device_count:
        raise ConfigError(
            f"mesh is {shown}, which takes {fixed} devices, and this machine has {device_count}; make an "
            "axis smaller, or give one -1: the rest of the devices"
        )
    for axis in rest:
        if device_count % fixed:
            raise ConfigError(
                f"mesh.{axis} is -1, the rest of {device_count} devices, which the other axes' {fixed} do "
                f"not divide; the mesh is {shown}"
            )
        sizes[axis] = device_count // fixed
    return sizes


def check_devices(config: Config, device_count: int) -> dict[str, int]:
    """The devices along each mesh axis, -1 resolved. ConfigError where machine, mesh and batch do not fit."""
    sizes = mesh_sizes(config.mesh, device_count)
    rows, shards = config.train.batch_size // config.train.accumulate, sizes["data"] * sizes["fsdp"] * sizes["expert"]
    if rows % shards:
        raise ConfigError(
            f"train.batch_size is {config.train.batch_size}, in micro-batches of {rows} rows "
            f"(train.accumulate {config.train.accumulate}), which do not split over data x fsdp x expert = {shards} "
            f"devices; choose a multiple of {shards * config.train.accumulate}"
        )
    return sizes
