"""BERT (Devlin et al. 2018) with any of its heads, which the names of a file's tensors tell."""

from __future__ import annotations

from collections.abc import Collection

from model.config import Attention, FeedForward, Initialization, LearnedPositions, Model, Norm
from model.hub.family import Config, Family, Field, activation, depth, deviations, fixed, same
from model.hub.layout import linear, plain

TENSORS = {
    "embedding/token": plain("embeddings.word_embeddings.weight"),
    "embedding/position": plain("embeddings.position_embeddings.weight"),
    "embedding/token_type": plain("embeddings.token_type_embeddings.weight"),
    "embedding/norm": plain("embeddings.LayerNorm"),
    "attention/query": linear("encoder.layer.{}.attention.self.query"),
    "attention/key": linear("encoder.layer.{}.attention.self.key"),
    "attention/value": linear("encoder.layer.{}.attention.self.value"),
    "attention/output": linear("encoder.layer.{}.attention.output.dense"),
    "attention_norm": plain("encoder.layer.{}.attention.output.LayerNorm"),
    "feed_forward/up": linear("encoder.layer.{}.intermediate.dense"),
    "feed_forward/down": linear("encoder.layer.{}.output.dense"),
    "feed_forward_norm": plain("encoder.layer.{}.output.LayerNorm"),
    "heads/pooler": linear("pooler.dense"),
    "heads/next_sentence": linear("cls.seq_relationship"),
    "heads/spans": linear("qa_outputs"),
    "heads/sequence": linear("classifier"),
    "heads/token": linear("classifier"),
    "head_transform/dense": linear("cls.predictions.transform.dense"),
    "head_transform/norm": plain("cls.predictions.transform.LayerNorm"),
    "head": linear("cls.predictions.decoder.weight"),
    "head_bias": plain("cls.predictions.bias"),
}
BASE = Model(
    attention=Attention(causal=False, qkv_bias=True, output_bias=True),
    feed_forward=FeedForward(activation="gelu", gated=False, bias=True),
    norm=Norm("layernorm", placement="post", bias=True),
    positions=LearnedPositions(),
    embedding_norm=True,
    language_head=False,
    init=Initialization(position_std=0.02, truncation=2.0),
)


def heads(config: Config, names: Collection[str]) -> dict:
    """The heads that a file's tensors, or its architecture, have; a classifier's kind is the architecture's."""
    architecture = next(iter(config.get("architectures") or []), "")

    def has(prefix: str, *architectures: str) -> bool:
        return any(name.startswith(prefix) for name in names) or architecture in architectures

    pooler = has("pooler.", "BertForSequenceClassification", "BertForPreTraining", "BertForNextSentencePrediction")
    language = has("cls.predictions.", "BertForMaskedLM", "BertForPreTraining")
    classifies = has("classifier.", "BertForSequenceClassification", "BertForTokenClassification")
    classes = len(config["id2label"]) if config.get("id2label") else config.get("num_labels", 2)
    token = architecture == "BertForTokenClassification" or not pooler
    return {
        "language_head": language,
        "head_transform": language,
        "head_bias": language,
        "heads.pooler": pooler,
        "heads.next_sentence": has("cls.seq_relationship.", "BertForPreTraining", "BertForNextSentencePrediction"),
        "heads.spans": has("qa_outputs.", "BertForQuestionAnswering"),
        "heads.token_classes": classes if classifies and token else 0,
        "heads.sequence_classes": classes if classifies and not token else 0,
    }


def architecture(model: Model) -> str:
    """The class whose heads are the model's; of several, the one for pre-training or the first task's."""
    if model.language_head:
        return "BertForPreTraining" if model.heads.next_sentence else "BertForMaskedLM"
    named = (
        (model.heads.spans, "BertForQuestionAnswering"),
        (model.heads.token_classes, "BertForTokenClassification"),
        (model.heads.sequence_classes, "BertForSequenceClassification"),
        (model.heads.next_sentence, "BertForNextSentencePrediction"),
    )
    return next((name for present, name in named if present), "BertModel")


def labels(model: Model) -> dict:
    classes = model.heads.token_classes or model.heads.sequence_classes
    return {"id2label": {str(i): f"LABEL_{i}" for i in range(classes)}} if classes else {}


BERT = Family(
    model_type="bert",
    base=BASE,
    fields=(
        same("vocab_size", "vocab_size"),
        depth("num_hidden_layers"),
        same("hidden_size", "embed_dim"),
        same("intermediate_size", "feed_forward.hidden_dim"),
        same("num_attention_heads", "attention.num_heads"),
        same("max_position_embeddings", "positions.length", 512),
        same("type_vocab_size", "token_types", 2),
        activation("hidden_act", "gelu_new", "gelu"),
        same("layer_norm_eps", "norm.epsilon", 1e-12, float),
        same("hidden_dropout_prob", "dropout", 0.1, float),
        same("attention_probs_dropout_prob", "attention.dropout", 0.1, float),
        same("tie_word_embeddings", "tied_head", True),
        fixed("position_embedding_type", "absolute", None),
        fixed("is_decoder", False),
        fixed("add_cross_attention", False),
        Field("", lambda config: None, labels),
        *deviations(),
    ),
    length_key="max_position_embeddings",
    tensors=TENSORS,
    prefix="bert.",
    architecture=architecture,
    bare="BertModel",
    outside=("cls.", "qa_outputs.", "classifier."),
    ignored=r"^embeddings\.position_ids$",
    aliases={
        "cls.predictions.decoder.weight": "embeddings.word_embeddings.weight",
        "cls.predictions.decoder.bias": "cls.predictions.bias",
    },
    renamed=((r"(LayerNorm)\.gamma$", r"\1.weight"), (r"(LayerNorm)\.beta$", r"\1.bias")),
    heads=heads,
)
