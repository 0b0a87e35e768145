"""BERT (Devlin et al. 2018; the small ones Turc et al. 2019): masked tokens and next sentences, on pairs of sentences.

    configs/bert.py:debug               2 layers x 64, on the text that every Python carries
    configs/bert.py:tiny                2 layers x 128         configs/bert.py:base-uncased    12 layers x 768
    configs/bert.py:mini                4 layers x 256         configs/bert.py:base-cased      12 layers x 768
    configs/bert.py:small               4 layers x 512         configs/bert.py:base-chinese    12 layers x 768
    configs/bert.py:medium              8 layers x 512         configs/bert.py:large-uncased   24 layers x 1024
                                                               configs/bert.py:large-cased     24 layers x 1024

The debug size needs nothing but this repository:

    python -m train.main --config configs/bert.py:debug --workdir runs/bert-debug

20 steps take half a minute on two cores, most of it to compile, and end at validation losses of 5.84 (masked tokens)
and 0.70 (next sentence).

The others read your text and BERT's vocabulary:

    python -m train.main --config configs/bert.py:base-uncased --workdir runs/bert-base \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=vocab.txt

They take BERT's million steps of 256 rows at 128 tokens. BERT took the last tenth of them at 512, which is two runs:
the first with `--config.train.steps=900000 --config.optim.schedule.final=0.1`, the second with

    --config.train.init_from=runs/bert-base --config.train.steps=100000 --config.optim.learning_rate=1e-5 \
        --config.optim.schedule.warmup=0 --config.data.length=512 --config.data.objective.max_predictions=77

Masks that are new in every epoch (Liu et al. 2019) are `--config.data.objective.copies=none`.

Rows are `[CLS] A [SEP] B [SEP]`; 15 % of the tokens are predicted, and whether B follows A. The optimizer is that of
BERT's code: AdamW without bias correction, under which everything but norms and biases decays.
"""

from typing import NamedTuple

from data.objective_config import MaskedObjective
from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer, WordPieceTokenizer
from model.config import LearnedPositions, Model
from train.config import AdamW, Linear, Optim, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    layers: int
    embed: int
    heads: int
    vocab: int = 30522
    lowercase: bool = True  # and without accents


SIZES = {
    "tiny": Size(2, 128, 2),
    "mini": Size(4, 256, 4),
    "small": Size(4, 512, 8),
    "medium": Size(8, 512, 8),
    "base-uncased": Size(12, 768, 12),
    "base-cased": Size(12, 768, 12, vocab=28996, lowercase=False),
    "base-chinese": Size(12, 768, 12, vocab=21128),
    "large-uncased": Size(24, 1024, 16),
    "large-cased": Size(24, 1024, 16, vocab=28996, lowercase=False),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, size.embed, size.heads)
    optimizer(config.optim, learning_rate=1e-4)
    config.model.vocab_size = size.vocab
    config.model.dtype = "bfloat16"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(lowercase=size.lowercase)
    config.data.objective = MaskedObjective(max_predictions=20, next_sentence=True, copies=10)
    config.data.length = 128
    config.optim.schedule.warmup = "10000 steps"
    config.train.steps = 1_000_000
    config.train.batch_size = 256
    config.checkpoint.every = 10_000
    config.eval.every = 10_000
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def encoder(model: Model, layers: int, embed: int, heads: int):
    """Layers that read both sides, with biases and norms behind each sublayer; their epsilon is not set."""
    model.num_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.causal = False
    model.attention.qkv_bias = True
    model.attention.output_bias = True
    model.attention.dropout = 0.1
    model.feed_forward.hidden_dim = 4 * embed
    model.feed_forward.activation = "gelu"
    model.feed_forward.gated = False
    model.feed_forward.bias = True
    model.norm.name = "layernorm"
    model.norm.placement = "post"
    model.norm.bias = True


def architecture(model: Model, layers: int, embed: int, heads: int, positions: int = 512):
    """BERT's encoder at any size, with the heads of its pre-training."""
    encoder(model, layers, embed, heads)
    model.norm.epsilon = 1e-12
    model.positions = LearnedPositions(length=positions)
    model.token_types = 2
    model.embedding_norm = True
    model.tied_head = True
    model.head_transform = True
    model.head_bias = True
    model.heads.pooler = True
    model.heads.next_sentence = True
    model.dropout = 0.1
    model.init.kernel_std = 0.02
    model.init.embedding_std = 0.02
    model.init.position_std = 0.02
    model.init.truncation = 2.0


def optimizer(optim: Optim, learning_rate: float):
    """BERT's optimizer: no bias correction, and decay of all but norms and biases, position tables included."""
    optim.optimizer = AdamW(b1=0.9, b2=0.999, epsilon=1e-6, weight_decay=0.01, bias_correction=False)
    optim.decay_kinds = ("kernel", "embedding", "table")
    optim.learning_rate = learning_rate
    optim.schedule = Linear(warmup="1%", final=0.0)
    optim.clip_norm = 1.0


def debug():
    """The same encoder small enough for one core, on the embedded corpus."""
    config = debug_defaults(1024)
    architecture(config.model, layers=2, embed=64, heads=4, positions=64)
    optimizer(config.optim, learning_rate=1e-3)
    config.optim.schedule.warmup = "10%"
    config.data.tokenizer = WordPieceTokenizer(vocab_size=1024, max_characters=200)
    config.data.objective = MaskedObjective(max_predictions=10, next_sentence=True, copies=1)
    return config
