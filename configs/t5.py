"""T5 (Raffel et al. 2019) and its version 1.1, which has gated units (Shazeer 2020) and an untied head.

    configs/t5.py:debug         2 + 2 layers x 64, on the text that every Python carries
    configs/t5.py:debug-1.1     the same in version 1.1
    configs/t5.py:small         6 + 6 layers x 512         configs/t5.py:1.1-small      8 + 8 layers x 512
    configs/t5.py:base          12 + 12 layers x 768       configs/t5.py:1.1-base       12 + 12 layers x 768
    configs/t5.py:large         24 + 24 layers x 1024      configs/t5.py:1.1-large      24 + 24 layers x 1024
    configs/t5.py:3b            24 + 24 layers x 1024      configs/t5.py:1.1-xl         24 + 24 layers x 2048
    configs/t5.py:11b           24 + 24 layers x 1024      configs/t5.py:1.1-xxl        24 + 24 layers x 4096

The debug sizes need nothing but this repository:

    python -m train.main --config configs/t5.py:debug --workdir runs/t5-debug

20 steps take half a minute on two cores, most of it to compile, and end at a validation loss of 5.00 (debug-1.1: 4.95).

The others read your text and T5's tokenizer, a tokenizer.json or its spiece.model:

    python -m train.main --config configs/t5.py:base --workdir runs/t5-base \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Rows are 568 tokens of text, of which 15 % are cut out in spans of 3 in the mean: 512 tokens for the encoder, 114 for
the decoder. A text begins with <pad>, as T5's decoders do, so that one stands between texts, where T5's own rows have
nothing. The run is the paper's baseline (section 3.1): 2^19 steps of 2^16 tokens, Adafactor, a rate of 0.01 for 10000
steps and then of 1 / sqrt(step); the z-loss is that of their code. Version 1.1 is trained without dropout, which
fine-tuning turns on again. The paper's last models were trained for longer: a million steps of 2^20 tokens, which is
`--config.train.steps=1000000 --config.train.batch_size=2048`.
"""

from typing import NamedTuple

from data.objective_config import SpanCorruptionObjective
from data.source_config import TextSource
from data.tokenizer_config import BpeTokenizer, FileTokenizer
from model.config import Model, RelativePositions
from train.config import Adafactor, InverseSqrt, Optim, defaults
from train.recipes import chosen, debug_defaults


class Size(NamedTuple):
    layers: int  # of the encoder, and of the decoder
    embed: int
    heads: int
    hidden: int
    head_dim: int = 64
    second: bool = False  # version 1.1
    tensor: int = 1  # devices that share each matrix


SIZES = {
    "small": Size(6, 512, 8, 2048),
    "base": Size(12, 768, 12, 3072),
    "large": Size(24, 1024, 16, 4096),
    "3b": Size(24, 1024, 32, 16384, head_dim=128),
    "11b": Size(24, 1024, 128, 65536, head_dim=128, tensor=8),
    "1.1-small": Size(8, 512, 6, 1024, second=True),
    "1.1-base": Size(12, 768, 12, 2048, second=True),
    "1.1-large": Size(24, 1024, 16, 2816, second=True),
    "1.1-xl": Size(24, 2048, 32, 5120, second=True),
    "1.1-xxl": Size(24, 4096, 64, 10240, second=True, tensor=8),
}
DEBUG = {"debug": Size(2, 64, 4, 192, head_dim=16), "debug-1.1": Size(2, 64, 4, 128, head_dim=16, second=True)}


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg in DEBUG:
        return debug(DEBUG[arg])
    size, config = chosen(SIZES, arg, debug=DEBUG), defaults()
    architecture(config.model, size)
    optimizer(config.optim)
    config.model.vocab_size = 32128
    config.model.dtype = "bfloat16"
    config.model.remat = "full"
    config.data.source = TextSource()
    sentinels = ("<extra_id_{99..0}>",)  # of spiece.model, which has none; the last one is the first of a row
    config.data.tokenizer = FileTokenizer(end_of_text="<pad>", stop="</s>", special_tokens=sentinels)
    config.data.objective = SpanCorruptionObjective()
    config.data.length = 512
    config.train.steps = 2**19
    config.train.batch_size = 128
    config.train.z_loss = 1e-4
    config.train.loss_chunks = 2
    config.checkpoint.every = 5000
    config.eval.every = 5000
    config.mesh.data, config.mesh.fsdp, config.mesh.tensor = 1, -1, size.tensor
    return config


def architecture(model: Model, size: Size):
    """T5's stacks at any size."""
    model.num_layers = size.layers
    model.encoder_layers = size.layers
    model.embed_dim = size.embed
    model.attention.num_heads = size.heads
    model.attention.head_dim = size.head_dim
    model.attention.scale = 1.0
    model.feed_forward.hidden_dim = size.hidden
    model.feed_forward.activation = "gelu_tanh" if size.second else "relu"
    model.feed_forward.gated = size.second
    model.norm.name = "rmsnorm"
    model.norm.epsilon = 1e-6
    model.positions = RelativePositions(buckets=32, max_distance=128)
    model.tied_head = not size.second
    if model.tied_head:
        model.output_scale = size.embed**-0.5
    rate = 0.0 if size.second else 0.1
    model.dropout = model.output_dropout = model.attention.dropout = model.feed_forward.dropout = rate
    model.init.kernel_std = None
    model.init.scale_query = True
    model.init.embedding_std = 1.0
    model.init.position_std = size.embed**-0.5
    model.init.head_std = size.embed**-0.5


def optimizer(optim: Optim):
    """Adafactor, which scales updates by the size of what it updates, so that no gradient is clipped."""
    optim.optimizer = Adafactor()
    optim.learning_rate = 0.01
    optim.schedule = InverseSqrt(warmup=0, hold=10_000)
    optim.clip_norm = None


def debug(size: Size):
    """The same stacks small enough for one core, on the embedded corpus."""
    config = debug_defaults()
    architecture(config.model, size)
    optimizer(config.optim)
    config.data.tokenizer = BpeTokenizer(vocab_size=config.model.vocab_size, special_tokens=("<extra_id_{0..7}>",))
    config.data.objective = SpanCorruptionObjective()
    return config
