"""DeBERTa (He et al. 2020) and its second and third versions (He et al. 2021): disentangled attention, masked tokens,
and in the third replaced ones.

    configs/deberta.py:debug            2 layers x 64, of version 1, on the text that every Python carries
    configs/deberta.py:debug-2          the same of version 2
    configs/deberta.py:debug-3          the same of version 3, beside a generator of 1 layer
    configs/deberta.py:v1-base          12 layers x 768        configs/deberta.py:v3-xsmall      12 layers x 384
    configs/deberta.py:v1-large         24 layers x 1024       configs/deberta.py:v3-small        6 layers x 768
    configs/deberta.py:v2-xlarge        24 layers x 1536       configs/deberta.py:v3-base        12 layers x 768
    configs/deberta.py:v2-xxlarge       48 layers x 1536       configs/deberta.py:v3-large       24 layers x 1024

The debug sizes need nothing but this repository:

    python -m train.main --config configs/deberta.py:debug --workdir runs/deberta-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 6.03, 6.01 or 5.94.

The others read your text and the version's tokenizer, bytes in pairs (1) or a SentencePiece model (2 and 3):

    python -m train.main --config configs/deberta.py:v1-base --workdir runs/deberta-base \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

15 % of the tokens are predicted, from masks that are new in every epoch, by the enhanced mask decoder: the last layer
twice, whose queries know their absolute positions. Masks are drawn token by token; those of version 2 were runs of up
to three. In version 3 that is the part of a generator of half as many layers: samples of what it predicts replace the
masked tokens, and the encoder that is kept learns which tokens are not the text's, its loss counted 50 times
(`train.replaced_coefficient`; the papers' value, where their code has 10). Learning rates, batches, warm-up and decay
are the papers'; of v2-xlarge, which none tells, those of v2-xxlarge. Batches are counted for several accelerators; on
fewer, raise `train.accumulate`: the numbers stay the same.

A head for another task is put on the encoder without that decoder, as its authors do; a run then begins from it by
`train.init_from`:

    python -m train.convert export --run runs/deberta-base --hf published
    python -m train.convert import --hf published --workdir runs/deberta-spans --initialise_missing_heads \
        --config.model.positions.mask_decoder_passes=0 --config.model.language_head=false \
        --config.model.head_transform=false --config.model.head_bias=false --config.model.heads.spans=true

Of version 3 the discriminator is exported, which has neither decoder nor language head: all that it is imported with is
`--config.model.heads.replaced=false`, and the new head.
"""

from typing import NamedTuple

from configs.bert import encoder
from data.objective_config import MaskedObjective, ReplacedTokenObjective
from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer, WordPieceTokenizer
from model.config import Convolution, DisentangledPositions, Model
from train.config import AdamW, Linear, Optim, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    version: int
    layers: int
    embed: int
    heads: int
    learning_rate: float
    accumulate: int
    remat: str


SIZES = {
    "v1-base": Size(1, 12, 768, 12, 2e-4, 16, "none"),
    "v1-large": Size(1, 24, 1024, 16, 2e-4, 32, "full"),
    "v2-xlarge": Size(2, 24, 1536, 24, 1.5e-4, 64, "full"),
    "v2-xxlarge": Size(2, 48, 1536, 24, 1.5e-4, 64, "full"),
    "v3-xsmall": Size(3, 12, 384, 6, 6e-4, 32, "none"),
    "v3-small": Size(3, 6, 768, 12, 6e-4, 32, "none"),
    "v3-base": Size(3, 12, 768, 12, 6e-4, 64, "none"),
    "v3-large": Size(3, 24, 1024, 16, 3e-4, 128, "full"),
}


DEBUG = {"debug": 1, "debug-2": 2, "debug-3": 3}  # versions


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg in DEBUG:
        return debug(version=DEBUG[arg])
    size, config = chosen(SIZES, arg, tuple(DEBUG)), defaults()
    architecture(config.model, size.version, size.layers, size.embed, size.heads)
    optimizer(config.optim, size.version, size.learning_rate)
    config.model.vocab_size = 50265 if size.version == 1 else 128100
    config.model.dtype = "bfloat16"
    config.model.remat = size.remat
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer()
    config.data.objective = objective(size.version, max_predictions=77)
    config.data.length = 512
    config.optim.schedule.warmup = "10000 steps"
    config.train.steps = 500_000 if size.version == 3 else 1_000_000
    config.train.batch_size = 8192 if size.version == 3 else 2048
    config.train.accumulate = size.accumulate
    config.checkpoint.every = 10_000
    config.eval.every = 10_000
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def architecture(model: Model, version: int, layers: int, embed: int, heads: int, length: int = 512):
    """DeBERTa's encoder at any size, for contexts of `length`, with what predicts masked tokens."""
    encoder(model, layers, embed, heads)
    model.norm.epsilon = 1e-7
    later = {"buckets": length // 2, "shared_projections": True, "norm": True} if version > 1 else {}
    model.positions = DisentangledPositions(span=length, mask_decoder_passes=2, absolute_length=length, **later)
    if version == 2:
        model.convolution = Convolution(size=3, activation="gelu")
    if version == 3:
        model.generator_layers = layers // 2
        model.heads.replaced = True
    model.embedding_norm = True
    model.tied_head = True
    model.head_transform = True
    model.head_bias = True
    model.heads.pooler_activation = "gelu"
    model.dropout = 0.1
    model.init.kernel_std = 0.02
    model.init.embedding_std = 0.02
    model.init.position_std = 0.02


def objective(version: int, max_predictions: int) -> MaskedObjective | ReplacedTokenObjective:
    """15 % of the tokens, in version 3 all of them masked, for a generator."""
    return (ReplacedTokenObjective if version == 3 else MaskedObjective)(max_predictions=max_predictions, copies=None)


def optimizer(optim: Optim, version: int, learning_rate: float):
    """AdamW, under which all but norms and biases decays, tables of positions included."""
    optim.optimizer = AdamW(b1=0.9, b2=0.98 if version == 3 else 0.999, epsilon=1e-6, weight_decay=0.01)
    optim.decay_kinds = ("kernel", "embedding", "table")
    optim.learning_rate = learning_rate
    optim.schedule = Linear(warmup="1%", final=0.0)
    optim.clip_norm = 1.0


def debug(version: int):
    """The same encoder small enough for one core, on the embedded corpus; rows are beyond its farthest distance."""
    config = debug_defaults(1024)
    architecture(config.model, version, layers=2, embed=64, heads=4, length=32)
    config.model.positions.absolute_length = 64
    optimizer(config.optim, version, learning_rate=3e-3)
    config.optim.schedule.warmup = "10%"
    config.data.tokenizer = WordPieceTokenizer(vocab_size=1024, max_characters=200)
    config.data.objective = objective(version, max_predictions=10)
    return config
