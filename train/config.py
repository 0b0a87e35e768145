"""The complete configuration of a run: every section, every default, every unit. Imports no JAX.

A `Duration` is a number of steps (an int), or text: "500 steps", "1e6 tokens" (input positions of the
global batch), "2 epochs", "10%" (of the run's steps).
"""

from __future__ import annotations

from dataclasses import dataclass

from ml_collections import ConfigDict

from data import settings
from data.config import Data
from model.config import Model

Duration = int | str


@dataclass(frozen=True)
class Sgd:
    name: str = "sgd"
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0  # decoupled, times the learning rate, as everywhere below


@dataclass(frozen=True)
class Adam:
    """Kingma and Ba 2014: bias-corrected moments, epsilon outside the root, no decay."""

    name: str = "adam"
    b1: float = 0.9
    b2: float = 0.999
    epsilon: float = 1e-8


@dataclass(frozen=True)
class AdamW:
    """Loshchilov and Hutter 2017: Adam, and decay that the moments do not see."""

    name: str = "adamw"
    b1: float = 0.9
    b2: float = 0.95
    epsilon: float = 1e-8
    weight_decay: float = 0.1
    bias_correction: bool = True  # false: the moments as they are (BERT), so that first updates are larger


@dataclass(frozen=True)
class Adafactor:
    """Shazeer and Stern 2018: second moments by row and column."""

    name: str = "adafactor"
    decay_rate: float = 0.8  # the second moment's decay at update t is 1 - t ** -decay_rate
    clipping_threshold: float = 1.0  # on the root mean square of a parameter's update
    multiply_by_parameter_scale: bool = True
    min_dim_size_to_factor: int = 128
    weight_decay: float = 0.0


@dataclass(frozen=True)
class Lion:
    """Chen et al. 2023: the sign of an interpolated momentum."""

    name: str = "lion"
    b1: float = 0.9
    b2: float = 0.99
    weight_decay: float = 1.0


@dataclass(frozen=True)
class Muon:
    """Jordan et al. 2024 on kernels; AdamW on embeddings, head, norms and biases."""

    name: str = "muon"
    momentum: float = 0.95
    nesterov: bool = True
    newton_schulz_steps: int = 5
    weight_decay: float = 0.1
    adam_learning_rate_factor: float = 0.1  # AdamW's learning rate as a share of optim.learning_rate
    adam_b1: float = 0.9
    adam_b2: float = 0.95
    adam_epsilon: float = 1e-8


@dataclass(frozen=True)
class Constant:
    name: str = "constant"
    warmup: Duration = 0


@dataclass(frozen=True)
class Linear:
    name: str = "linear"
    warmup: Duration = "1%"
    final: float = 0.0  # share of the peak at the end of the decay, and after it
    decay: Duration | None = None  # from the end of the warm-up; None: to the last step


@dataclass(frozen=True)
class Cosine:
    name: str = "cosine"
    warmup: Duration = "1%"
    final: float = 0.1
    decay: Duration | None = None  # from the end of the warm-up; None: to the last step


@dataclass(frozen=True)
class WarmupStableDecay:
    name: str = "wsd"
    warmup: Duration = "1%"
    decay: Duration = "20%"  # the last part of the run
    final: float = 0.0


@dataclass(frozen=True)
class InverseSqrt:
    """Vaswani et al. 2017: after the warm-up, peak * sqrt(warmup / step)."""

    name: str = "inverse_sqrt"
    warmup: Duration = "1%"
    hold: Duration = 0  # from the first step; the peak lasts until its end, then peak * sqrt(hold / step) (T5: 10000)


@dataclass(frozen=True)
class Group:
    """Parameters whose path matches `pattern` (`re.search`; it must match one). The last match holds."""

    pattern: str = ""
    learning_rate_factor: float = 1.0
    weight_decay: float | None = None  # None: the optimizer's; 0: none
    freeze: bool = False


@dataclass(frozen=True)
class Optim:
    optimizer: Sgd | Adam | AdamW | Adafactor | Lion | Muon = AdamW()
    learning_rate: float = 3e-4  # the schedule's peak
    schedule: Constant | Linear | Cosine | WarmupStableDecay | InverseSqrt = Cosine()
    clip_norm: float | None = 1.0  # global norm of the accumulated gradient; None: no clipping
    decay_kinds: tuple[str, ...] = ("kernel", "embedding")  # parameter kinds that decay
    groups: tuple[Group, ...] = ()
    ema_decay: float | None = None  # None: no average of the parameters is kept


@dataclass(frozen=True)
class NoRamp:
    name: str = "none"


@dataclass(frozen=True)
class LinearRamp:
    """Brown et al. 2020: the batch grows in proportion to the tokens read, by whole micro-batches."""

    name: str = "linear"
    start: int = 16  # rows of the first step; a multiple of a micro-batch
    increment: int = 16  # rows by which it grows at a time; a multiple of a micro-batch
    duration: Duration = "4e9 tokens"  # until the batch is whole; in tokens


@dataclass(frozen=True)
class Sift:
    """He et al. 2020, section 5: the output must stay under a small change of the embeddings, by their KL."""

    coefficient: float = 0.0  # of the symmetric KL; 0: there is none
    std: float = 0.01  # of the change that is drawn, cut at two of them
    step: float = 1e-4  # of its one step up the KL's gradient


@dataclass(frozen=True)
class Train:
    steps: Duration = 1000  # attempted updates
    batch_size: int = 8  # rows of the global batch
    accumulate: int = 1  # micro-batches a step
    batch_ramp: NoRamp | LinearRamp = NoRamp()  # fewer rows at first
    seed: int = 0
    z_loss: float = 0.0  # coefficient of the squared log-partition
    label_smoothing: float = 0.0  # share of each target that is spread evenly over the vocabulary
    replaced_coefficient: float = 50.0  # of the loss of replaced tokens, beside that of their generator
    sift: Sift = Sift()
    loss_chunks: int = 1  # parts of a row whose logits exist at a time; 1: all at once
    max_bad_steps: int = 5  # non-finite steps in a row that end the run
    init_from: str | None = None  # a run or checkpoint directory whose weights start this run
    deterministic: bool = True  # the same bits on every run in the scope that environment.json records
    hang_timeout: float = 1800.0  # seconds without progress before the run ends with exit code 124


@dataclass(frozen=True)
class Mesh:
    """Devices along each axis; -1 on at most one: the rest."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1
    expert: int = 1  # divides the batch as `data` does, and experts among its devices


@dataclass(frozen=True)
class Checkpoint:
    every: Duration = 500
    keep: int = 3  # newest ones kept
    keep_every: Duration | None = None  # those at multiples of it are kept for good
    best: str | None = None  # a metric whose lowest value is kept too, such as eval/validation/loss


@dataclass(frozen=True)
class Eval:
    every: Duration = 500
    batch_size: int | None = None  # rows; None: train.batch_size
    batches: int | None = None  # None: every row of the validation set
    ema: bool = False  # evaluate the averaged parameters


@dataclass(frozen=True)
class Log:
    tensorboard: bool = True
    wandb: str | None = None  # project; needs the wandb package
    mlflow: str | None = None  # experiment; needs the mlflow package


@dataclass(frozen=True)
class Config:
    model: Model = Model()
    data: Data = Data()
    optim: Optim = Optim()
    train: Train = Train()
    mesh: Mesh = Mesh()
    checkpoint: Checkpoint = Checkpoint()
    eval: Eval = Eval()
    log: Log = Log()


def defaults() -> ConfigDict:
    """The complete tree that a recipe starts from: locked, type-safe, every field at its default."""
    return settings.to_config_dict(Config())
