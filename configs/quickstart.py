"""A small decoder on the documentation and source that every Python installation carries.

    make quickstart

or, in an environment that `make setup` made,

    python -m train.main --config configs/quickstart.py --workdir runs/quickstart

Four layers x 128 of the Llama kind, byte-level BPE with 4,096 ids, 8 rows of 256 tokens a step, Muon: what learns most
in five minutes on two cores, which pay for 2.5 million tokens, one epoch. The README's results say how long it takes
and what it reaches.
"""

from train.config import Muon, defaults


def get_config():
    """The configuration."""
    config = defaults()
    config.model.vocab_size = 4096
    config.model.num_layers = 4
    config.model.embed_dim = 128
    config.model.attention.num_heads = 4
    config.model.feed_forward.hidden_dim = 384
    config.model.unroll = 4
    config.data.source.dataset = "python_library"
    config.data.tokenizer.vocab_size = 4096
    config.data.length = 256
    config.optim.optimizer = Muon()
    config.optim.learning_rate = 2e-2
    config.optim.schedule.warmup = "5%"
    config.optim.schedule.final = 0.0
    config.train.steps = 1200
    config.train.batch_size = 8
    config.checkpoint.every = 300
    config.eval.every = 300
    return config
