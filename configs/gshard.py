"""GShard (Lepikhin et al. 2020) in its published sizes: every second feed-forward network is one of many experts.

    configs/gshard.py:debug             2 + 2 layers x 64, 8 experts, on the text that every Python carries
    configs/gshard.py:2048e-36l         600B: 18 + 18 layers x 1024, 2048 experts in every second
    configs/gshard.py:2048e-12l         200B: 6 + 6 layers, 2048 experts
    configs/gshard.py:512e-36l          150B: 18 + 18 layers, 512 experts
    configs/gshard.py:512e-12l          50B: 6 + 6 layers, 512 experts
    configs/gshard.py:128e-36l          37B: 18 + 18 layers, 128 experts
    configs/gshard.py:128e-12l          12.5B: 6 + 6 layers, 128 experts

The debug size needs nothing but this repository, and predicts spans that are cut out of a text:

    python -m train.main --config configs/gshard.py:debug --workdir runs/gshard-debug

20 steps take less than a minute on two cores, most of it to compile, and end at a validation loss of 4.99.

The others translate pairs of your own, JSON lines of `source` and `target`, with a tokenizer of both languages:

    python -m train.main --config configs/gshard.py:128e-12l --workdir runs/gshard-128e \
        --config.data.source.paths='pairs/*.jsonl' --config.data.tokenizer.path=tokenizer.json

The experts of a layer are divided among the devices of `mesh.expert`, here all of them, and each token is sent to the
devices of its two. Sizes, batches of one or four million tokens, dropout, float32 and the optimizer, which is T5's, are
the paper's (tables 1 and 3, appendix A), and so is the gating (algorithm 1). What it leaves open is as in lingvo, its
code: norms without means before each sublayer, relative positions as biases and no other biases. Chosen here: one
vocabulary of 64,000 for both sides, where the paper's targets have 32,000 of their own, and rows of 1024 tokens, each a
pair and a group of its own; a pair should be several sentences long, since what a row leaves empty is computed too.
"""

from typing import NamedTuple

from configs.t5 import optimizer
from data.objective_config import Seq2SeqObjective, SpanCorruptionObjective
from data.source_config import JsonlSource
from data.tokenizer_config import BpeTokenizer, FileTokenizer
from model.config import CapacityExperts, Layer, Model, RelativePositions
from train.config import defaults
from train.recipes import chosen, debug_defaults

LENGTH = 1024  # tokens of a row, of the source and of the target


class Size(NamedTuple):
    experts: int  # of a layer
    layers: int  # of the encoder, and of the decoder
    batch_size: int  # rows of 1024 tokens


SIZES = {
    "2048e-36l": Size(2048, 18, 4096),
    "2048e-12l": Size(2048, 6, 4096),
    "512e-36l": Size(512, 18, 1024),
    "512e-12l": Size(512, 6, 1024),
    "128e-36l": Size(128, 18, 1024),
    "128e-12l": Size(128, 6, 1024),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, 1024, heads=16, head_dim=128, hidden=8192, experts=size.experts)
    config.model.vocab_size = 64_000
    config.model.remat = "full"
    config.data.source = JsonlSource()
    config.data.tokenizer = FileTokenizer()
    config.data.objective = Seq2SeqObjective(target_length=LENGTH)
    config.data.length = LENGTH
    optimizer(config.optim)
    config.train.steps = "1e12 tokens"
    config.train.batch_size = size.batch_size
    config.train.loss_chunks = 8
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.expert = 1, -1
    return config


def architecture(model: Model, layers: int, embed: int, heads: int, head_dim: int, hidden: int, experts: int):
    """GShard's encoder and decoder of `layers` each, at any size."""
    model.num_layers = layers
    model.encoder_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.head_dim = head_dim
    model.attention.dropout = 0.1
    model.feed_forward.hidden_dim = hidden
    model.feed_forward.activation = "relu"
    model.feed_forward.gated = False
    model.pattern = (Layer(), Layer(experts=True))
    # The paper names no coefficient; lingvo's is 0.01, of an auxiliary loss that is experts ** 2 times the paper's.
    model.experts = CapacityExperts(num_experts=experts, min_capacity=1, balance_coefficient=0.01 * experts**2)
    model.norm.name = "rmsnorm"
    model.norm.epsilon = 1e-6
    model.positions = RelativePositions(buckets=32, max_distance=128)
    model.tied_head = True
    model.embedding_scale = embed**0.5
    model.dropout = 0.1
    model.init.kernel_std = None
    model.init.embedding_std = embed**-0.5


def debug():
    """The same stacks small enough for one core, on spans of the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, 2, 64, heads=4, head_dim=16, hidden=128, experts=8)
    optimizer(config.optim)
    config.data.tokenizer = BpeTokenizer(vocab_size=config.model.vocab_size, special_tokens=("<extra_id_{0..7}>",))
    config.data.objective = SpanCorruptionObjective()
    return config
