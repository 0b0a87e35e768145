"""The Transformer (Vaswani et al. 2017): an encoder and a decoder that translate.

    configs/transformer.py:debug        2 + 2 layers x 64, on the text that every Python carries
    configs/transformer.py:base         6 + 6 layers x 512
    configs/transformer.py:big          6 + 6 layers x 1024

The debug size needs nothing but this repository. There are no translations in it, so that it writes the spans that are
cut out of a text:

    python -m train.main --config configs/transformer.py:debug --workdir runs/transformer-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.18.

The others read your pairs, a JSON object a line with the columns `source` and `target`, and a tokenizer of both:

    python -m train.main --config configs/transformer.py:base --workdir runs/transformer-base \
        --config.data.source.paths='pairs/*.jsonl' --config.data.tokenizer.path=tokenizer.json
    python -m train.average --run runs/transformer-base --last 5 --workdir runs/transformer-base-mean
    python -m train.generate --run runs/transformer-base-mean --prompt 'A sentence.' --beams 4 --length_penalty 0.6

The average is the paper's (section 6.1; of the big model it averages 20 checkpoints), and so are the search's numbers;
when it ends, which the paper leaves open, `model/beam.py` says. Its models from English to French have 32,000 ids, and
the big one less dropout: `--config.model.vocab_size=32000 --config.model.dropout=0.1`.

A row is one pair. The paper counts a batch in tokens, about 25,000 of each side, which is 896 pairs of the 28 that a
sentence of its English-German text has, more or less. The learning rate is its law: d^-0.5 min(step^-0.5, step
warmup^-1.5). It names no initial values; these give logits of variance 1. The logged loss is not smoothed: the smoothed
one, which is trained on, cannot reach 0.
"""

from typing import NamedTuple

from data.objective_config import Seq2SeqObjective, SpanCorruptionObjective
from data.source_config import JsonlSource
from data.tokenizer_config import BpeTokenizer, FileTokenizer
from model.config import Model, SinusoidalPositions
from train.config import Adam, InverseSqrt, Optim, defaults
from train.recipes import chosen, debug_defaults

WARMUP = 4000  # steps


class Size(NamedTuple):
    embed: int
    heads: int
    dropout: float
    steps: int
    accumulate: int
    every: int  # steps from one checkpoint to the next
    kept: int  # checkpoints, for their average


SIZES = {
    "base": Size(512, 8, 0.1, 100_000, 1, 1500, 5),
    "big": Size(1024, 16, 0.3, 300_000, 2, 1000, 20),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, 6, size.embed, size.heads, size.dropout)
    optimizer(config.optim, peak=(size.embed * WARMUP) ** -0.5, warmup=WARMUP)
    config.model.vocab_size = 37_000
    config.model.dtype = "bfloat16"
    config.data.source = JsonlSource()
    config.data.tokenizer = FileTokenizer()
    config.data.objective = Seq2SeqObjective(target_length=128)
    config.data.length = 128
    config.data.packing = "unpacked"
    config.data.long_documents = "drop"
    config.train.steps = size.steps
    config.train.batch_size = 896
    config.train.accumulate = size.accumulate
    config.train.label_smoothing = 0.1
    config.checkpoint.every = size.every
    config.checkpoint.keep = size.kept
    config.eval.every = size.every
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def architecture(model: Model, layers: int, embed: int, heads: int, dropout: float):
    """The encoder and the decoder at any size; only the feed-forward networks and the norms have biases."""
    model.num_layers = layers
    model.encoder_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.feed_forward.hidden_dim = 4 * embed
    model.feed_forward.activation = "relu"
    model.feed_forward.gated = False
    model.feed_forward.bias = True
    model.norm.name = "layernorm"
    model.norm.placement = "post"
    model.norm.epsilon = 1e-6
    model.norm.bias = True
    model.positions = SinusoidalPositions(layout="interleaved")
    model.tied_head = True
    model.embedding_scale = embed**0.5
    model.dropout = dropout
    model.init.kernel_std = None
    model.init.embedding_std = embed**-0.5


def optimizer(optim: Optim, peak: float, warmup: int | str):
    """Adam without decay and without clipping, at rates that rise and then fall as the inverse root of the steps."""
    optim.optimizer = Adam(b1=0.9, b2=0.98, epsilon=1e-9)
    optim.learning_rate = peak
    optim.schedule = InverseSqrt(warmup=warmup)
    optim.clip_norm = None


def debug():
    """The same model small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, layers=2, embed=64, heads=4, dropout=0.1)
    optimizer(config.optim, peak=2e-3, warmup="10%")
    config.data.tokenizer = BpeTokenizer(vocab_size=config.model.vocab_size, special_tokens=("<extra_id_{0..7}>",))
    config.data.objective = SpanCorruptionObjective()
    config.train.label_smoothing = 0.1
    return config
