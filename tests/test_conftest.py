"""The tiny encoders behave as checkpoints do: they reload by the Auto classes and keep their tokenizers' traits."""

from collections.abc import Callable

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

from conftest import ENCODER_KINDS, SENTENCES


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_tiny_encoder_reloads_and_reads(kind: str, tiny_encoder: Callable[[str], str]) -> None:
    folder = tiny_encoder(kind)
    assert tiny_encoder(kind) == folder
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()
    assert tokenizer.pad_token_id == model.config.pad_token_id == (1 if "roberta" in kind else tokenizer.pad_token_id)
    assert tokenizer.is_fast and model.config.model_type == kind
    ids = tokenizer(SENTENCES[0]).input_ids
    assert (ids[0], ids[-1]) == (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert tokenizer.unk_token_id not in ids
    assert 8 < len(ids) < 40
    assert max(ids) < model.config.vocab_size
    unseen = tokenizer("\U00010348", add_special_tokens=False).input_ids
    assert (tokenizer.unk_token_id in unseen) == (kind not in ("roberta", "modernbert"))  # bytes know every character
    batch = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    assert hidden.shape == (len(SENTENCES), batch.input_ids.shape[1], 32)
    assert torch.isfinite(hidden).all()


def test_uncased_bert_drops_lone_joiners(tiny_encoder: Callable[[str], str]) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_encoder("bert"))
    assert tokenizer("LINDAU").input_ids == tokenizer("lindau").input_ids
    assert tokenizer(["a", "\u200d", "\ufe0f", "b"], is_split_into_words=True).word_ids() == [None, 0, 3, None]
