"""Switch (Fedus et al. 2021) as it was published: T5 with one of many experts in every second feed-forward network.

    configs/switch.py:debug             2 + 2 layers x 64, 8 experts, on the text that every Python carries
    configs/switch.py:base-8            12 + 12 layers x 768, 8 experts in every second: 0.6B
    configs/switch.py:base-16           16 experts: 1.1B
    configs/switch.py:base-32           32 experts: 2.0B
    configs/switch.py:base-64           64 experts: 3.8B
    configs/switch.py:base-128          128 experts: 7.4B
    configs/switch.py:base-256          256 experts: 14.7B
    configs/switch.py:large-128         24 + 24 layers x 1024, 128 experts: 26.3B

The debug size needs nothing but this repository:

    python -m train.main --config configs/switch.py:debug --workdir runs/switch-debug

20 steps take less than a minute on two cores, most of it to compile, and end at a validation loss of 5.01.

The others read your text and T5's tokenizer, as `configs/t5.py` does:

    python -m train.main --config configs/switch.py:base-8 --workdir runs/switch-base-8 \
        --config.data.source.paths='text/*.txt' --config.data.tokenizer.path=tokenizer.json

Sizes are those of the released checkpoints, whose networks are T5's without gates; the paper's tables have gated ones
too. Rows, spans and optimizer are T5's, the batch and the number of steps the paper's (2^20 tokens, 550,000 steps), and
so are the places of an expert (1.25 times an even share, 2 in evaluation), 0.01 of the auxiliary loss, a jitter of 0.01
and a router in float32. The paper's initial values have a tenth of T5's variance; here they are T5's own.

The experts of a layer are divided among the devices of `mesh.expert`, here all of them. Where there are more devices
than experts: `--config.mesh.expert=8 --config.mesh.fsdp=-1`.
"""

from typing import NamedTuple

from ml_collections import ConfigDict

from configs import t5
from model.config import CapacityExperts, Layer
from train.recipes import chosen


class Size(NamedTuple):
    dense: str  # the size of T5 whose networks are those of the experts
    experts: int  # of a layer


SIZES = {f"base-{experts}": Size("base", experts) for experts in (8, 16, 32, 64, 128, 256)}
SIZES["large-128"] = Size("large", 128)


def get_config(arg: str | None = None):
    """The configuration of one size."""
    if arg == "debug":
        return mixture(t5.get_config("debug"), experts=8)
    size = chosen(SIZES, arg)
    config = mixture(t5.get_config(size.dense), size.experts)
    config.train.steps = 550_000
    config.train.batch_size = 2048
    config.mesh.fsdp, config.mesh.expert = 1, -1
    return config


def mixture(config: ConfigDict, experts: int) -> ConfigDict:
    """A size of T5 with experts in every second layer of both stacks."""
    config.model.pattern = (Layer(), Layer(experts=True))
    config.model.experts = CapacityExperts(
        num_experts=experts, top_k=1, capacity_factor=1.25, eval_capacity_factor=2.0, jitter=0.01
    )
    return config
