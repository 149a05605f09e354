"""The entity model: every encoder kind learns, reloads bit-equal and reads each word at its own sub-token."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    AutoProcessor,
    AutoTokenizer,
)

from conftest import ENCODER_KINDS, SENTENCES
from modeling_more.configuration_more import MoReConfig
from modeling_more.data_collator import MoReDataCollator
from modeling_more.encoding import encode_posts
from modeling_more.metrics import entity_scores
from modeling_more.modeling_more import MoReForTokenClassification
from modeling_more.pipelines import predict
from modeling_more.processing_more import MoReProcessor
from modeling_more.tagging import bioes_labels

LABELS = bioes_labels(["PER", "LOC"])
ENTRY = {"title": "Lindau", "text": "Lindau is a town and an island in Bavaria .", "score": 3.0}
POSTS = [
    {"tokens": ["Ada", "Lovelace", "met", "Babbage", "."], "ner_tags": ["B-PER", "I-PER", "O", "B-PER", "O"]},
    {"tokens": ["Lindau", "lies", "on", "Lake", "Constance"], "ner_tags": ["B-LOC", "O", "O", "B-LOC", "I-LOC"]},
    {"tokens": ["Rivera", "scored", "in", "Oslo"], "ner_tags": ["B-PER", "O", "O", "B-LOC"]},
    {"tokens": ["no", "entity", "here", "\ufe0f", "!"], "ner_tags": ["O"] * 5},
]
for _post in POSTS:
    _post["knowledge_text"] = [ENTRY]


def make(folder: str, **config) -> tuple[MoReForTokenClassification, MoReProcessor]:
    torch.manual_seed(0)
    processor = MoReProcessor.from_encoder_pretrained(folder, max_length=128)
    model = MoReForTokenClassification.from_encoder_pretrained(folder, id2label=dict(enumerate(LABELS)), **config)
    return model, processor


def batch_of(model, processor, posts=POSTS, two_views=False):
    batch = MoReDataCollator(processor)(encode_posts(posts, processor, model.config.label2id, two_views=two_views))
    batch.pop("index")
    return batch


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_overfits_reloads_and_reads_first_pieces(kind, tiny_encoder, tmp_path):
    model, processor = make(tiny_encoder(kind))
    batch = batch_of(model, processor)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    model.train()
    for _ in range(150):
        loss = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    tags = [
        [model.config.id2label[i] for i in path] for path in model.decode(model(**batch).logits, batch["word_mask"])
    ]
    assert entity_scores(tags, [post["ner_tags"] for post in POSTS])["f1"] == 100

    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    processor_again = AutoProcessor.from_pretrained(tmp_path)
    assert type(again) is MoReForTokenClassification and type(processor_again) is MoReProcessor
    batch_again = batch_of(again, processor_again)
    assert all(torch.equal(batch[key], batch_again[key]) for key in batch)
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, again(**batch_again).logits)
        assert torch.equal(model(**batch).loss, again(**batch_again).loss)
    assert processor_again.to_dict() == processor.to_dict()


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_emission_belongs_to_its_word(kind, tiny_encoder):
    """With the encoder cut down to its word embeddings, changing word i changes emission i and no other."""
    model, processor = make(tiny_encoder(kind))
    model.eval()

    class Embeddings(torch.nn.Module):
        def __init__(self, table):
            super().__init__()
            self.table = table

        def forward(self, input_ids, attention_mask):
            from transformers.modeling_outputs import BaseModelOutput

            return BaseModelOutput(last_hidden_state=self.table(input_ids))

    model.encoder = Embeddings(model.encoder.get_input_embeddings())
    # words that begin with different sub-tokens (a tiny vocabulary begins many with the same one)
    candidates = [word for sentence in SENTENCES for word in sentence.split()]
    pieces = [word[0] for word in processor._tokenize_words([candidates])[0]]
    *words, other = list({piece: word for piece, word in zip(pieces, candidates, strict=True)}.values())[:5]
    before = model(**processor(words=words, knowledge=[ENTRY])).logits[0]
    for index in range(len(words)):
        changed = list(words)
        changed[index] = other
        after = model(**processor(words=changed, knowledge=[ENTRY])).logits[0]
        moved = (before != after).any(-1).tolist()
        assert moved == [i == index for i in range(len(words))]


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_changing_a_word_changes_its_emission(kind, tiny_encoder):
    model, processor = make(tiny_encoder(kind))
    model.eval()
    with torch.no_grad():
        one = model(**processor(words=["Ada", "in", "Lindau"])).logits[0]
        two = model(**processor(words=["Ada", "in", "Oslo"])).logits[0]
        three = model(**processor(words=["Ada", "in", "Lindau"], knowledge=[ENTRY])).logits[0]
    assert not torch.allclose(one[2], two[2])
    assert not torch.allclose(one[2], three[2])  # knowledge reaches the words


@pytest.mark.parametrize("kind", ENCODER_KINDS)
def test_encoder_is_the_checkpoint_bit_for_bit(kind, tiny_encoder):
    model, _ = make(tiny_encoder(kind))
    source = load_file(Path(tiny_encoder(kind)) / "model.safetensors")
    loaded = model.encoder.state_dict()
    assert set(loaded) <= set(source)
    assert len(loaded) > 10
    for name, tensor in loaded.items():
        assert torch.equal(tensor, source[name]), name


def test_checkpoint_with_a_task_prefix_loads_whole(tiny_encoder, tmp_path):
    """xlm-roberta's published checkpoint is a masked language model: its encoder lies under `roberta.`."""
    config = AutoConfig.from_pretrained(tiny_encoder("xlm-roberta"))
    language_model = AutoModelForMaskedLM.from_config(config)
    language_model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_encoder("xlm-roberta")).save_pretrained(tmp_path)
    source = load_file(tmp_path / "model.safetensors")
    assert any(name.startswith("roberta.") for name in source)
    model, _ = make(str(tmp_path))
    for name, tensor in model.encoder.state_dict().items():
        assert torch.equal(tensor, source["roberta." + name]), name


