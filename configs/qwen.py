"""Qwen 2 (Qwen Team 2024) and Qwen 3 (Qwen Team 2025), the dense models, in their published sizes.

    configs/qwen.py:debug               Qwen 3's block, 2 layers x 64, on the text that every Python carries
    configs/qwen.py:debug-2             Qwen 2's
    configs/qwen.py:2-0.5b              24 layers x 896        configs/qwen.py:3-0.6b     28 layers x 1024
    configs/qwen.py:2-1.5b              28 layers x 1536       configs/qwen.py:3-1.7b     28 layers x 2048
    configs/qwen.py:2-7b                28 layers x 3584       configs/qwen.py:3-4b       36 layers x 2560
    configs/qwen.py:2-72b               80 layers x 8192       configs/qwen.py:3-8b       36 layers x 4096
                                                               configs/qwen.py:3-14b      40 layers x 5120
                                                               configs/qwen.py:3-32b      64 layers x 5120

The debug sizes need nothing but this repository:

    python -m train.main --config configs/qwen.py:debug --workdir runs/qwen-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.85, either of them.

The others read your text and Qwen's tokenizer:

    python -m train.main --config configs/qwen.py:3-0.6b --workdir runs/qwen-0.6b \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Qwen 2 has biases on queries, keys and values; Qwen 3 has none, and normalises each query and key head instead. Tokens
are the reports'. Learning rates, batches and optimizers are not published: they are those of Llama 2 (Touvron et al.
2023). The batch is 4 million tokens; on few accelerators, raise `train.accumulate`: the numbers stay the same.
"""

from typing import NamedTuple

from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import Layer, Model
from train.config import AdamW, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    generation: int
    layers: int
    embed: int
    heads: int
    kv_heads: int
    hidden: int
    tied_head: bool
    tokens: str
    vocab: int = 151936
    tensor: int = 1  # devices that share each matrix


SIZES = {
    "2-0.5b": Size(2, 24, 896, 14, 2, 4864, True, "12e12 tokens"),
    "2-1.5b": Size(2, 28, 1536, 12, 2, 8960, True, "7e12 tokens"),
    "2-7b": Size(2, 28, 3584, 28, 4, 18944, False, "7e12 tokens", vocab=152064),
    "2-72b": Size(2, 80, 8192, 64, 8, 29568, False, "7e12 tokens", vocab=152064, tensor=8),
    "3-0.6b": Size(3, 28, 1024, 16, 8, 3072, True, "36e12 tokens"),
    "3-1.7b": Size(3, 28, 2048, 16, 8, 6144, True, "36e12 tokens"),
    "3-4b": Size(3, 36, 2560, 32, 8, 9728, True, "36e12 tokens"),
    "3-8b": Size(3, 36, 4096, 32, 8, 12288, False, "36e12 tokens"),
    "3-14b": Size(3, 40, 5120, 40, 8, 17408, False, "36e12 tokens"),
    "3-32b": Size(3, 64, 5120, 64, 8, 25600, False, "36e12 tokens", tensor=8),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg in ("debug", "debug-2"):
        return debug(generation=3 if arg == "debug" else 2)
    size, config = chosen(SIZES, arg, ("debug", "debug-2")), defaults()
    head_dim = 128 if size.generation == 3 else None
    architecture(
        config.model, size.generation, size.layers, size.embed, size.heads, size.kv_heads, size.hidden, head_dim
    )
    config.model.vocab_size = size.vocab
    config.model.tied_head = size.tied_head
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="<|endoftext|>")
    config.data.length = 4096
    config.optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-5, weight_decay=0.1)
    config.optim.learning_rate = 3e-4
    config.optim.schedule.warmup = "2000 steps"
    config.train.steps = size.tokens
    config.train.batch_size = 1024
    config.train.loss_chunks = 16
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor
    return config


def architecture(
    model: Model, generation: int, layers: int, embed: int, heads: int, kv_heads: int, hidden: int, head_dim: int | None
):
    """The block of Qwen 2 or 3 at any size."""
    model.num_layers = layers
    model.embed_dim = embed
    model.attention.num_heads = heads
    model.attention.num_kv_heads = kv_heads
    model.attention.head_dim = head_dim
    model.attention.qkv_bias = generation == 2
    model.attention.qk_norm = generation == 3
    model.feed_forward.hidden_dim = hidden
    model.feed_forward.activation = "silu"
    model.feed_forward.gated = True
    model.norm.name = "rmsnorm"
    model.norm.epsilon = 1e-6
    model.pattern = (Layer(rotary_base=1_000_000.0),)


def debug(generation: int):
    """The same block small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    head_dim = 32 if generation == 3 else None  # Qwen 3's heads are wider than embed_dim / num_heads
    architecture(config.model, generation, 2, 64, heads=4, kv_heads=2, hidden=192, head_dim=head_dim)
    return config
