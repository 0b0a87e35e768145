"""A tokenizer whose tokens are words, with all that any objective puts into rows, so that rows read as text."""

import json

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers

from data.tokenizer import Tokenizer

END = "<|endoftext|>"
FIM = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")
MODES = ("[NLU]", "[S2S]", "[NLG]")
SENTINELS = tuple(f"<extra_id_{i}>" for i in range(30))
SPECIAL = (END, "[MASK]", *FIM, *MODES, *SENTINELS)
TEXT = (
    "the a quick brown fox jumps over lazy dog and then sleeps under old tree while small birds sing of long warm "
    "days in green valley where river runs slowly to sea that nobody has ever seen but every child knows"
)
WORDS = tuple(TEXT.split())


def word_tokenizer() -> Tokenizer:
    """Ids 0 and up are SPECIAL in their order, then `<unk>`, then WORDS."""
    vocabulary = {name: index for index, name in enumerate((*SPECIAL, "<unk>", *WORDS))}
    made = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.add_special_tokens(list(SPECIAL))
    return Tokenizer(json.loads(made.to_str()), END)


def random_texts(count: int, longest: int, seed: int = 0) -> list[str]:
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, generator.integers(1, longest))) for _ in range(count)]
