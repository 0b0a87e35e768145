"""BERT (Devlin et al. 2018): masked tokens and next sentences, on pairs of sentences.

    configs/bert.py:debug               2 layers x 64, on the text that every Python carries

The debug size needs nothing but this repository:

    python -m train.main --config configs/bert.py:debug --workdir runs/bert-debug

Rows are `[CLS] A [SEP] B [SEP]`; 15 % of the tokens are predicted, and whether B follows A. The optimizer is that of
BERT's code: AdamW without bias correction, under which everything but norms and biases decays.
"""

from data.config import MaskedObjective, WordPieceTokenizer
from model.config import LearnedPositions, Model
from train.config import AdamW, Linear, Optim, defaults


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return debug()
    raise ValueError(f"the size is {arg or 'missing'}, must be debug, as in configs/bert.py:debug")


def architecture(model: Model, layers: int, embed: int, heads: int, positions: int = 512):
    """BERT's encoder at any size, with the heads of its pre-training."""
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
    model.norm.epsilon = 1e-12
    model.norm.bias = True
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
    config = defaults()
    architecture(config.model, layers=2, embed=64, heads=4, positions=64)
    optimizer(config.optim, learning_rate=1e-3)
    config.model.vocab_size = 1024
    config.data.tokenizer = WordPieceTokenizer(vocab_size=1024, max_characters=200)
    config.data.objective = MaskedObjective(max_predictions=10, next_sentence=True, copies=1)
    config.data.length = 64
    config.optim.schedule.warmup = "10%"
    config.train.steps = 20
    config.checkpoint.every = 10
    config.eval.every = 10
    config.eval.batches = 4
    return config
