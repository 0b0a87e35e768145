"""config.json both ways, for every family; what none can say is refused by name."""

from dataclasses import replace

import pytest

from model.config import (
    Attention,
    CapacityExperts,
    DisentangledPositions,
    DroplessExperts,
    FeedForward,
    Layer,
    Llama3Scaling,
    NoPositions,
    SinusoidalPositions,
)
from model.hub.families import (
    FAMILIES,
    canonical,
    canonical_names,
    exported_name,
    expressing,
    family_of,
    from_config,
    places,
    tensor_of,
    to_config,
)
from model.hub.family import HubError
from tests.model.hub.small import CONFIGS, model_of
from tests.model.small import declared
from train.hub.importer import by_path

NAMES = list(CONFIGS)


def paths(model) -> list[str]:
    return list(by_path(declared(model)))


@pytest.mark.parametrize("name", NAMES)
def test_a_config_read_from_what_was_written_is_the_same(name):
    model = model_of(name)
    family, written = expressing(model, 64, paths(model))
    assert family is family_of(CONFIGS[name])
    assert written["architectures"] == CONFIGS[name].get("architectures", written["architectures"])
    names = {tensor_of(family, path).name for path in paths(model)}
    assert canonical(from_config(written, names)) == canonical(model)


def test_every_family_is_tried():
    assert {config["model_type"] for config in CONFIGS.values()} == set(FAMILIES)


@pytest.mark.parametrize("name", NAMES)
def test_every_parameter_has_its_tensors_and_no_two_layers_share_one(name):
    model = model_of(name)
    family = family_of(CONFIGS[name])
    held = [(place.name, place.part) for path in paths(model) for place in places(family, model, path)]
    assert len(held) == len(set(held))
    exported = {exported_name(family, model, tensor) for tensor, _ in held}
    assert set(canonical_names(family, exported)) == {tensor for tensor, _ in held}


