"""A small decoder on the documentation and source that every Python installation carries.

    make quickstart

or, in an environment that `make setup` made,

    python -m train.main --config configs/quickstart.py --workdir runs/quickstart

Six layers x 256 of the Llama kind, byte-level BPE with 4,096 ids, rows of 256 tokens, Muon. The README's results say
how long it takes and what it reaches.
"""

from train.config import Muon, defaults


def get_config():
    """The configuration."""
    config = defaults()
    config.model.vocab_size = 4096
    config.model.num_layers = 6
    config.model.embed_dim = 256
    config.model.attention.num_heads = 8
    config.model.feed_forward.hidden_dim = 704
    config.model.unroll = 6
    config.data.source.dataset = "python_library"
    config.data.tokenizer.vocab_size = 4096
    config.data.length = 256
    config.optim.optimizer = Muon()
    config.optim.learning_rate = 2e-2
    config.optim.schedule.warmup = "5%"
    config.train.steps = 180
    config.train.batch_size = 16
    config.checkpoint.every = 60
    config.eval.every = 60
    return config
