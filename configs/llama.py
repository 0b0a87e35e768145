"""Llama 2 and 3 (Touvron et al. 2023; Llama Team 2024) in their published sizes, and SmolLM2, which has their block.

    configs/llama.py:debug              2 layers x 64, on the text that every Python carries
    configs/llama.py:1b                 Llama 3.2 1B: 16 layers x 2048
    configs/llama.py:3b                 Llama 3.2 3B: 28 layers x 3072
    configs/llama.py:8b                 Llama 3.1 8B: 32 layers x 4096
    configs/llama.py:70b                Llama 3.1 70B: 80 layers x 8192
    configs/llama.py:405b               Llama 3.1 405B: 126 layers x 16384
    configs/llama.py:2-7b               Llama 2 7B: 32 layers x 4096
    configs/llama.py:2-13b              Llama 2 13B: 40 layers x 5120
    configs/llama.py:2-70b              Llama 2 70B: 80 layers x 8192
    configs/llama.py:smollm2-135m       SmolLM2 135M (Allal et al. 2025): 30 layers x 576

The debug size needs nothing but this repository:

    python -m train.main --config configs/llama.py:debug --workdir runs/llama-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.85.

The others read your text and Llama 3's tokenizer:

    python -m train.main --config configs/llama.py:8b --workdir runs/llama-8b \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Peak learning rates and contexts are the papers' (of Llama 3 its table 3), 1B and 3B taking those of 8B. Where a paper
is silent on a size, AdamW, warm-up and clipping are Llama 2's. The batch is 4 million tokens, SmolLM2's 1 million; on
few accelerators, raise `train.accumulate`: the numbers stay the same.
"""

from typing import NamedTuple

from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import Layer, Llama3Scaling, Model
from train.config import AdamW, Cosine, WarmupStableDecay, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    layers: int
    embed: int
    heads: int
    kv_heads: int
    hidden: int
    tied_head: bool
    layer: Layer
    learning_rate: float
    tokens: str
    tensor: int = 1  # devices that share each matrix
    vocab: int = 128256
    end_of_text: str = "<|end_of_text|>"
    length: int = 8192  # tokens a row
    batch_size: int = 512  # rows
    schedule: Cosine | WarmupStableDecay = Cosine(warmup="2000 steps")


def llama3(factor: float) -> Layer:
    return Layer(rotary_base=500_000.0, rotary_scaling=Llama3Scaling(factor=factor))


LLAMA2 = {"vocab": 32000, "end_of_text": "</s>", "length": 4096, "batch_size": 1024}
SMOLLM2 = {
    "vocab": 49152,
    "end_of_text": "<|endoftext|>",
    "batch_size": 128,
    "schedule": WarmupStableDecay(warmup="2000 steps", decay="20%"),
}
SIZES = {
    "1b": Size(16, 2048, 32, 8, 8192, True, llama3(32.0), 3e-4, "9e12 tokens"),
    "3b": Size(28, 3072, 24, 8, 8192, True, llama3(32.0), 3e-4, "9e12 tokens"),
    "8b": Size(32, 4096, 32, 8, 14336, False, llama3(8.0), 3e-4, "15e12 tokens"),
    "70b": Size(80, 8192, 64, 8, 28672, False, llama3(8.0), 1.5e-4, "15e12 tokens", 8),
    "405b": Size(126, 16384, 128, 8, 53248, False, llama3(8.0), 8e-5, "15.6e12 tokens", 8),
    "2-7b": Size(32, 4096, 32, 32, 11008, False, Layer(), 3e-4, "2e12 tokens", **LLAMA2),
    "2-13b": Size(40, 5120, 40, 40, 13824, False, Layer(), 3e-4, "2e12 tokens", **LLAMA2),
    "2-70b": Size(80, 8192, 64, 8, 28672, False, Layer(), 1.5e-4, "2e12 tokens", 8, **LLAMA2),
    "smollm2-135m": Size(30, 576, 9, 3, 1536, True, Layer(rotary_base=100_000.0), 3e-3, "2e12 tokens", **SMOLLM2),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, size.embed, size.heads, size.kv_heads, size.hidden, size.layer)
    config.model.vocab_size = size.vocab
    config.model.tied_head = size.tied_head
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text=size.end_of_text)
    config.data.length = size.length
    config.optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-5, weight_decay=0.1)
    config.optim.learning_rate = size.learning_rate
    config.optim.schedule = size.schedule
    config.train.steps = size.tokens
    config.train.batch_size = size.batch_size
    config.train.loss_chunks = 16
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor
    return config


def architecture(model: Model, layers: int, embed: int, heads: int, kv_heads: int, hidden: int, layer: Layer):
    """Llama's block at any size."""
    model.num_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.num_kv_heads = kv_heads
    model.feed_forward.hidden_dim = hidden
    model.feed_forward.activation = "silu"
    model.feed_forward.gated = True
    model.norm.name = "rmsnorm"
    model.norm.epsilon = 1e-5
    model.pattern = (layer,)


def debug():
    """The same block small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, layers=2, embed=64, heads=4, kv_heads=2, hidden=192, layer=llama3(8.0))
    return config
