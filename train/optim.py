"""Optimizers, one parameter at a time: update = learning rate * factor * (direction + decay * parameter).

An optimizer is a function of its configuration and of a parameter's declaration; it gives the direction, from
optax's pieces. A parameter stacked over layers is updated under `jax.vmap`, so that one update of the stack
is one update of each layer whatever the optimizer. What decays, what is frozen and which group holds is
decided here once, from declarations, before anything is traced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from data.errors import ConfigError
from model.parameters import Declaration, path_name
from train import config as cfg


@dataclass(frozen=True)
class Rule:
    """How an optimizer treats one parameter."""

    name: str  # for the log: muon and adamw where one optimizer joins both
    direction: optax.GradientTransformation  # of the unstacked parameter; float32, neither rate nor decay
    weight_decay: float  # where the parameter's kind decays
    learning_rate_factor: float = 1.0


def sgd(config: cfg.Sgd, declaration: Declaration) -> Rule:
    """The gradient, or its running sum (Sutskever et al. 2013's momentum with the rate outside the sum)."""
    momentum = optax.trace(config.momentum, config.nesterov) if config.momentum else optax.identity()
    return Rule("sgd", momentum, config.weight_decay)


def adam(config: cfg.Adam, declaration: Declaration) -> Rule:
    return Rule("adam", optax.scale_by_adam(config.b1, config.b2, config.epsilon), 0.0)


def adamw(config: cfg.AdamW, declaration: Declaration) -> Rule:
    scale = optax.scale_by_adam if config.bias_correction else scale_by_uncorrected_adam
    return Rule("adamw", scale(config.b1, config.b2, config.epsilon), config.weight_decay)


class Moments(NamedTuple):
    first: optax.Updates
    second: optax.Updates


def scale_by_uncorrected_adam(b1: float, b2: float, epsilon: float) -> optax.GradientTransformation:
    """m / (sqrt(v) + epsilon) of Adam's moments without bias correction: the optimizer of BERT's own code.

    The first direction is (1 - b1) / sqrt(1 - b2) of the gradient's sign, 3.2 for .9 and .999; corrected it is 1.
    """

    def init(params):
        return Moments(jax.tree.map(jnp.zeros_like, params), jax.tree.map(jnp.zeros_like, params))

    def update(grads, moments, params=None):
        first = optax.tree.update_moment(grads, moments.first, b1, 1)
        second = optax.tree.update_moment(grads, moments.second, b2, 2)
        return jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + epsilon), first, second), Moments(first, second)

    return optax.GradientTransformation(init, update)


def adafactor(config: cfg.Adafactor, declaration: Declaration) -> Rule:
    """Shazeer and Stern 2018, algorithms 4 and 5, without momentum; factored over the two largest axes."""
    pieces = [
        optax.scale_by_factored_rms(decay_rate=config.decay_rate, min_dim_size_to_factor=config.min_dim_size_to_factor),
        optax.clip_by_block_rms(config.clipping_threshold),
    ]
    if config.multiply_by_parameter_scale:
        pieces.append(optax.scale_by_param_block_rms())
    return Rule("adafactor", optax.chain(*pieces), config.weight_decay)


def lion(config: cfg.Lion, declaration: Declaration) -> Rule:
    return Rule("lion", optax.scale_by_lion(config.b1, config.b2), config.weight_decay)


