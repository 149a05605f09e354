"""Batches: padding, the second view, and an order that depends on seed and epoch alone."""

from collections import Counter

import pytest
import torch

from modeling_more.data_collator import LengthBatchSampler, MoReDataCollator
from modeling_more.encoding import encode_posts
from modeling_more.processing_more import MoReProcessor
from modeling_more.tagging import bioes_labels

LENGTHS = [int(x) for x in torch.randint(5, 80, (203,), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize("options", [{}, {"max_tokens": 400}, {"by_length": False}])
def test_every_row_once_and_reproducible(options):
    sampler = LengthBatchSampler(LENGTHS, 8, seed=3, **options)
    orders = []
    for epoch in (0, 1, 0):
        sampler.set_epoch(epoch)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        assert Counter(row for batch in batches for row in batch) == Counter(range(len(LENGTHS)))
        orders.append(batches)
    assert orders[0] == orders[2] != orders[1]
    assert list(LengthBatchSampler(LENGTHS, 8, seed=4, **options)) != orders[0]


def test_grouping_saves_padding():
    def padded(sampler):
        return sum(len(batch) * max(LENGTHS[row] for row in batch) for batch in sampler)

    grouped = LengthBatchSampler(LENGTHS, 8, by_length=True)
    plain = LengthBatchSampler(LENGTHS, 8, by_length=False)
    assert padded(grouped) < 1.15 * sum(LENGTHS) < padded(plain)


def test_token_budget_holds_and_a_long_row_stands_alone():
    sampler = LengthBatchSampler([*LENGTHS, 1000], 8, max_tokens=300)
    for batch in sampler:
        assert len(batch) * max([*LENGTHS, 1000][row] for row in batch) <= 300 or batch == [203]
    assert sampler.batches_in(2)[0] == len(sampler)


def test_batches_divide_among_processes():
    sampler = LengthBatchSampler(LENGTHS, 8, max_tokens=300, multiple_of=4)
    assert len(sampler) % 4 == 0
    assert {row for batch in sampler for row in batch} == set(range(len(LENGTHS)))
    for rows in range(1, 30):  # fewer batches than processes: else some process would wait for ever
        assert len(LengthBatchSampler([1] * rows, 4, multiple_of=8)) == 8


@pytest.mark.parametrize("options", [{}, {"max_tokens": 300}])
def test_processes_share_the_batches_and_lose_none(options):
    """Through accelerate's own sharding, the one short batch standing anywhere."""
    from accelerate.data_loader import BatchSamplerShard

    for seed in range(6):
        sampler = LengthBatchSampler(LENGTHS, 8, seed=seed, multiple_of=2, **options)
        shards = [list(BatchSamplerShard(sampler, 2, process, even_batches=False)) for process in (0, 1)]
        assert len(shards[0]) == len(shards[1]) == len(sampler) // 2
        assert sorted(map(tuple, [*shards[0], *shards[1]])) == sorted(map(tuple, sampler))


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows"):
        LengthBatchSampler([], 8)


def test_collator(tiny_encoder):
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"))
    label2id = {label: i for i, label in enumerate(bioes_labels(["PER"]))}
    posts = [
        {"tokens": ["Ada", "Lovelace"], "ner_tags": ["B-PER", "I-PER"],
         "knowledge_text": [{"title": "Ada", "text": "a person .", "score": 1.0}]},
        {"tokens": ["Oslo", ",", "Ada"], "ner_tags": ["O", "O", "I-PER"], "knowledge_text": []},
    ]  # fmt: skip
    batch = MoReDataCollator(processor)(encode_posts(posts, processor, label2id, two_views=True))
    assert batch["index"].tolist() == [0, 1]
    assert batch["labels"].tolist() == [
        [label2id["B-PER"], label2id["E-PER"], 0],
        [label2id["O"], label2id["O"], label2id["S-PER"]],  # a stray I- begins an entity
    ]
    assert batch["word_mask"].tolist() == [[True, True, False], [True, True, True]]
    assert batch["input_ids"].shape[1] > batch["text_only_input_ids"].shape[1]
    # without knowledge both views are the same row
    length = int(batch["text_only_attention_mask"][1].sum())
    assert torch.equal(batch["input_ids"][1, :length], batch["text_only_input_ids"][1, :length])
    assert int(batch["attention_mask"][1].sum()) == length
