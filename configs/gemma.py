"""Gemma 1, 2 and 3 (Gemma Team 2024 and 2025), text only, in their published sizes.

    configs/gemma.py:debug              Gemma 3's block, 7 layers x 64, on the text that every Python carries
    configs/gemma.py:debug-2            Gemma 2's, 3 layers x 64
    configs/gemma.py:debug-1            Gemma 1's, 2 layers x 64
    configs/gemma.py:1-2b               18 layers x 2048       configs/gemma.py:3-270m    18 layers x 640
    configs/gemma.py:1-7b               28 layers x 3072       configs/gemma.py:3-1b      26 layers x 1152
    configs/gemma.py:2-2b               26 layers x 2304       configs/gemma.py:3-4b      34 layers x 2560
    configs/gemma.py:2-9b               42 layers x 3584       configs/gemma.py:3-12b     48 layers x 3840
    configs/gemma.py:2-27b              46 layers x 4608       configs/gemma.py:3-27b     62 layers x 5376

The debug sizes need nothing but this repository:

    python -m train.main --config configs/gemma.py:debug --workdir runs/gemma-debug

20 steps take less than a minute on two cores, most of it to compile, and end at validation losses of 5.85 (3), 5.85 (2)
and 5.92 (1).

The others read your text and Gemma's tokenizer:

    python -m train.main --config configs/gemma.py:3-270m --workdir runs/gemma-270m \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

All generations multiply tied embeddings by the root of their width and norms by 1 + scale. Gemma 2 puts norms on both
sides of each sublayer, caps scores at 50 and logits at 30, and gives every other layer a window; Gemma 3 has no caps,
normalises query and key heads, and gives five layers of six a window and a rotary base of their own. From 4B on the
published weights have seen contexts of 128k tokens, for which the other layers' positions are divided by 8.

Tokens are the reports'. Learning rates, batches and optimizers are not published: they are those of Llama 2 (Touvron et
al. 2023). The batch is 4 million tokens; on few accelerators, raise `train.accumulate`: the numbers stay the same.
"""

from typing import NamedTuple

from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import Layer, LinearScaling, Model, NoScaling
from train.config import AdamW, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    generation: int
    layers: int
    embed: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    vocab: int
    tokens: str
    window: int | None = None
    query: int | None = None  # scores are multiplied by its root's inverse; None: head_dim
    factor: float | None = None  # of linear scaling, in layers without a window
    length: int = 8192  # tokens a row
    tensor: int = 1  # devices that share each matrix


SIZES = {
    "1-2b": Size(1, 18, 2048, 8, 1, 256, 16384, 256000, "3e12 tokens"),
    "1-7b": Size(1, 28, 3072, 16, 16, 256, 24576, 256000, "6e12 tokens"),
    "2-2b": Size(2, 26, 2304, 8, 4, 256, 9216, 256000, "2e12 tokens", window=4096),
    "2-9b": Size(2, 42, 3584, 16, 8, 256, 14336, 256000, "8e12 tokens", window=4096),
    "2-27b": Size(2, 46, 4608, 32, 16, 128, 36864, 256000, "13e12 tokens", window=4096, query=144, tensor=8),
    "3-270m": Size(3, 18, 640, 4, 1, 256, 2048, 262144, "6e12 tokens", window=512, length=32768),
    "3-1b": Size(3, 26, 1152, 4, 1, 256, 6912, 262144, "2e12 tokens", window=512, length=32768),
    "3-4b": Size(3, 34, 2560, 8, 4, 256, 10240, 262208, "4e12 tokens", window=1024, factor=8.0, length=32768),
    "3-12b": Size(3, 48, 3840, 16, 8, 256, 15360, 262208, "12e12 tokens", window=1024, factor=8.0, length=32768),
    "3-27b": Size(
        3, 62, 5376, 32, 16, 128, 21504, 262208, "14e12 tokens", 1024, query=168, factor=8.0, length=32768, tensor=8
    ),
}
DEBUG = {
    "debug": Size(3, 7, 64, 4, 2, 32, 192, 512, "", window=16, factor=8.0),
    "debug-2": Size(2, 3, 64, 4, 2, 32, 192, 512, "", window=16, query=16),
    "debug-1": Size(1, 2, 64, 4, 1, 32, 192, 512, ""),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg in DEBUG:
        return debug(DEBUG[arg])
    size, config = chosen(SIZES, arg, DEBUG), defaults()
    architecture(config.model, size)
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="<eos>")
    config.data.length = size.length
    config.optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-5, weight_decay=0.1)
    config.optim.learning_rate = 3e-4
    config.optim.schedule.warmup = "2000 steps"
    config.train.steps = size.tokens
    config.train.batch_size = 4 * 2**20 // size.length
    config.train.loss_chunks = 16
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor
    return config


def architecture(model: Model, size: Size):
    """The block of any generation at any size."""
    model.vocab_size = size.vocab
    model.num_layers = size.layers
    model.embed_dim = size.embed
    model.attention.num_heads = size.heads
    model.attention.num_kv_heads = size.kv_heads
    model.attention.head_dim = size.head_dim
    model.attention.scale = (size.query or size.head_dim) ** -0.5
    model.attention.qk_norm = size.generation == 3
    model.feed_forward.hidden_dim = size.hidden
    model.feed_forward.activation = "gelu_tanh"
    model.feed_forward.gated = True
    model.norm.name = "rmsnorm"
    model.norm.epsilon = 1e-6
    model.norm.unit_offset = True
    model.norm.placement = "pre" if size.generation == 1 else "both"
    model.tied_head = True
    model.embedding_scale = size.embed**0.5
    model.pattern = pattern(size)
    if size.generation == 2:
        model.attention.soft_cap = 50.0
        model.logit_soft_cap = 30.0


def pattern(size: Size) -> tuple[Layer, ...]:
    """The layers that repeat: all alike, one with a window and one without, or five and one."""
    local = Layer(window=size.window)
    if size.generation == 3:
        scaling = NoScaling() if size.factor is None else LinearScaling(factor=size.factor)
        return (*(local,) * 5, Layer(rotary_base=1_000_000.0, rotary_scaling=scaling))
    return (local, Layer()) if size.generation == 2 else (local,)


def debug(size: Size):
    """The same block small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, size)
    return config