def muon(config: cfg.Muon, declaration: Declaration) -> Rule:
    """Muon for kernels that map activations to activations; AdamW for all else, the head included.

    A kernel is the matrix from its declared inputs to its declared outputs; axes that are neither are a batch
    of matrices. Its momentum, bias-corrected as in Adam, is orthogonalised by Newton-Schulz iterations and
    multiplied by sqrt(max(1, fan_out / fan_in)), the convention of Jordan's own code
    (https://github.com/KellerJordan/Muon). Liu et al. 2025 (arXiv 2502.16982) instead multiply by
    0.2 * sqrt(max(fan_in, fan_out)), for which learning rates are those of AdamW.
    """
    maps = declaration.kind == "kernel" and declaration.inputs and declaration.outputs
    if not maps or "vocab" in declaration.axes:
        direction = optax.scale_by_adam(config.adam_b1, config.adam_b2, config.adam_epsilon)
        return Rule("adamw", direction, config.weight_decay, config.adam_learning_rate_factor)
    orthogonalised = optax.contrib.scale_by_muon(
        ns_steps=config.newton_schulz_steps,
        beta=config.momentum,
        nesterov=config.nesterov,
        weight_dimension_numbers=optax.contrib.MuonDimensionNumbers(declaration.inputs, declaration.outputs),
    )
    scale = max(1.0, declaration.fan_out / declaration.fan_in) ** 0.5
    return Rule("muon", optax.chain(orthogonalised, optax.scale(scale)), config.weight_decay)


OPTIMIZERS: dict[str, Callable[..., Rule]] = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adafactor": adafactor,
    "lion": lion,
    "muon": muon,
}


@dataclass(frozen=True)
class Plan:
    """What happens to one parameter at each update."""

    declaration: Declaration
    rule: Rule
    learning_rate_factor: float  # the rule's times the group's
    weight_decay: float
    frozen: bool
    pattern: str | None  # of the group that holds, None: in no group

    def init(self, parameter):
        init = self.rule.direction.init
        return (jax.vmap(init) if self.declaration.stacked else init)(parameter.astype(jnp.float32))

    def update(self, gradient, state, parameter, learning_rate):
        """(new parameter, new state), float32."""
        direct = self.rule.direction.update
        if self.declaration.stacked:
            direct = jax.vmap(direct)
        parameter = parameter.astype(jnp.float32)
        direction, state = direct(gradient.astype(jnp.float32), state, parameter)
        if self.weight_decay:
            direction = direction + self.weight_decay * parameter
        return parameter - learning_rate * self.learning_rate_factor * direction, state


@dataclass(frozen=True)
class Optimizer:
    """Pure functions over trees of trained parameters; the plans are keyed by path name."""

    plans: dict[str, Plan]

    @property
    def frozen_paths(self) -> tuple[str, ...]:
        return tuple(name for name, plan in self.plans.items() if plan.frozen)

    def init(self, params):
        """The optimizer's state: a tree like `params` (frozen ones taken out) with a state at each leaf."""

        def init(path, parameter):
            return self.plans[path_name(path)].init(parameter)

        return jax.tree_util.tree_map_with_path(init, params)

    def update(self, grads, opt_state, params, learning_rate):
        """(new params, new opt_state); `learning_rate` is the schedule's float32 value at this step."""
        learning_rate = jnp.asarray(learning_rate, jnp.float32)
        leaves, treedef = jax.tree_util.tree_flatten_with_path(params)
        updated = [
            self.plans[path_name(path)].update(gradient, state, parameter, learning_rate)
            for (path, parameter), gradient, state in zip(
                leaves, treedef.flatten_up_to(grads), treedef.flatten_up_to(opt_state), strict=True
            )
        ]
        return tuple(treedef.unflatten(part) for part in zip(*updated, strict=True))

    def describe(self) -> str:
        """Decayed, not decayed and frozen parameters by name, with kind, rule, factor, decay and group."""
        trained = {name: plan for name, plan in self.plans.items() if not plan.frozen}
        sections = {
            "decayed": [name for name, plan in trained.items() if plan.weight_decay],
            "not decayed": [name for name, plan in trained.items() if not plan.weight_decay],
            "frozen": self.frozen_paths,
        }
        lines = []
        for title, names in sections.items():
            lines.append(f"{title}: {len(names)}")
            lines.extend(f"  {_line(name, self.plans[name])}" for name in names)
        return "\n".join(lines) + "\n"


