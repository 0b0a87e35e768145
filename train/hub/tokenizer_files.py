"""Tokenizers in the Hugging Face layout: read beside imported weights, written beside exported ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers

from data import sentencepiece_file, special_tokens, tiktoken_file, wordpiece
from data.errors import DataError
from data.files import storage_errors, write_durably
from data.tokenizer import END_OF_TEXT_NAMES, MASK_NAMES
from train.rundir import read_json

SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"),
    "cls_token": ("[CLS]",),
    "sep_token": ("[SEP]",),
    "pad_token": ("[PAD]", "<pad>"),
    "mask_token": ("[MASK]", "<mask>"),
}
SPIECE, SENTINELS = "spiece.model", 100  # T5's file, and how many sentinels its tokenizer has that it has not
MOST_SENTINELS = 10_000
SPM = "spm.model"  # that of DeBERTa's second and third versions
PIECES = ("tokenizer.model", SPIECE, SPM)
AROUND = ("[PAD]", "[CLS]", "[SEP]", "[UNK]")  # pieces of an spm.model; [MASK] stands behind all of them
MARIAN = ("source.spm", "target.spm")
IDS = ("bos_token", "eos_token", "pad_token")  # those whose ids a config.json names
BERT_RULES = {  # how tokenizer_config.json says what a BertNormalizer does
    "do_lower_case": "lowercase",
    "strip_accents": "strip_accents",
    "tokenize_chinese_chars": "handle_chinese_chars",
}


def read(directory: Path) -> tuple[dict | None, dict]:
    """(content of a tokenizer.json or None, content of tokenizer_config.json) of a model's directory.

    A vocab.txt becomes BERT's WordPiece; text is lower-cased unless the tokenizer_config.json says otherwise, and
    what that says stands above a tokenizer.json of BERT's rules. A tokenizer.model is SentencePiece's, and so are T5's
    spiece.model and DeBERTa's spm.model. Padding and truncation are turned off.
    """
    settings = read_object(directory / "tokenizer_config.json") or {}
    content = read_object(directory / "tokenizer.json")
    if content is None and (directory / "vocab.txt").exists():
        content = wordpiece.content(wordpiece.read_vocabulary(directory / "vocab.txt"), lowercase=True)
        content["post_processor"] = pair_template(content)
    for name in PIECES:
        if content is None and (directory / name).exists():
            content = from_sentencepiece(directory / name, settings)
    if content is None:
        return None, settings
    vocabulary_of(content, directory / "tokenizer.json")
    rules = content.get("normalizer") or {}
    if rules.get("type") == "BertNormalizer":
        said = {ours: settings[key] for key, ours in BERT_RULES.items() if key in settings}
        content["normalizer"] = {**rules, **said}
    content = {**content, "truncation": None, "padding": None}
    vocabulary_of(content, directory / "tokenizer_config.json")
    return content, settings


def absence(directory: Path) -> str:
    """What to say of a directory without a tokenizer that is read."""
    if not any((directory / name).exists() for name in MARIAN):
        return f"it has no tokenizer.json, no vocab.txt and no SentencePiece model called {', '.join(PIECES)}"
    return (
        f"its {' and '.join(MARIAN)} are not read: Marian's tokenizer cuts texts of either language by a model of its "
        "own and takes ids from vocab.json; to read and to write text, put a tokenizer.json of both languages beside "
        "them, whose ids are those of vocab.json, and import once more"
    )


def from_sentencepiece(path: Path, settings: Mapping[str, Any]) -> dict | None:
    """Llama's, Mistral's, Gemma's and T5's: the model, tokens added to it, and the beginning of text put before each.

    The sentinels of a spiece.model stand behind its pieces, the last one first; mT5's has them among those. Behind
    those of DeBERTa's spm.model stands [MASK], and its texts and pairs have [CLS] and [SEP] around them.
    None for a file of ranks that bears the same name: it tells no special tokens.
    """
    with storage_errors(path, "read"):
        data = path.read_bytes()
    if tiktoken_file.matches(data):
        return None
    content = sentencepiece_file.content(data, path)
    try:
        added = {entry["content"]: int(index) for index, entry in (settings.get("added_tokens_decoder") or {}).items()}
        if path.name == SPIECE and not added:
            added = sentinels(vocabulary_of(content, path), settings.get("extra_ids", SENTINELS), path)
        if path.name == SPM:
            added = deberta_tokens(vocabulary_of(content, path), settings, path) | added
        content = special_tokens.extended(content, sorted(added, key=added.get))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(f"The added_tokens_decoder in tokenizer_config.json beside {path} is none: {error}.") from error
    vocabulary = vocabulary_of(content, path)
    moved = [token for token, index in added.items() if vocabulary[token] != index]
    if moved:
        raise DataError(
            f"{path} has {moved[0]} as {vocabulary[moved[0]]}, but its tokenizer_config.json as {added[moved[0]]}. Get "
            "both from one source, or a tokenizer.json."
        )
    if path.name == SPM:
        if settings.get("do_lower_case"):
            rules = [{"type": "Lowercase"}, content["normalizer"]]
            content["normalizer"] = {"type": "Sequence", "normalizers": rules}
        return {**content, "post_processor": pair_template(content)}
    begins = settings.get("bos_token") or "<s>"
    begins = begins["content"] if isinstance(begins, dict) else begins
    if begins in vocabulary and settings.get("add_bos_token") is not False:
        content["post_processor"] = beginning(begins, vocabulary[begins])
    return content


def sentinels(vocabulary: Mapping[str, int], count: Any, path: Path) -> dict[str, int]:
    """`{token: id}` of `count` sentinels behind a vocabulary, <extra_id_0> being the last."""
    if not isinstance(count, int) or not 0 <= count <= MOST_SENTINELS:
        wanted = f"must be a whole number from 0 to {MOST_SENTINELS}"
        raise DataError(f"The extra_ids in tokenizer_config.json beside {path} is {count!r}, {wanted}.")
    last = max(vocabulary.values()) + count
    return {f"<extra_id_{index}>": last - index for index in range(count)}


def deberta_tokens(vocabulary: Mapping[str, int], settings: Mapping[str, Any], path: Path) -> dict[str, int]:
    """`{token: id}` of the special tokens of an spm.model; DataError where it is none of DeBERTa's."""
    lacking = [token for token in AROUND if token not in vocabulary]
    if lacking:
        raise DataError(f"{path} has no piece {lacking[0]}, as DeBERTa's have. Put a tokenizer.json beside it.")
    for key, known in (("do_lower_case", (False, True)), ("split_by_punct", (False,))):
        if (settings.get(key) or False) not in known:
            wanted = " or ".join(map(json.dumps, known))
            raise DataError(
                f"The {key} in tokenizer_config.json beside {path} is {settings[key]!r}; only {wanted} is implemented. "
                "Put a tokenizer.json beside it."
            )
    return {token: vocabulary[token] for token in AROUND} | {
        "[MASK]": vocabulary.get("[MASK]", max(vocabulary.values()) + 1)
    }