def test_checkpoint_without_encoder_weights_is_refused(tiny_encoder, tmp_path):
    from safetensors.torch import save_file

    model = AutoModel.from_pretrained(tiny_encoder("bert"))
    model.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    save_file(
        {name: t for name, t in weights.items() if "layer.1" not in name},
        tmp_path / "model.safetensors",
        metadata={"format": "pt"},
    )
    with pytest.raises(ValueError, match=r"lacks weights: encoder\.layer\.1\..* and 13 more; pred"):
        MoReForTokenClassification.from_encoder_pretrained(str(tmp_path), id2label=dict(enumerate(LABELS)))


def test_two_view_loss_is_the_formula(tiny_encoder):
    model, processor = make(tiny_encoder("bert"), two_views="crf_kl", kl_temperature=0.5, nll_weight=0.3)
    model.eval()
    with torch.no_grad():  # views that differ by more than rounding
        model.classifier.weight *= 3
    batch = batch_of(model, processor, two_views=True)
    output = model(**batch)
    # each part again, post by post and without padding
    nll, kl = 0.0, 0.0
    for row in range(len(POSTS)):
        n = int(batch["word_mask"][row].sum())
        mask = torch.ones(1, n, dtype=torch.bool)
        r, o = output.logits[row : row + 1, :n], output.text_only_logits[row : row + 1, :n]
        for view in (r, o):
            nll -= model.crf.log_likelihood(view, batch["labels"][row : row + 1, :n], mask).item()
        q_r = (model.crf.marginals(r, mask).log() / 0.5).softmax(-1)
        q_o = (model.crf.marginals(o, mask).log() / 0.5).softmax(-1)
        kl += (q_r * (q_r.log() - q_o.log())).sum().item() * 0.25
    assert output.nll_loss.item() == pytest.approx(nll / 4, rel=1e-5)
    assert output.kl_loss.item() == pytest.approx(kl / 4, rel=1e-3)
    assert output.loss.item() == pytest.approx(0.3 * nll / 4 + 0.7 * kl / 4, rel=1e-4)


