"""GPT-2 (Radford et al. 2019) in its published sizes, trained as GPT-3 (Brown et al. 2020) was.

    configs/gpt2.py:debug               2 layers x 64, on the text that every Python carries
    configs/gpt2.py:124m                12 layers x 768
    configs/gpt2.py:350m                24 layers x 1024
    configs/gpt2.py:774m                36 layers x 1280
    configs/gpt2.py:1.5b                48 layers x 1600

The debug size needs nothing but this repository:

    python -m train.main --config configs/gpt2.py:debug --workdir runs/gpt2-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.81.

The others read your text and GPT-2's tokenizer:

    python -m train.main --config configs/gpt2.py:124m --workdir runs/gpt2-124m \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Learning rates, batches, decay and warm-up are those of GPT-3's models of the same widths (its table 2.1 and
appendix B), dropout and initial values are GPT-2's. Batches are counted for several accelerators; on fewer,
raise `train.accumulate`: the numbers stay the same.
"""

from typing import NamedTuple

from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import LearnedPositions, Model
from train.config import defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    layers: int
    embed: int
    heads: int
    learning_rate: float
    batch_size: int  # rows of 1024 tokens
    accumulate: int
    remat: str


SIZES = {
    "124m": Size(12, 768, 12, 6e-4, 512, 8, "none"),
    "350m": Size(24, 1024, 16, 3e-4, 512, 16, "none"),
    "774m": Size(36, 1280, 20, 2.5e-4, 512, 16, "full"),
    "1.5b": Size(48, 1600, 25, 2e-4, 1024, 32, "full"),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, size.embed, size.heads)
    config.model.vocab_size = 50257
    config.model.dtype = "bfloat16"
    config.model.remat = size.remat
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="<|endoftext|>")
    config.data.length = 1024
    config.optim.learning_rate = size.learning_rate
    config.optim.schedule.warmup = "375e6 tokens"
    config.train.steps = "300e9 tokens"
    config.train.batch_size = size.batch_size
    config.train.accumulate = size.accumulate
    config.train.loss_chunks = 8
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def architecture(model: Model, layers: int, embed: int, heads: int):
    """GPT-2's block at any size."""
    model.num_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.qkv_bias = True
    model.attention.output_bias = True
    model.attention.dropout = 0.1
    model.feed_forward.hidden_dim = 4 * embed
    model.feed_forward.activation = "gelu_tanh"
    model.feed_forward.gated = False
    model.feed_forward.bias = True
    model.norm.name = "layernorm"
    model.norm.epsilon = 1e-5
    model.norm.bias = True
    model.positions = LearnedPositions(length=1024)
    model.tied_head = True
    model.dropout = 0.1
    model.init.kernel_std = 0.02
    model.init.embedding_std = 0.02
    model.init.position_std = 0.01
    model.init.scale_residual = True


def debug():
    """The same block small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, layers=2, embed=64, heads=4)
    config.model.positions.length = 64
    return config