def read_object(path: Path) -> dict | None:
    """The JSON object in a file; None where there is none, DataError where it is damaged."""
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON: {error}. Get another copy of it.") from error
    if not isinstance(found, dict):
        raise DataError(f"{path} holds no JSON object. Get another copy of it.")
    return found


def write_json(path: Path, value: dict) -> None:
    """Write an object as people read it, and wait until it is on the disk."""
    write_durably(path, json.dumps(value, ensure_ascii=False, indent=1).encode() + b"\n")


def vocabulary_of(content: dict, path: Path) -> dict[str, int]:
    """`{token: id}`; DataError where the content is no tokenizer."""
    try:
        return tokenizers.Tokenizer.from_str(json.dumps(content)).get_vocab(with_added_tokens=True)
    except Exception as error:  # the library raises Exception itself
        raise DataError(f"{path} is not a tokenizer.json that the tokenizers library reads: {error}.") from error


def end_of_text(content: dict | None, settings: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> str | None:
    """What `data.tokenizer.end_of_text` must say: the token that begins a document, as the model has seen it.

    That is what a decoder beside an encoder is said to begin with (T5's and Marian's padding), else what the tokenizer
    itself puts before a text (Llama's and Gemma's beginning of text), else the end of text. None where the loader finds
    the same by its usual names: always so for an encoder.
    """
    if content is None:
        return None
    vocabulary = vocabulary_of(content, path)
    start = config.get("decoder_start_token_id") if config.get("is_encoder_decoder") else None
    begins = next((token for token, index in vocabulary.items() if index == start), None)
    if begins is not None:
        return begins
    if any(name in vocabulary for name in MASK_NAMES):
        return None
    begins = first_special(content.get("post_processor")) if settings.get("add_bos_token") is not False else None
    if begins in vocabulary:
        return begins
    if any(name in vocabulary for name in END_OF_TEXT_NAMES):
        return None
    return ending(vocabulary, settings, config)


def stop(content: dict | None, settings: Mapping[str, Any], config: Mapping[str, Any], path: Path) -> str | None:
    """What `data.tokenizer.stop` must say: the token with which the model ends a text; None for an encoder."""
    vocabulary = {} if content is None else vocabulary_of(content, path)
    return None if any(name in vocabulary for name in MASK_NAMES) else ending(vocabulary, settings, config)


def ending(vocabulary: dict[str, int], settings: Mapping[str, Any], config: Mapping[str, Any]) -> str | None:
    """The end of a text by its name in tokenizer_config.json, else by its id in config.json; None where neither is."""
    named = settings.get("eos_token")
    named = named.get("content") if isinstance(named, dict) else named
    number = config.get("eos_token_id")
    number = number[0] if isinstance(number, list) and number else number
    by_name = [token for token in vocabulary if token == named]
    by_number = [token for token, index in vocabulary.items() if index == number]
    return next(iter(by_name + by_number), None)


def first_special(processor: Mapping | None) -> str | None:
    """The special token that a post-processor puts before a text."""
    parts = [processor or {}, *((processor or {}).get("processors") or [])]
    templates = [part["single"] for part in parts if part.get("type") == "TemplateProcessing"]
    return next((each[0]["SpecialToken"]["id"] for each in templates if each and "SpecialToken" in each[0]), None)


def beginning(token: str, index: int) -> dict:
    """The post-processor that puts `token`, of id `index`, before a text."""
    before = [{"SpecialToken": {"id": token, "type_id": 0}}]
    texts = [{"Sequence": {"id": name, "type_id": number}} for number, name in enumerate("AB")]
    return {
        "type": "TemplateProcessing",
        "single": [*before, texts[0]],
        "pair": [*before, *texts],
        "special_tokens": {token: {"id": token, "ids": [index], "tokens": [token]}},
    }


def pair_template(content: dict) -> dict | None:
    """The post-processor that puts [CLS] and [SEP] around a text or a pair; None where there are no such tokens."""
    ids = {entry["content"]: entry["id"] for entry in content.get("added_tokens") or []}
    if "[CLS]" not in ids or "[SEP]" not in ids:
        return None
    template = tokenizers.processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(name, ids[name]) for name in ("[CLS]", "[SEP]")],
    )
    whole = tokenizers.Tokenizer(tokenizers.models.WordPiece({"[UNK]": 0}, unk_token="[UNK]"))
    whole.post_processor = template
    return json.loads(whole.to_str())["post_processor"]