@pytest.mark.parametrize("two_views", ["crf_kl", "kl"])
def test_kl_alone_moves_the_encoder_but_not_through_its_target(two_views, tiny_encoder):
    model, processor = make(tiny_encoder("bert"), two_views=two_views, nll_weight=0.0)
    batch = batch_of(model, processor, two_views=True)
    model.eval()
    model(**batch).loss.backward()
    moved = [p for p in model.encoder.parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert len(moved) > 10

    # the target gives no gradient: a leaf under each view's emissions shows it
    output = model(**batch)
    target, other = (t.detach().requires_grad_() for t in (output.logits, output.text_only_logits))
    model.zero_grad()
    model._kl_loss(target, other, batch["word_mask"]).backward()
    assert target.grad is None and other.grad.abs().max() > 0


def test_target_transitions_option_changes_only_the_transitions_gradient(tiny_encoder):
    gradients = {}
    for option in (False, True):
        model, processor = make(tiny_encoder("bert"), two_views="crf_kl", nll_weight=0.0, kl_target_transitions=option)
        batch = batch_of(model, processor, two_views=True)
        model.eval()
        model(**batch).loss.backward()
        gradients[option] = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    assert torch.equal(gradients[False]["classifier.weight"], gradients[True]["classifier.weight"])
    assert not torch.allclose(gradients[False]["crf.transitions"], gradients[True]["crf.transitions"])


def test_training_with_two_views_needs_both(tiny_encoder):
    model, processor = make(tiny_encoder("bert"), two_views="crf_kl")
    model.train()
    with pytest.raises(ValueError, match="text_only_input_ids is missing"):
        model(**batch_of(model, processor))


def test_softmax_head_is_cross_entropy_and_decodes_validly(tiny_encoder, tmp_path):
    model, processor = make(tiny_encoder("bert"), head="softmax")
    model.eval()
    batch = batch_of(model, processor)
    output = model(**batch)
    labels = batch["labels"].masked_fill(~batch["word_mask"], -100)
    summed = torch.nn.functional.cross_entropy(output.logits.transpose(1, 2), labels, reduction="sum")
    assert output.loss.item() == pytest.approx(summed.item() / len(POSTS), rel=1e-5)
    free = model.decode(output.logits, batch["word_mask"], constrained=False)
    assert free == [
        row[:n].argmax(-1).tolist() for row, n in zip(output.logits, batch["word_mask"].sum(1), strict=True)
    ]
    for path in model.decode(output.logits, batch["word_mask"]):
        tags = [model.config.id2label[i] for i in path]
        assert tags[0][0] not in "IE" and tags[-1][0] not in "BI"
    model.save_pretrained(tmp_path)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path)
    assert again.crf is None and torch.equal(again(**batch).logits, output.logits)


def test_span_scores_are_probabilities_of_the_marginals(tiny_encoder):
    for head in ("crf", "softmax"):
        model, processor = make(tiny_encoder("bert"), head=head)
        model.eval()
        batch = batch_of(model, processor)
        logits, mask = model(**batch).logits, batch["word_mask"]
        tags = list(range(len(LABELS)))
        scores = model.span_scores(logits, mask, [[(0, 1, [tag]) for tag in tags]] * len(POSTS))
        for row, marginals in zip(scores, model.log_marginals(logits, mask).exp(), strict=True):
            assert torch.allclose(row, marginals[0], atol=1e-5)


def test_word_and_head_dropout_act_in_training_only(tiny_encoder):
    for option in ({"word_dropout": 0.5}, {"head_dropout": 0.5}):
        model, processor = make(tiny_encoder("bert"), **option)
        batch = batch_of(model, processor)
        for module in model.encoder.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        assert not torch.equal(model(**batch).logits, model(**batch).logits)
        model.eval()
        assert torch.equal(model(**batch).logits, model(**batch).logits)


def test_word_dropout_zeroes_whole_words(tiny_encoder):
    model, processor = make(tiny_encoder("bert"), word_dropout=1.0)
    model.train()
    logits = model(**batch_of(model, processor)).logits
    assert torch.equal(logits, model.classifier.bias.expand_as(logits))


def test_bfloat16_model_keeps_its_crf_in_float32(tiny_encoder, tmp_path):
    model, processor = make(tiny_encoder("bert"))
    model.save_pretrained(tmp_path)
    half = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.crf.transitions.dtype == torch.float32 and half.classifier.weight.dtype == torch.bfloat16
    assert torch.equal(half.crf.transitions, model.crf.transitions)
    batch = batch_of(half, processor)
    half.eval(), model.eval()
    assert half(**batch).loss.item() == pytest.approx(model(**batch).loss.item(), rel=0.05)


