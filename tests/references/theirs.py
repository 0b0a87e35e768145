"""What the references compute, on the rows and under the names of this codebase. Needs PyTorch."""

from __future__ import annotations

import numpy as np
import torch

from tests.references.families import Case, cotangents, trained

IGNORED = -100  # transformers' label of a position without a loss


def outputs(case: Case, model, batch: dict) -> dict:
    """Tensors by the name of our head; only those of real tokens mean anything."""
    return read(case, model(**inputs(case, batch)))


def read(case: Case, found) -> dict:
    match case.outputs:
        case ("logits", "next_sentence"):
            tensors = found.prediction_logits, found.seq_relationship_logits
        case ("spans",):
            tensors = (torch.stack([found.start_logits, found.end_logits], dim=-1),)
        case _:
            tensors = (found.logits,)
    return dict(zip(case.outputs, tensors, strict=True))


def inputs(case: Case, batch: dict) -> dict:
    if case.encoder_decoder:
        names = {"input_ids": "source_tokens", "attention_mask": "source_segment_ids"}
        names |= {"decoder_input_ids": "tokens", "decoder_attention_mask": "segment_ids"}
    else:
        names = {"input_ids": "tokens", "attention_mask": "segment_ids", "position_ids": "positions"}
        names |= {"token_type_ids": "token_types"} if case.encoder else {}
    return {theirs: torch.from_numpy(batch[ours]).long() for theirs, ours in names.items()}


def labels(case: Case, batch: dict) -> dict:
    """Of those classes whose loss is one of pre-training; a decoder alone shifts its labels itself."""
    found = np.full(batch["tokens"].shape, IGNORED)
    places, counted = batch.get("masked_positions"), batch["weights"] > 0
    if case.encoder_decoder:
        found = np.where(counted, batch["targets"], IGNORED)
    elif places is None:
        found[:, 1:] = np.where(counted, batch["targets"], IGNORED)[:, :-1]
    else:
        row = np.nonzero(counted)[0]
        found[row, places[counted]] = batch["targets"][counted]
    extra = {"next_sentence_label": "next_sentence"} if "next_sentence" in case.outputs else {}
    extra = {theirs: torch.from_numpy(batch[ours]).long() for theirs, ours in extra.items()}
    return {"labels": torch.from_numpy(found).long(), **extra}


def loss_and_gradients(case: Case, model, batch: dict) -> tuple[float, dict]:
    """(the reference's own loss, gradient by its parameters' names); for other heads that of a weighted sum."""
    model.zero_grad()
    if case.pretrained:
        loss = model(**inputs(case, batch), **labels(case, batch)).loss
    else:
        found = outputs(case, model, batch)
        loss = sum(torch.sum(found[name] * torch.from_numpy(share)) for name, share in cotangents(found, batch).items())
    loss.backward()
    return loss.item(), {name: parameter.grad.numpy().copy() for name, parameter in trained(model).items()}
