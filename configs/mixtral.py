"""Mixtral (Jiang et al. 2024), Mistral's block with eight experts in every layer, two of them for each token.

    configs/mixtral.py:debug            2 layers x 64, 8 experts, on the text that every Python carries
    configs/mixtral.py:8x7b             32 layers x 4096: 46.7B, of which a token reads 12.9B
    configs/mixtral.py:8x22b            56 layers x 6144: 140.6B, of which a token reads 39.2B

The debug size needs nothing but this repository:

    python -m train.main --config configs/mixtral.py:debug --workdir runs/mixtral-debug

20 steps take a quarter of a minute on two cores, most of it to compile, and end at a validation loss of 5.83.

The others read your text and Mistral's tokenizer, the larger one that with 768 more ids:

    python -m train.main --config configs/mixtral.py:8x7b --workdir runs/mixtral-8x7b \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Rows are as long as the published contexts, and the loss of balance has the coefficient of the published config.json.
It is one of each row and each layer; transformers takes one over a whole batch and all layers, so that a row's share of
it depends on what else is in the batch. How Mixtral was trained is not published: optimizer, schedule, batch and the
number of tokens are those of Llama 2 (Touvron et al. 2023). The batch is 4 million tokens; on few accelerators, raise
`train.accumulate`: the numbers stay the same.

No token is dropped and none leaves its device, which reads the kernels of all experts of a layer: `mesh.data` and
`mesh.fsdp` divide the work, `mesh.fsdp` the memory as well. `mesh.tensor` and `mesh.expert` divide the memory of the
kernels alone, and devices of one `mesh.tensor` all compute the same products of experts.
"""

from typing import NamedTuple

from configs.llama import architecture
from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import DroplessExperts, Layer
from train.config import AdamW, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    layers: int
    embed: int
    heads: int
    hidden: int  # of each expert
    vocab: int
    balance: float  # coefficient of the loss of balance
    length: int  # tokens a row
    learning_rate: float


SIZES = {
    "8x7b": Size(32, 4096, 32, 14336, 32000, 0.02, 32768, 3e-4),
    "8x22b": Size(56, 6144, 48, 16384, 32768, 0.001, 65536, 1.5e-4),
}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    size, config = chosen(SIZES, arg), defaults()
    architecture(config.model, size.layers, size.embed, size.heads, 8, size.hidden, layer(1_000_000.0))
    config.model.experts = DroplessExperts(num_experts=8, top_k=2, balance_coefficient=size.balance)
    config.model.vocab_size = size.vocab
    config.model.tied_head = False
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="</s>")
    config.data.length = size.length
    config.optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-5, weight_decay=0.1)
    config.optim.learning_rate = size.learning_rate
    config.optim.schedule.warmup = "2000 steps"
    config.train.steps = "2e12 tokens"
    config.train.batch_size = 2**22 // size.length
    config.train.loss_chunks = 16
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def layer(rotary_base: float) -> Layer:
    return Layer(rotary_base=rotary_base, experts=True)


def debug():
    """The same block small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, 2, 64, heads=4, kv_heads=2, hidden=96, layer=layer(10_000.0))
    config.model.experts = DroplessExperts(num_experts=8, top_k=2)
    config.model.tied_head = False
    return config
