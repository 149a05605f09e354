"""The relation model: markers where they belong, the method's loss, every encoder kind; its metric by hand."""

import math

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoProcessor, AutoTokenizer

from conftest import ENCODER_KINDS
from dataset_scripts import load
from modeling_more import MoReConfig, MoReDataCollator, MoReForRelationExtraction, MoReProcessor, predict
from modeling_more.encoding import encode_posts
from modeling_more.metrics import RelationF1, relation_scores
from modeling_more.processing_more import MARKERS
from re_runs import RELATIONS, pairs


def make(folder, max_length=96, **config):
    torch.manual_seed(0)
    processor = MoReProcessor.from_encoder_pretrained(folder, max_length=max_length, markers=True)
    model = MoReForRelationExtraction.from_encoder_pretrained(
        folder, num_tokens=len(processor.tokenizer), id2label=dict(enumerate(RELATIONS)), **config
    )
    return model, processor


def batch_of(model, processor, rows, two_views=False):
    batch = MoReDataCollator(processor)(encode_posts(rows, processor, model.config.label2id, two_views=two_views))
    batch.pop("index")
    return batch


def marked(processor, words, head, tail):
    """The row as tokens, word by word."""
    [post] = processor.encode([words], pairs=[(head, tail)])
    assert len(post["input_ids"]) == 1
    ids = post["input_ids"][0]
    assert [ids[place] for place in post["word_positions"]] == processor.tokenizer.convert_tokens_to_ids(
        ["<E>", "<O>"]
    )
    return processor.tokenizer.convert_ids_to_tokens(ids)[1:-1]


@pytest.mark.parametrize(
    ("head", "tail", "expected"),
    [
        ([0, 1], [3, 4], "<E> ada </E> in the <O> house </O>"),  # the tail ends the sentence
        ([3, 4], [0, 1], "<O> ada </O> in the <E> house </E>"),  # so does the head, which comes second
        ([0, 2], [2, 4], "<E> ada in </E> <O> the house </O>"),  # touching
        ([2, 4], [0, 2], "<O> ada in </O> <E> the house </E>"),
        ([0, 4], [1, 2], "<E> ada <O> in </O> the house </E>"),  # nested
        ([0, 4], [0, 2], "<E> <O> ada in </O> the house </E>"),
        ([2, 4], [0, 4], "<O> ada in <E> the house </E> </O>"),
    ],
)
def test_markers(minilm, head, tail, expected):
    _, processor = make(minilm)
    assert marked(processor, ["Ada", "in", "the", "house"], head, tail) == expected.split()


def test_markers_in_a_post_are_text(tiny_encoder):
    for kind in ENCODER_KINDS:
        _, processor = make(tiny_encoder(kind))
        [post] = processor.encode([["<E>", "Ada", "</O>", "Oslo"]], pairs=[([1, 2], [3, 4])])
        ids = processor.tokenizer.convert_tokens_to_ids(list(MARKERS))
        assert [post["input_ids"][0].count(id_) for id_ in ids] == [1, 1, 1, 1], kind


def test_wrong_spans_and_a_processor_without_markers(minilm):
    _, processor = make(minilm)
    with pytest.raises(ValueError, match="outside a post of 2 words"):
        processor.encode([["a", "b"]], pairs=[([0, 1], [1, 3])])
    plain = MoReProcessor.from_encoder_pretrained(minilm)
    with pytest.raises(ValueError, match="markers=True"):
        plain.encode([["a", "b"]], pairs=[([0, 1], [1, 2])])


def test_real_pairs_have_all_markers(shared_data, minilm, tmp_path):
    """Also the 14 test rows whose entity ends the sentence and the nested ones."""
    data = load("mnre", "none", shared_data / "mnre", tmp_path)
    _, processor = make(minilm, max_length=512)
    ids = processor.tokenizer.convert_tokens_to_ids(list(MARKERS))
    at_end = 0
    for split, rows in data.items():
        rows = rows.to_list()
        found = processor.encode([row["tokens"] for row in rows], pairs=[(row["head"], row["tail"]) for row in rows])
        for row, post in zip(rows, found, strict=True):
            [ids_of_row] = post["input_ids"]
            assert [ids_of_row.count(id_) for id_ in ids] == [1, 1, 1, 1]
            assert [ids_of_row[place] for place in post["word_positions"]] == [ids[0], ids[2]]
            opens = (ids_of_row.index(ids[0]) < ids_of_row.index(ids[2])) if row["head"][0] != row["tail"][0] else None
            assert opens in (None, row["head"][0] < row["tail"][0])
            at_end += split == "test" and max(row["head"][1], row["tail"][1]) == len(row["tokens"])
    assert at_end == 14


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_overfits_and_reloads(kind, tiny_encoder, tmp_path):
    model, processor = make(tiny_encoder(kind))
    vocabulary = model.config.encoder_config.vocab_size
    assert vocabulary == model.get_input_embeddings().num_embeddings >= len(processor.tokenizer)
    batch = batch_of(model, processor, pairs(6))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(100):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert torch.equal(model(**batch).logits.argmax(-1), batch["labels"])

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    processor_again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MoReForRelationExtraction and processor_again.markers
    batch_again = batch_of(again, processor_again, pairs(6))
    assert all(torch.equal(batch[key], batch_again[key]) for key in batch)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch_again).logits)


