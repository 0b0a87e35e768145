"""GPT-3 (Brown et al. 2020) in its published sizes, with alternating dense and locally banded layers.

    configs/gpt3.py:debug               3 layers x 64, on the text that every Python carries
    configs/gpt3.py:125m                Small: 12 layers x 768
    configs/gpt3.py:350m                Medium: 24 layers x 1024
    configs/gpt3.py:760m                Large: 24 layers x 1536
    configs/gpt3.py:1.3b                XL: 24 layers x 2048
    configs/gpt3.py:2.7b                32 layers x 2560
    configs/gpt3.py:6.7b                32 layers x 4096
    configs/gpt3.py:13b                 40 layers x 5120
    configs/gpt3.py:175b                96 layers x 12288

The debug size needs nothing but this repository:

    python -m train.main --config configs/gpt3.py:debug --workdir runs/gpt3-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.83.

The others read your text and GPT-2's tokenizer:

    python -m train.main --config configs/gpt3.py:125m --workdir runs/gpt3-125m \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Sizes, batches and learning rates are the paper's table 2.1, two of whose rows contradict themselves: 24 heads of 128
do not make XL's width of 2048, which takes 16, and 40 heads of 128 make 5120 for 13B, not 5140; table D.1's parameter
counts agree with 16 and 5120. Optimizer and schedule are appendix B's: warm-up over 375 million tokens, cosine to a
tenth at 260 billion tokens, the tenth until the end; a batch that grows from 32k tokens in proportion to the tokens
read. Over how many is said only as 4 to 12 billion; which size takes how many is chosen here.

Which layers are banded and how wide the band is, the paper does not say: here every second one, over 256 tokens, and
`model.pattern` changes both. Rows hold several documents apart from one another; GPT-3's saw across their borders.

The batch grows by whole micro-batches of 16 rows. On more devices than these divide among, raise
`train.batch_ramp.start` and `increment`, and lower `train.accumulate`.
"""

from typing import NamedTuple

from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import Layer, LearnedPositions, Model
from train.config import AdamW, Cosine, LinearRamp, Optim, defaults
from train.recipes import chosen, debug_defaults

WINDOW = 256  # tokens of the band, the query itself included
MICRO_BATCH = 16  # rows, 32k tokens: what the ramp begins with and grows by


class Size(NamedTuple):
    layers: int
    embed: int
    heads: int
    learning_rate: float
    batch_size: int  # rows of 2048 tokens
    ramp: str
    tensor: int  # devices that share each matrix


SIZES = {
    "125m": Size(12, 768, 12, 6e-4, 256, "4e9 tokens", 1),
    "350m": Size(24, 1024, 16, 3e-4, 256, "4e9 tokens", 1),
    "760m": Size(24, 1536, 16, 2.5e-4, 256, "4e9 tokens", 1),
    "1.3b": Size(24, 2048, 16, 2e-4, 512, "6e9 tokens", 1),
    "2.7b": Size(32, 2560, 32, 1.6e-4, 512, "6e9 tokens", 1),
    "6.7b": Size(32, 4096, 32, 1.2e-4, 1024, "10e9 tokens", 1),
    "13b": Size(40, 5120, 40, 1e-4, 1024, "10e9 tokens", 8),
    "175b": Size(96, 12288, 96, 0.6e-4, 1600, "12e9 tokens", 8),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, size.embed, size.heads, WINDOW)
    config.model.positions.length = 2048
    config.model.vocab_size = 50257
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="<|endoftext|>")
    config.data.length = 2048
    optimizer(config.optim, size.learning_rate)
    # The tenth is reached 260e9 tokens into the run, the warm-up counted.
    config.optim.schedule = Cosine(warmup="375e6 tokens", decay="259.625e9 tokens", final=0.1)
    config.train.steps = "300e9 tokens"
    config.train.batch_size = size.batch_size
    config.train.accumulate = size.batch_size // MICRO_BATCH
    config.train.batch_ramp = LinearRamp(start=MICRO_BATCH, increment=MICRO_BATCH, duration=size.ramp)
    config.train.loss_chunks = 8
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor
    return config


def architecture(model: Model, layers: int, embed: int, heads: int, window: int):
    """GPT-3's block at any size: GPT-2's, every second layer with a band."""
    model.num_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.qkv_bias = True
    model.attention.output_bias = True
    model.feed_forward.hidden_dim = 4 * embed
    model.feed_forward.activation = "gelu_tanh"
    model.feed_forward.gated = False
    model.feed_forward.bias = True
    model.norm.name = "layernorm"
    model.norm.epsilon = 1e-5
    model.norm.bias = True
    model.positions = LearnedPositions()
    model.pattern = (Layer(), Layer(window=window))
    model.tied_head = True
    model.init.kernel_std = 0.02
    model.init.embedding_std = 0.02
    model.init.position_std = 0.01
    model.init.scale_residual = True


def optimizer(optim: Optim, learning_rate: float):
    """GPT-3's AdamW at any learning rate."""
    optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-8, weight_decay=0.1)
    optim.learning_rate = learning_rate
    optim.clip_norm = 1.0


def debug():
    """The same block, schedule and ramp small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, layers=3, embed=64, heads=4, window=16)
    config.model.positions.length = 64
    optimizer(config.optim, learning_rate=1e-3)
    config.optim.schedule = Cosine(warmup="4096 tokens", decay="20480 tokens", final=0.1)
    config.train.batch_size = 32
    config.train.accumulate = 4
    config.train.batch_ramp = LinearRamp(start=8, increment=8, duration="8192 tokens")
    return config