def write(run: Path, directory: Path, end: str | None, stops: str | None, length: int) -> dict[str, int]:
    """Write a run's tokenizer.json into an export, and the files that tell its special tokens.

    Returns the ids that config.json names. `end`: the token that begins a document, None for an encoder; `stops`:
    the one that ends a text, None: found by its usual names.
    """
    content = read_json(run / "tokenizer.json")
    if content is None:
        return {}
    vocabulary = vocabulary_of(content, run / "tokenizer.json")
    content = {**content, "post_processor": content.get("post_processor") or pair_template(content)}
    special = {
        role: next(name for name in names if name in vocabulary)
        for role, names in SPECIAL.items()
        if any(name in vocabulary for name in names)
    }
    if end is not None:
        ends = end if end in END_OF_TEXT_NAMES else next((t for t in END_OF_TEXT_NAMES if t in vocabulary), end)
        special |= {"bos_token": end, "eos_token": stops or ends}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": length,
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if {"cls_token", "sep_token"} <= special.keys():  # or its readers tell no sentence from the other
        settings["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    rules = content.get("normalizer") or {}
    if rules.get("type") == "BertNormalizer":
        settings |= {key: rules[ours] for key, ours in BERT_RULES.items()}
    for name, value in (
        ("tokenizer.json", content),
        ("tokenizer_config.json", settings),
        ("special_tokens_map.json", special),
    ):
        with storage_errors(directory / name, "write"):
            write_json(directory / name, value)
    return {f"{role}_id": vocabulary[special[role]] for role in IDS if role in special}