def test_layers_of_a_pattern_and_its_remainder_are_the_models_layers():
    """Five layers in a pattern of three: one period, and two left over."""
    model = model_of("gemma3")
    assert [layer.window for layer in model.pattern] == [3, 3, None]
    found = {path: [place.name for place in places(FAMILIES["gemma3_text"], model, path)] for path in paths(model)}
    assert found["stack/2/attention/query/kernel"] == ["layers.2.self_attn.q_proj.weight"]
    assert found["remainder/1/attention/query/kernel"] == ["layers.4.self_attn.q_proj.weight"]
    assert found["stack/0/attention_post_norm/scale"] == ["layers.0.post_attention_layernorm.weight"]


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ("llama", {"hidden_act": "tanh"}, "tanh"),
        ("llama", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ("llama", {"hidden_size": "wide"}, "llama"),
        ("llama", {"num_hidden_layers": 10**12}, "num_hidden_layers"),
        ("llama", {"rope_scaling": {"rope_type": "linear"}}, "factor"),
        ("llama", {"quantization_config": {"bits": 4}}, "quantization_config"),
        ("llama", {"num_key_value_heads": 3}, "num_kv_heads"),
        ("llama", {"model_type": "mamba"}, "mamba"),
        ("llama", {"model_type": {}}, "model_type"),
        ("llama", {"intermediate_size": 2**31}, "feed_forward.hidden_dim is 2147483648"),
        ("llama", {"num_attention_heads": 0, "head_dim": None}, "ZeroDivisionError"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("bert", {"is_decoder": True}, "is_decoder"),
        ("deberta", {"relative_attention": None}, "relative_attention"),
        ("deberta", {"position_biased_input": True}, "position_biased_input"),
        ("deberta", {"pos_att_type": "c2p|p2p"}, "pos_att_type"),
        ("deberta", {"pos_att_type": None}, "content_to_position"),
        ("deberta", {"talking_head": True}, "talking_head"),
        ("deberta", {"share_att_key": True}, "share_att_key"),
        ("deberta", {"embedding_size": 8}, "embedding_size"),
        ("deberta", {"pooler_hidden_act": "mish"}, "pooler_hidden_act"),
        ("deberta_decoder", {"mask_decoder_passes": -1}, "mask_decoder_passes -1"),
        ("deberta_decoder", {"mask_decoder_passes": "2"}, "mask_decoder_passes '2'"),
        ("deberta_decoder", {"mask_decoder_passes": 2.0}, "mask_decoder_passes 2.0"),
        ("deberta_decoder", {"mask_decoder_passes": True}, "mask_decoder_passes True"),
        ("deberta_spans", {"mask_decoder_passes": "0"}, "mask_decoder_passes '0'"),
        ("deberta2", {"share_att_key": False}, "share_att_key"),
        ("deberta2", {"norm_rel_ebd": "batch_norm"}, "norm_rel_ebd"),
        ("deberta2", {"position_buckets": 5}, "buckets"),
        ("deberta2", {"max_relative_positions": 3}, "span"),
        ("deberta2", {"conv_kernel_size": 2}, "convolution.size"),
        ("deberta2", {"conv_groups": 2}, "conv_groups"),
        ("deberta2", {"attention_head_size": 8}, "attention_head_size"),
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("gpt_neo", {"attention_types": [[["global"], 10**9]]}, "attention_types"),
        ("gemma", {"hidden_activation": "silu"}, "hidden_activation"),
        ("gemma3", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
        ("gemma3", {"layer_types": ["full_attention"]}, "layer_types"),
        ("t5", {"feed_forward_proj": "gated-tanh"}, "feed_forward_proj 'gated-tanh'"),
        ("t5", {"feed_forward_proj": 5}, "AttributeError"),
        ("t5", {"num_decoder_layers": 0}, "num_decoder_layers"),
        ("t5", {"is_encoder_decoder": False}, "is_encoder_decoder"),
        ("t5", {"relative_attention_num_buckets": 1}, "positions.buckets"),
        ("mixtral", {"num_local_experts": 1}, "experts.num_experts"),
        ("mixtral", {"num_experts_per_tok": 4}, "experts.top_k"),
        ("mixtral", {"num_local_experts": "many"}, "num_local_experts 'many'"),
        ("mixtral", {"num_local_experts": 10**9}, "num_local_experts 1000000000"),
        ("mixtral", {"router_jitter_noise": 0.1}, "router_jitter_noise"),
        ("marian", {"decoder_attention_heads": 2}, "encoder_attention_heads 4 and decoder_attention_heads 2"),
        ("marian", {"decoder_vocab_size": 7}, "decoder_vocab_size 7"),
        ("marian", {"normalize_before": True}, "normalize_before"),
        ("marian", {"share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings"),
        ("marian", {"decoder_layers": 0}, "decoder_layers"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(name, changes, said):
    with pytest.raises(HubError, match=said):
        from_config({**CONFIGS[name], **changes})


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads"])
def test_a_size_that_is_missing_is_named(key):
    with pytest.raises(HubError, match=key):
        from_config({k: value for k, value in CONFIGS["llama"].items() if k != key})


@pytest.mark.parametrize(
    ("name", "change", "field"),
    [
        ("llama", {"positions": NoPositions()}, "model.positions"),
        ("llama", {"logit_soft_cap": 3.0}, "model.logit_soft_cap"),
        ("llama", {"head_bias": True}, "head_bias"),
        ("llama", {"pattern": (Layer(window=3), Layer(rotary_base=9.0))}, "model.pattern"),
        ("mistral", {"pattern": (Layer(window=3), Layer())}, "model.pattern"),
        ("gemma3", {"pattern": (Layer(3, 10.0, Llama3Scaling()), Layer(None, 99.0))}, "model.pattern"),
        ("gpt2", {"tied_head": False}, "parameter head"),
        ("bert_masked", {"head_transform": False}, "head_transform"),
        ("t5", {"positions": NoPositions()}, "positions.buckets"),
        ("t5", {"output_scale": 0.5}, "output_scale"),
        ("t5", {"encoder_layers": 0}, "num_layers 0"),
        ("t5", {"attention": Attention(num_heads=4, head_dim=6)}, "scale is"),
        ("t5_1.1", {"feed_forward": FeedForward(24, "gelu")}, "gated-gelu is its tanh form"),
        ("mixtral", {"experts": CapacityExperts()}, "balance_coefficient|model.experts"),
        ("mixtral", {"pattern": (Layer(window=3, experts=True), Layer(window=3))}, "model.pattern"),
        ("mixtral", {"feed_forward": FeedForward(24, bias=True)}, "bias"),
        ("marian", {"positions": SinusoidalPositions()}, "layout is 'interleaved'"),
        ("marian", {"embedding_scale": 3.0}, "embedding_scale"),
    ],
)
def test_what_a_family_cannot_express_is_named(name, change, field):
    model = replace(model_of(name), **change)
    with pytest.raises(HubError, match=field):
        to_config(model, family_of(CONFIGS[name]), 64, paths(model))


def test_experts_of_limited_capacity_are_told_to_be_in_no_family():
    model = replace(model_of("t5"), experts=CapacityExperts(), pattern=(Layer(experts=True),))
    with pytest.raises(HubError, match="model.experts.name is capacity: .* in no family"):
        expressing(model, 64, paths(model))


def test_two_classifiers_have_one_name_in_bert():
    model = model_of("bert_sequence")
    both = replace(model, heads=replace(model.heads, token_classes=4))
    with pytest.raises(HubError, match="sequence_classes"):
        to_config(both, FAMILIES["bert"], 12, paths(both))


def test_what_only_training_reads_does_not_matter():
    model = replace(model_of("llama"), dtype="bfloat16", remat="full", unroll=2, dropout=0.1)
    assert expressing(model, 64, paths(model))[0].model_type == "llama"
    mixtral = model_of("mixtral")
    model = replace(mixtral, experts=replace(mixtral.experts, groups=4, z_coefficient=0.001))
    assert expressing(model, 64, paths(model))[0].model_type == "mixtral"


@pytest.mark.parametrize(
    ("given", "heads"),
    [
        (["pooler.dense.weight"], {"pooler"}),
        (["bert.pooler.dense.weight", "cls.seq_relationship.weight"], {"pooler", "next_sentence"}),
        (["bert.embeddings.word_embeddings.weight"], set()),
        (["qa_outputs.bias"], {"spans"}),
        (["bert.pooler.dense.bias", "classifier.bias"], {"pooler", "sequence_classes"}),
        (["classifier.bias"], {"token_classes"}),
    ],
)
def test_names_of_tensors_tell_the_heads_of_bert(given, heads):
    found = from_config(CONFIGS["bert"], given).heads
    assert {name for name, value in vars(found).items() if value and name != "pooler_activation"} == heads


def test_old_names_prefixes_and_buffers():
    given = ["bert.embeddings.LayerNorm.gamma", "embeddings.position_ids", "cls.predictions.transform.LayerNorm.beta"]
    assert canonical_names(FAMILIES["bert"], given) == {
        "embeddings.LayerNorm.weight": given[0],
        "cls.predictions.transform.LayerNorm.bias": given[2],
    }
    gpt2 = canonical_names(
        FAMILIES["gpt2"], ["transformer.h.0.attn.bias", "h.0.attn.masked_bias", "h.0.attn.c_attn.bias"]
    )
    assert list(gpt2) == ["h.0.attn.c_attn.bias"]
    given = ["lm_predictions.lm_head.bias", "lm_predictions.lm_head.dense.weight", "deberta.embeddings.position_ids"]
    deberta = canonical_names(FAMILIES["deberta"], given)
    assert list(deberta) == ["cls.predictions.bias", "cls.predictions.transform.dense.weight"]
    llama = canonical_names(FAMILIES["llama"], ["model.layers.0.self_attn.rotary_emb.inv_freq", "lm_head.weight"])
    assert list(llama) == ["lm_head.weight"]
    t5 = canonical_names(
        FAMILIES["t5"],
        [
            "encoder.block.1.layer.1.DenseReluDense.wi.weight",
            "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
        ],
    )
    assert t5 == {"encoder.block.1.layer.1.DenseReluDense.wi_1.weight": next(iter(t5.values()))}
    with pytest.raises(HubError, match="one and the same"):
        canonical_names(FAMILIES["bert"], ["bert.pooler.dense.bias", "pooler.dense.bias"])


def test_the_forms_of_t5_differ_in_their_heads():
    """The first one's is tied and scaled; newer files say that any is tied, and hold it where it is not."""
    first, second, third = model_of("t5"), model_of("t5_1.1"), model_of("mt5")
    assert (first.tied_head, first.output_scale) == (True, 16**-0.5)
    assert (second.tied_head, second.output_scale) == (third.tied_head, third.output_scale) == (False, None)
    newer = {**CONFIGS["t5_1.1"], "tie_word_embeddings": True, "scale_decoder_outputs": False}
    assert from_config(newer, ["lm_head.weight"]) == second
    assert from_config(newer, ["shared.weight"]) == replace(second, tied_head=True)
    assert from_config(CONFIGS["t5"], ["lm_head.weight"]) == first
    assert from_config({**CONFIGS["mt5"], "tie_word_embeddings": True}, ["lm_head.weight"]) == third


def test_a_mixtral_that_says_little_is_as_published():
    """The defaults of its own configuration in transformers, which are not those of Mistral."""
    config = {key: value for key, value in CONFIGS["mixtral"].items() if "experts" not in key and "window" not in key}
    model = from_config(config)
    assert model.pattern == (Layer(rotary_base=1_000_000.0, experts=True),)
    assert model.experts == DroplessExperts(num_experts=8, top_k=2, balance_coefficient=0.001)
    assert model.norm.epsilon == 1e-5 and not model.tied_head and model.feed_forward.gated


def test_the_forms_of_t5_name_their_feed_forwards_otherwise():
    family = FAMILIES["t5"]
    for name, expected in (("t5", {"wi", "wo"}), ("t5_1.1", {"wi_0", "wi_1", "wo"})):
        model = model_of(name)
        held = [place.name for path in paths(model) for place in places(family, model, path)]
        names = [exported_name(family, model, tensor) for tensor in held]
        assert {name.split(".")[-2] for name in names if "DenseReluDense" in name} == expected
        assert sorted(canonical_names(family, names)) == sorted(held)


@pytest.mark.parametrize(
    ("given", "heads", "passes"),
    [
        (["pooler.dense.weight", "classifier.bias"], {"pooler", "sequence_classes"}, 0),
        (["deberta.embeddings.LayerNorm.bias", "classifier.bias"], {"token_classes"}, 0),
        (["lm_predictions.lm_head.bias", "deberta.embeddings.position_embeddings.weight"], set(), 2),
        (["lm_predictions.lm_head.bias"], set(), 2),  # and its table is missing
        (["qa_outputs.bias", "deberta.embeddings.position_embeddings.weight"], {"spans"}, 0),
        (["mask_predictions.dense.bias"], {"replaced"}, 0),
    ],
)
def test_names_of_tensors_tell_the_heads_of_deberta(given, heads, passes):
    config = {**CONFIGS["deberta_decoder"], "architectures": None, "mask_decoder_passes": 2}
    found = from_config(config, given)
    assert {name for name, value in vars(found.heads).items() if value and name != "pooler_activation"} == heads
    assert found.mask_decoder_passes == passes
    assert found.language_head == any(name.startswith("lm_predictions") for name in given)


def test_published_spellings_of_deberta():
    """Terms between bars, the farthest distance that of the longest context, buckets that are none."""
    first = from_config({**CONFIGS["deberta"], "max_relative_positions": -1, "position_buckets": -1})
    assert first.positions == DisentangledPositions(span=12)
    assert from_config({**CONFIGS["deberta"], "pos_att_type": "P2C | C2P"}) == from_config(CONFIGS["deberta"])
    assert from_config({**CONFIGS["deberta2"], "position_buckets": -1}).positions.buckets is None


def test_newer_files_say_rope_parameters():
    old = CONFIGS["llama"]
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {**old["rope_scaling"], "rope_theta": old["rope_theta"]}
    assert from_config(new) == from_config(old)
    old = CONFIGS["gemma3"]
    new = {key: value for key, value in old.items() if not key.startswith("rope_")}
    new["rope_parameters"] = {
        "full_attention": {**old["rope_scaling"], "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    }
    assert from_config(new) == from_config(old)