def test_autocast_agrees_with_float32(tiny_encoder):
    model, processor = make(tiny_encoder("bert"), two_views="crf_kl")
    model.eval()
    batch = batch_of(model, processor, two_views=True)
    exact = model(**batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = model(**batch)
    assert rounded.loss.dtype == torch.float32
    assert rounded.nll_loss.item() == pytest.approx(exact.nll_loss.item(), rel=0.02)


def test_gradient_checkpointing_gives_the_same_gradients(tiny_encoder):
    gradients = []
    for checkpointing in (False, True):
        model, processor = make(tiny_encoder("bert"))
        batch = batch_of(model, processor)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable()
            assert model.encoder.is_gradient_checkpointing
        model(**batch).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(gradients[0]) == len(gradients[1])
    assert all(torch.allclose(a, b, atol=1e-7) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize("kind", ["bert", "xlm-roberta", "modernbert"])
def test_attention_implementations_agree(kind, tiny_encoder):
    logits = []
    for implementation in ("eager", "sdpa"):
        model, processor = make(tiny_encoder(kind), encoder_options={"attn_implementation": implementation})
        assert model.encoder.config._attn_implementation == implementation
        model.eval()
        batch = batch_of(model, processor)
        logits.append(model(**batch).logits[batch["word_mask"]])
    assert torch.allclose(*logits, atol=1e-5)


def test_windows_give_every_word_an_emission(tiny_encoder):
    model, processor = make(tiny_encoder("bert"))
    processor.max_length = 16
    model.eval()
    words = [f"w{i}" for i in range(40)]
    inputs = processor(words=[words, ["Ada"]])
    assert inputs["input_ids"].shape[0] > 2 and inputs["word_mask"].sum(1).tolist() == [40, 1]
    logits = model(**inputs).logits
    # each word's emission equals the one of its window read on its own
    for window in range(inputs["input_ids"].shape[0] - 1):
        kept = inputs["attention_mask"][window].bool()
        alone = model.encode(inputs["input_ids"][window : window + 1, kept], None, torch.arange(kept.sum())[None])
        mine = inputs["word_rows"][0] == window
        expected = model.classifier(alone[0, inputs["word_positions"][0, mine]])
        assert torch.allclose(logits[0, mine], expected, atol=1e-5)


def test_predict_takes_text_or_tokens(tiny_encoder):
    model, processor = make(tiny_encoder("bert"))
    with torch.no_grad():  # every word alone is a person
        model.classifier.bias.fill_(-20.0)
        model.classifier.bias[model.config.label2id["S-PER"]] = 20.0
    text = "Ada  met @bob \ufe0f"
    found = predict(model, processor, [{"text": text, "id": "a"}, {"tokens": ["Ada", "Lovelace"]}, {"tokens": []}])
    assert found[0]["id"] == "a" and found[1]["tokens"] == ["Ada", "Lovelace"] and found[2]["entities"] == []
    for entity in found[0]["entities"]:
        assert text[entity["char_start"] : entity["char_end"]] == entity["text"] == found[0]["tokens"][entity["start"]]
        assert entity["type"] == "PER" and entity["score"] == pytest.approx(1.0, abs=1e-4)
    assert [e["char_start"] for e in found[1]["entities"]] == [0, 4]
    with pytest.raises(ValueError, match="post 1 has neither text nor tokens"):
        predict(model, processor, [{"text": "a"}, {"words": ["b"]}])


def test_config_round_trip_and_errors(tmp_path):
    config = MoReConfig(encoder_config={"model_type": "bert", "hidden_size": 8}, id2label=dict(enumerate(LABELS)))
    config.save_pretrained(tmp_path)
    again = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(again, MoReConfig) and again.encoder_config.hidden_size == 8
    assert again.label2id == {label: i for i, label in enumerate(LABELS)}
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "more"
    for bad in ({"head": "svm"}, {"two_views": "on"}, {"kl_temperature": 0.0}, {"nll_weight": 1.5},
                {"head": "softmax", "two_views": "crf_kl"}):  # fmt: skip
        with pytest.raises(ValueError):
            MoReConfig(**bad)


@pytest.mark.parametrize("by_itself", [False, True])
@pytest.mark.parametrize("kind", ["bert", "deberta-v2"])
def test_resized_embeddings_are_saved_and_loaded(kind, by_itself, tiny_encoder, tmp_path):
    """Larger, smaller, padded, again after loading, and the encoder without its model."""
    model, processor = make(tiny_encoder(kind))
    start = len(processor.tokenizer)
    assert processor.tokenizer.add_tokens(["Northfield"]) == 1
    for number, (size, options) in enumerate([(start + 1, {}), (start + 40, {"pad_to_multiple_of": 64}), (start, {})]):
        (model.encoder if by_itself else model).resize_token_embeddings(size, **options)
        rows = model.get_input_embeddings().num_embeddings
        assert rows == (size if not options else -(-size // 64) * 64)
        model.save_pretrained(tmp_path / str(number))
        processor.save_pretrained(tmp_path / str(number))
        again = AutoModelForTokenClassification.from_pretrained(tmp_path / str(number))
        assert again.get_input_embeddings().num_embeddings == rows == again.config.encoder_config.vocab_size
        inputs = processor(words=["Northfield" if size > start else "Ada", "in", "Oslo"])
        model.eval()
        with torch.no_grad():
            assert torch.equal(model(**inputs).logits, again(**inputs).logits)
        model = again