def test_the_encoder_is_the_checkpoints(minilm):
    from transformers import AutoModel

    model, processor = make(minilm)
    plain = AutoModel.from_pretrained(minilm).state_dict()
    own = model.encoder.state_dict()
    old = len(AutoTokenizer.from_pretrained(minilm))
    for name, value in own.items():
        source = plain[name]
        assert torch.equal(value[:old] if "word_embeddings" in name else value, source), name
    assert own["embeddings.word_embeddings.weight"].shape[0] == old + 4 == len(processor.tokenizer)


def test_checkpointing_and_half_precision(tiny_encoder):
    model, processor = make(tiny_encoder("xlm-roberta"))
    batch = batch_of(model, processor, pairs(4))
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    model(**batch).loss.backward()
    plain = model.classifier.weight.grad.clone()
    embeddings = model.get_input_embeddings().weight.grad.clone()
    model.zero_grad()
    model.gradient_checkpointing_enable()
    model(**batch).loss.backward()
    assert torch.allclose(plain, model.classifier.weight.grad, atol=1e-6)
    assert torch.allclose(embeddings, model.get_input_embeddings().weight.grad, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        output = model(**batch)
    assert output.logits.dtype == output.loss.dtype == torch.float32


def test_swapping_head_and_tail_swaps_the_halves(tiny_encoder):
    """Given the same encoder output, the representation of (t, h) is that of (h, t) with its halves swapped."""
    model, processor = make(tiny_encoder("bert"))
    seen = []
    model.norm.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    states = torch.randn(1, 40, 32)

    class Constant(torch.nn.Module):
        def forward(self, input_ids, attention_mask):
            from transformers.modeling_outputs import BaseModelOutput

            return BaseModelOutput(last_hidden_state=states[:, : input_ids.shape[1]])

    model.encoder = Constant()
    words = ["Ada", "met", "Rivera", "in", "Oslo"]
    for pair in (([0, 1], [4, 5]), ([4, 5], [0, 1])):
        model(**processor(words=words, pairs=pair))
    one, two = seen
    assert torch.equal(one[:, :32], two[:, 32:]) and torch.equal(one[:, 32:], two[:, :32])
    first = processor(words=words, pairs=([4, 5], [0, 1]))["word_positions"][0].tolist()
    assert torch.equal(two[0, :32], states[0, first[0]]) and first[0] > first[1]


def test_two_view_loss_by_hand(tiny_encoder):
    """L = CE(r) + CE(o) + KL(sg(p_r^(1/T)) || p_o^(1/T)) · T², computed with plain floats from the logits."""
    model, processor = make(tiny_encoder("bert"), two_views="kl", kl_temperature=2.0)
    model.eval()
    batch = batch_of(model, processor, pairs(5), two_views=True)
    output = model(**batch)
    total = 0.0
    for r, o, label in zip(
        output.logits.tolist(), output.text_only_logits.tolist(), batch["labels"].tolist(), strict=True
    ):

        def probabilities(scores, temperature=1.0):
            exps = [math.exp(score / temperature) for score in scores]
            return [value / sum(exps) for value in exps]

        p, q = probabilities(r, 2.0), probabilities(o, 2.0)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        total += -math.log(probabilities(r)[label]) - math.log(probabilities(o)[label]) + 4 * divergence
    assert output.loss.item() == pytest.approx(total / 5, rel=1e-5)
    assert output.kl_loss.item() > 0 and not torch.equal(output.logits, output.text_only_logits)

    # the target of the KL has no gradient: it alone moves nothing through view r
    model.config.nll_weight = 0.0
    output = model(**batch)
    logits = torch.autograd.grad(output.loss, output.logits, retain_graph=True, allow_unused=True)[0]
    assert logits is None or not logits.any()
    assert torch.autograd.grad(output.loss, output.text_only_logits)[0].abs().max() > 0


def test_class_weights_weigh_the_loss(tiny_encoder):
    weights = [1.0, 5.0, 0.5]
    model, processor = make(tiny_encoder("bert"), class_weights=weights)
    model.eval()
    batch = batch_of(model, processor, pairs(7))
    output = model(**batch)
    logs = output.logits.log_softmax(-1)
    chosen = [weights[label] for label in batch["labels"].tolist()]
    by_hand = -sum(w * logs[i, label] for i, (w, label) in enumerate(zip(chosen, batch["labels"], strict=True))) / sum(
        chosen
    )
    assert output.loss.item() == pytest.approx(by_hand.item(), rel=1e-5)
    with pytest.raises(ValueError, match="2 class_weights for 3 labels"):
        MoReConfig(id2label=dict(enumerate(RELATIONS)), class_weights=[1.0, 1.0])
    with pytest.raises(ValueError, match="no CRF"):
        make(tiny_encoder("bert"), two_views="crf_kl")


def test_a_long_post_is_read_in_windows(tiny_encoder):
    """The markers stand in different rows, in training as well, and nothing is lost."""
    model, processor = make(tiny_encoder("bert"), max_length=32)
    row = {"tokens": ["Ada", *["again"] * 40, "Oslo"], "head": [0, 1], "tail": [41, 42], "relation": "None"}
    [encoded] = encode_posts([row], processor, model.config.label2id, truncate=True)
    assert len(encoded["input_ids"]) > 1 and encoded["word_rows"][0] != encoded["word_rows"][1]
    assert encoded["cut_words"] == 0
    batch = batch_of(model, processor, [row, pairs(1)[0]], two_views=True)
    assert model(**batch).logits.shape == (2, 3)


def test_predict_pairs_and_all_ordered_pairs(tiny_encoder):
    model, processor = make(tiny_encoder("bert"))
    text = "Ada Lovelace met Rivera in Oslo"
    one, several, none = predict(
        model,
        processor,
        [
            {"id": "x", "text": text, "head": [0, 12], "tail": [27, 31]},
            {"tokens": text.split(), "entities": [[0, 2], {"start": 3, "end": 4}, [5, 6]]},
            {"text": text, "entities": []},
        ],
    )
    assert one["id"] == "x" and one["relations"][0]["head_text"] == "Ada Lovelace"
    assert one["relations"][0]["tail"] == [5, 6] and one["relations"][0]["relation"] in RELATIONS
    assert [(r["head_text"], r["tail_text"]) for r in several["relations"]] == [
        ("Ada Lovelace", "Rivera"), ("Ada Lovelace", "Oslo"), ("Rivera", "Ada Lovelace"),
        ("Rivera", "Oslo"), ("Oslo", "Ada Lovelace"), ("Oslo", "Rivera"),
    ]  # fmt: skip
    # the same pair asked for in both ways has the same answer
    assert several["relations"][1]["score"] == pytest.approx(one["relations"][0]["score"], abs=1e-6)
    assert none["relations"] == []
    # entities as they are predicted: start and end are words, but the text has characters
    found = [
        {"start": 0, "end": 2, "char_start": 0, "char_end": 12},
        {"start": 5, "end": 6, "char_start": 27, "char_end": 31},
    ]
    [both] = predict(model, processor, [{"text": text, "entities": found}])
    assert [(r["head_text"], r["tail"]) for r in both["relations"]] == [("Ada Lovelace", [5, 6]), ("Oslo", [0, 2])]
    with pytest.raises(ValueError, match='post 0: no "tail"'):
        predict(model, processor, [{"text": text, "head": [0, 3]}])


def test_scores_by_hand():
    gold = ["None", "a", "a", "b", "None", "b", "c"]
    found = ["a", "a", "b", "b", "None", "None", "c"]
    scores = relation_scores(found, gold)
    # right: a, b, c; predicted relations: a a b b c; gold relations: a a b b c
    assert (scores["precision"], scores["recall"], scores["f1"]) == (60.0, 60.0, 60.0)
    assert scores["accuracy"] == pytest.approx(100 * 4 / 7)
    assert scores["f1_per_type"]["a"] == {"f1": 50.0, "precision": 50.0, "recall": 50.0, "support": 2}
    assert scores["macro_f1"] == pytest.approx((50 + 50 + 100) / 3)
    assert RelationF1().compute(predictions=found, references=gold)["f1"] == 60.0
    always_none = relation_scores(["None"] * 7, gold)
    assert (always_none["f1"], always_none["precision"]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="7 references and 1"):
        relation_scores(["a"], gold)