def build(config: cfg.Optim, declarations) -> Optimizer:
    """The optimizer of a tree of `Declaration`s.

    Raises ConfigError where a group's pattern matches no parameter, or where nothing is left to train.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(declarations)
    named = {path_name(path): declaration for path, declaration in leaves}
    groups = _groups(config.groups, tuple(named))
    plans = {name: _plan(config, declaration, groups.get(name)) for name, declaration in named.items()}
    if all(plan.frozen for plan in plans.values()):
        patterns = ", ".join(repr(group.pattern) for group in config.groups if group.freeze)
        raise ConfigError(f"optim.groups freezes every parameter, by {patterns}; leave at least one to train.")
    return Optimizer(plans)


def _plan(config: cfg.Optim, declaration: Declaration, group: cfg.Group | None) -> Plan:
    rule = OPTIMIZERS[config.optimizer.name](config.optimizer, declaration)
    decay = rule.weight_decay if declaration.kind in config.decay_kinds else 0.0
    if group is None:
        return Plan(declaration, rule, rule.learning_rate_factor, decay, False, None)
    if group.weight_decay is not None:
        decay = group.weight_decay
    factor = rule.learning_rate_factor * group.learning_rate_factor
    return Plan(declaration, rule, factor, decay, group.freeze, group.pattern)


def _groups(groups: tuple[cfg.Group, ...], names: tuple[str, ...]) -> dict[str, cfg.Group]:
    """The group that holds for each parameter that is in one: the last that matches."""
    held = {}
    for index, group in enumerate(groups):
        matched = [name for name in names if re.search(group.pattern, name)]
        if not matched:
            near = get_close_matches(group.pattern, names, n=3, cutoff=0.0)
            raise ConfigError(
                f"optim.groups.{index}.pattern is {group.pattern!r}, which matches no parameter; near it are "
                f"{', '.join(near)}."
            )
        held.update(dict.fromkeys(matched, group))
    return held


def _line(name: str, plan: Plan) -> str:
    words = f"{name:<40}  {plan.declaration.kind:<9}"
    if not plan.frozen:
        words += f"  {plan.rule.name:<9}  rate x {plan.learning_rate_factor:g}  decay {plan.weight_decay:g}"
    return words.rstrip() if plan.pattern is None else f"{words}  group {plan.pattern!r}"


def split_frozen(params: dict, frozen_paths: tuple[str, ...]) -> tuple[dict, dict]:
    """(trained, frozen): nested dicts that share out the leaves of `params`, without empty dicts."""
    frozen_names, trained, frozen = set(frozen_paths), {}, {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
        keys = path_name(path).split("/")
        node = frozen if "/".join(keys) in frozen_names else trained
        for key in keys[:-1]:
            node = node.setdefault(key, {})
        node[keys[-1]] = leaf
    return trained, frozen


def merge(params: dict, frozen: dict) -> dict:
    """The whole tree again of what `split_frozen` parted."""
    whole = dict(params)
    for key, value in frozen.items():
        whole[key] = merge(params[key], value) if key in params else value
    return whole


def global_norm(tree):
    """Euclidean norm of all elements of all leaves, float32 scalar."""
    return jnp.sqrt(sum(jnp.sum(jnp.square(leaf.astype(jnp.float32))) for leaf in jax.tree.leaves(tree)))


def clip_by_global_norm(grads, max_norm: float | None):
    """(grads scaled down to `max_norm` where they are longer, their norm before that); Pascanu et al. 2013.

    None clips nothing. Gradients within the bound keep their bits. A norm that is not finite is returned as
    it is, with gradients that are of no use: the step refuses them.
    """
    norm = global_norm(grads)
    if max_norm is None:
        return grads, norm
    scale = jnp.where(norm > max_norm, max_norm / norm, 1.0)
    return jax.tree.map(lambda gradient: gradient * scale, grads), norm
