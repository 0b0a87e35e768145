"""Mistral 7B (Jiang et al. 2023), the first release with its sliding window and the third without.

    configs/mistral.py:debug            2 layers x 64, on the text that every Python carries
    configs/mistral.py:7b-v0.1          32 layers x 4096, each query seeing the last 4096 tokens
    configs/mistral.py:7b-v0.3          32 layers x 4096, all tokens; 768 more ids

The debug size needs nothing but this repository:

    python -m train.main --config configs/mistral.py:debug --workdir runs/mistral-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.81.

The others read your text and Mistral's tokenizer:

    python -m train.main --config configs/mistral.py:7b-v0.3 --workdir runs/mistral-7b \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

How Mistral 7B was trained is not published: optimizer, schedule, batch and the number of tokens are those of Llama 2 7B
(Touvron et al. 2023). The batch is 4 million tokens; on few accelerators, raise `train.accumulate`: the numbers stay
the same.
"""

from typing import NamedTuple

from configs.llama import architecture
from data.source_config import TextSource
from data.tokenizer_config import FileTokenizer
from model.config import Layer
from train.config import AdamW, defaults
from train.recipes import chosen, debug_defaults


class Release(NamedTuple):
    vocab: int
    window: int | None
    rotary_base: float
    length: int  # tokens a row


RELEASES = {
    "7b-v0.1": Release(32000, 4096, 10_000.0, 8192),
    "7b-v0.3": Release(32768, None, 1_000_000.0, 8192),
}


def get_config(arg: str | None = None):
    """The configuration of one release."""
    if arg == "debug":
        return debug()
    release, config = chosen(RELEASES, arg), defaults()
    architecture(config.model, 32, 4096, 32, 8, 14336, Layer(release.window, release.rotary_base))
    config.model.vocab_size = release.vocab
    config.model.tied_head = False
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    config.data.tokenizer = FileTokenizer(end_of_text="</s>")
    config.data.length = release.length
    config.optim.optimizer = AdamW(b1=0.9, b2=0.95, epsilon=1e-5, weight_decay=0.1)
    config.optim.learning_rate = 3e-4
    config.optim.schedule.warmup = "2000 steps"
    config.train.steps = "2e12 tokens"
    config.train.batch_size = 512
    config.train.loss_chunks = 16
    config.checkpoint.every = 1000
    config.eval.every = 1000
    config.mesh.data, config.mesh.fsdp = 1, -1
    return config


def debug():
    """The same block, with a window, small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, 2, 64, heads=4, kv_heads=2, hidden=192, layer=Layer(window=16))
    config.model.tied_head = False
    return config
