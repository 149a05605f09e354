"""The mixture of experts: its formula by hand, what is trained, and what a cache may replace."""

import itertools
import math

import pytest
import torch
from transformers import (
    AutoModelForTokenClassification,
)

from mixture_experts import (
    CLASSES,
    IMAGE_DIM,
    LABELS,
    TASKS,
    WORDS,
    builder,
    save_expert,
    save_experts,
)
from modeling_more import (
    MoReForRelationExtraction,
    MoReForTokenClassification,
    MoReMixtureForTokenClassification,
)
from modeling_more.gate import Gate, mix
from modeling_more.tagging import allowed_transitions, bioes_labels


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


@pytest.fixture(scope="module")
def build(folders):
    return builder(folders)


def own_log_probs(expert, inputs):
    """What an expert says on its own."""
    with torch.no_grad():
        logits = expert(**inputs).logits
        if isinstance(expert, MoReForRelationExtraction):
            return logits.log_softmax(-1)
        return expert.log_marginals(logits, inputs["word_mask"])


def norm(features, layer):
    centred = features - features.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + layer.eps).sqrt() * layer.weight + layer.bias


@pytest.mark.parametrize(
    ("task", "gate", "options"),
    [
        ("entities", "post", {}),
        ("entities", "word", {"gate_hidden": 5}),
        ("entities", "word", {"image_dim": 0}),
        ("relations", "post", {}),
    ],
)
def test_loss_and_weights_by_hand(task, gate, options, build):
    mixture, _, batch = build(task, gate_scale=0.5, gate=gate, load_balancing=0.3, entropy=0.2, **options)
    output = mixture(**batch)
    assert torch.allclose(output.expert_weights.sum(-1), torch.ones(()), atol=1e-6)
    assert torch.allclose(output.logits.exp().sum(-1), torch.ones(()), atol=1e-5)

    # the gate: the first expert's states at the words read alone, the image beside them
    inputs = batch["text_only"]
    states = mixture.experts[0].encoder(
        input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]
    ).last_hidden_state  # fmt: skip
    own = [own_log_probs(expert, one).exp() for expert, one in zip(mixture.experts, batch["experts"], strict=True)]
    gate_module = mixture.gate
    loss, used, entropies = 0.0, [], []
    for post, words in enumerate(WORDS):
        rows = inputs["word_rows"][post]
        vectors = [states[rows[i], inputs["word_positions"][post, i]] for i in range(len(words))]
        texts = vectors if gate == "word" else [torch.stack(vectors).mean(0)]
        weights = []
        for text in texts:
            parts = [norm(text, gate_module.text_norm)]
            if mixture.config.image_dim:
                seen = bool(batch["image_mask"][post])
                image = norm(batch["image_features"][post], gate_module.image_norm)
                parts.append(image if seen else gate_module.missing_image)
            features = torch.cat(parts)
            if gate_module.hidden is not None:
                features = torch.nn.functional.gelu(gate_module.hidden(features))
            scores = (gate_module.output.weight @ features + gate_module.output.bias).tolist()
            exps = [math.exp(score - max(scores)) for score in scores]
            weights.append([value / sum(exps) for value in exps])
        used.append([sum(column) / len(weights) for column in zip(*weights, strict=True)])
        entropies.append(sum(-g * math.log(g) for row in weights for g in row) / len(weights))
        if task == "relations":
            gold = int(batch["labels"][post])
            loss -= math.log(sum(g * float(p[post, gold]) for g, p in zip(weights[0], own, strict=True)))
        else:
            for i in range(len(words)):
                gold, of_word = int(batch["labels"][post, i]), weights[i if gate == "word" else 0]
                loss -= math.log(sum(g * float(q[post, i, gold]) for g, q in zip(of_word, own, strict=True)))
        shown = output.expert_weights[post, : len(words)] if gate == "word" else output.expert_weights[post][None]
        assert torch.allclose(shown, torch.tensor(weights), atol=1e-5)
    means = [sum(column) / len(used) for column in zip(*used, strict=True)]
    balance = 2 * sum(mean**2 for mean in means)
    entropy = sum(entropies) / len(entropies)
    assert output.loss.item() == pytest.approx(loss / len(WORDS) + 0.3 * balance + 0.2 * entropy, rel=1e-5)


@pytest.mark.parametrize(("task", "gate"), [("entities", "post"), ("entities", "word"), ("relations", "post")])
def test_one_hot_gate_is_its_expert_bit_for_bit(task, gate, build):
    mixture, _, batch = build(task, gate=gate, gate_scale=0.0)
    mask = batch["word_mask"]
    with torch.no_grad():
        logits = mixture.expert_outputs(batch["experts"])
    for index, expert in enumerate(mixture.experts):
        with torch.no_grad():
            mixture.gate.output.bias.copy_(torch.where(torch.arange(2) == index, 150.0, 0.0))
            output = mixture(**batch)
            own = own_log_probs(expert, batch["experts"][index])
            # also where it finds a label less likely than the weight, before rounding, of the other
            sure = mixture(**batch, expert_logits=100 * logits)
        assert torch.equal(output.expert_weights.unique(), torch.tensor([0.0, 1.0]))
        assert torch.equal(output.logits, own)
        assert sure.logits.min() < -150 and torch.equal(sure.logits, sure.expert_log_probs[:, index])
        if task == "entities":
            per_word = [row[:n].argmax(-1).tolist() for row, n in zip(own, mask.sum(1), strict=True)]
            assert mixture.decode(output.logits, mask, "word") == per_word
        if gate == "post" and task == "entities":
            spans = [[(0, 1, [1]), (0, 1, [4])]] * len(WORDS)
            alone = expert.span_scores(output.expert_logits[:, index], mask, spans)
            assert all(map(torch.equal, mixture.span_scores(output, mask, spans), alone))


def test_a_weight_of_zero_counts_nothing_however_sure_the_others_are():
    log_probs = torch.tensor([[[-300.0, 0.0], [0.0, -300.0]]])
    assert torch.equal(mix(log_probs, torch.tensor([[0.0, -math.inf]])), log_probs[:, 0])
    log_weights = torch.tensor([[0.0, -math.inf]], requires_grad=True)
    mix(log_probs, log_weights).sum().backward()
    assert log_weights.grad.isfinite().all()


@pytest.mark.parametrize("task", TASKS)
def test_equal_experts_are_that_expert_for_any_gate(task, folders, build):
    _, _, batch = build(task)
    mixture = CLASSES[task][1].from_experts([folders[task][0]] * 3, ["a", "b", "c"], image_dim=IMAGE_DIM)
    with torch.no_grad():
        mixture.gate.output.weight.normal_()
        output = mixture(**{**batch, "experts": [batch["experts"][0]] * 3})
    assert output.expert_weights.std() > 0.01
    own = own_log_probs(mixture.experts[0], batch["experts"][0])
    assert torch.allclose(output.logits.exp(), own.exp(), atol=1e-6, rtol=0)


def test_a_fresh_gate_averages_and_a_single_expert_is_itself(folders, build):
    _, _, batch = build()
    mixture = MoReMixtureForTokenClassification.from_experts(folders["entities"], image_dim=IMAGE_DIM)
    assert mixture.config.expert_names == ["text", "image"]
    output = mixture(**batch)
    assert torch.equal(output.expert_weights, torch.full((len(WORDS), 2), 0.5))
    assert torch.allclose(output.logits.exp(), output.expert_log_probs.exp().mean(1), atol=1e-6)
    alone = MoReMixtureForTokenClassification.from_experts(folders["entities"][1:])
    inputs = batch["experts"][1]
    output = alone(experts=[inputs], text_only=inputs, labels=batch["labels"])
    assert torch.equal(output.logits, own_log_probs(alone.experts[0], inputs))
    output.loss.backward()


@pytest.mark.parametrize("task", TASKS)
def test_gradients_reach_the_gate_alone_or_everything(task, build):
    for train_experts in (False, True):
        mixture, _, batch = build(task, train_experts=train_experts, load_balancing=0.1, gate_scale=0.1)
        mixture.train()
        assert mixture.gate.training and mixture.experts[0].training == train_experts
        # the gate's input trains the first expert too
        assert mixture.text_features(batch["text_only"]).requires_grad == train_experts
        assert mixture.expert_outputs(batch["experts"]).requires_grad == train_experts
        mixture(**batch).loss.backward()
        reached = {name for name, p in mixture.named_parameters() if p.grad is not None and p.grad.any()}
        wanted = {name for name, _ in mixture.named_parameters() if train_experts or name.startswith("gate.")}
        # a key's bias shifts all scores of a query alike, so its gradient is 0 or rounding
        assert {name for name in wanted - reached if "key.bias" not in name} == set()
        assert reached <= wanted
        assert {name for name, p in mixture.named_parameters() if p.requires_grad} == wanted


@pytest.mark.parametrize("gate", ["post", "word"])
def test_missing_images(gate, build):
    mixture, _, batch = build(gate=gate)
    with torch.no_grad():
        weights = mixture(**batch).expert_weights
        spoilt = batch["image_features"].clone()
        spoilt[1] = math.nan  # what stands for a missing image is not read
        assert torch.equal(mixture(**{**batch, "image_features": spoilt}).expert_weights, weights)
        none = mixture(**{**batch, "image_features": None, "image_mask": None}).expert_weights
        masked = mixture(**{**batch, "image_mask": torch.zeros(len(WORDS), dtype=torch.bool)}).expert_weights
        assert torch.equal(none, masked) and torch.equal(none[1], weights[1])
        everyone = mixture(**{**batch, "image_mask": None}).expert_weights
        assert torch.equal(everyone[0], weights[0]) and not torch.allclose(everyone[1], weights[1])
        mixture.gate.missing_image += 1.0
        moved = (mixture(**batch).expert_weights != weights).flatten(1).any(1).tolist()
        assert moved == [False, True, False, False]

    mixture(**{**batch, "image_features": spoilt}).loss.backward()
    assert all(p.grad.isfinite().all() for p in mixture.gate.parameters())
    with pytest.raises(ValueError, match=r"image_features must be \(4, 6\), not \(4, 5\)"):
        mixture(**{**batch, "image_features": torch.randn(4, 5)})
    blind, _, _ = build(image_dim=0)
    with pytest.raises(ValueError, match="this gate sees no image"):
        blind(**batch)


def test_images_are_dropped_in_training_so_that_the_missing_one_is_learned(build):
    mixture, _, batch = build(image_dropout=0.5)
    batch["image_mask"] = torch.ones(len(WORDS), dtype=torch.bool)
    mixture(**batch).loss.backward()
    assert not mixture.gate.missing_image.grad.any()
    with torch.no_grad():
        seen = mixture(**batch).expert_weights
        missing = mixture(**{**batch, "image_features": None, "image_mask": None}).expert_weights
        logits, features = mixture.expert_outputs(batch["experts"]), mixture.text_features(batch["text_only"])
    cached = {**batch, "expert_logits": logits, "text_features": features}
    mixture.train()
    dropped = 0
    for _ in range(40):
        weights = mixture(**cached).expert_weights
        is_dropped = (weights == missing).all(1)
        assert torch.equal(weights[~is_dropped], seen[~is_dropped])
        dropped += int(is_dropped.sum())
    assert 40 < dropped < 120  # of 160, half
    mixture.gate.zero_grad()
    mixture(**batch).loss.backward()
    assert mixture.gate.missing_image.grad.any()


@pytest.mark.parametrize(("task", "gate"), [("entities", "post"), ("entities", "word"), ("relations", "post")])
def test_cached_and_full_losses_agree_and_the_cache_runs_no_expert(task, gate, build):
    mixture, _, batch = build(task, gate=gate, load_balancing=0.1, image_dropout=0.0)
    with torch.no_grad():
        logits, features = mixture.expert_outputs(batch["experts"]), mixture.text_features(batch["text_only"])
    assert logits.shape[:2] == (len(WORDS), 2)
    calls = []
    for expert in mixture.experts:
        expert.encoder.register_forward_hook(lambda module, inputs, output: calls.append(module))
    mixture.train()
    full = mixture(**batch)
    assert len(calls) == 3  # both experts, and the first one once more for the gate
    gradients = []
    cached = {key: value for key, value in batch.items() if key not in ("experts", "text_only")}
    output = mixture(**cached, expert_logits=logits, text_features=features)
    for loss in (full.loss, output.loss):
        mixture.zero_grad()
        loss.backward()
        gradients.append([p.grad.clone() for p in mixture.gate.parameters()])
    assert len(calls) == 3
    assert abs(full.loss.item() - output.loss.item()) <= 1e-5
    assert torch.allclose(full.expert_weights, output.expert_weights, atol=1e-6)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(*gradients, strict=True))


def test_span_scores_by_hand(build):
    spans = [[(0, 2, [1, 3]), (3, 4, [4])], [(0, 1, [8])], [], [(28, 30, [5, 7])]]
    for gate in ("post", "word"):
        mixture, _, batch = build(gate=gate)
        mask = batch["word_mask"]
        with torch.no_grad():
            output = mixture(**batch)
        found = mixture.span_scores(output, mask, spans)
        assert [len(scores) for scores in found] == [2, 1, 0, 1]
        own = [
            expert.span_scores(expert(**inputs).logits, mask, spans)
            for expert, inputs in zip(mixture.experts, batch["experts"], strict=True)
        ]
        for post, row in enumerate(spans):
            for index, (start, end, labels) in enumerate(row):
                if gate == "post":
                    weights = output.expert_weights[post].tolist()
                    by_hand = sum(g * float(one[post][index]) for g, one in zip(weights, own, strict=True))
                else:
                    words = zip(range(start, end), labels, strict=True)
                    by_hand = math.prod(math.exp(output.logits[post, i, label]) for i, label in words)
                assert found[post][index].item() == pytest.approx(by_hand, rel=1e-4)


def test_decoding_is_the_best_valid_sequence(build):
    mixture, _, _ = build()
    torch.manual_seed(5)
    logits = (3 * torch.randn(6, 4, len(LABELS))).log_softmax(-1)
    mask = torch.tensor([[True] * n + [False] * (4 - n) for n in (4, 4, 4, 3, 2, 1)])
    start, follows, end = allowed_transitions(LABELS)
    found = mixture.decode(logits, mask)
    invalid = 0
    for post, (path, row) in enumerate(zip(found, logits, strict=True)):
        n = int(mask[post].sum())
        valid = (
            tags
            for tags in itertools.product(range(len(LABELS)), repeat=n)
            if start[tags[0]] and end[tags[-1]] and all(follows[a][b] for a, b in itertools.pairwise(tags))
        )
        assert path == list(max(valid, key=lambda tags: sum(float(row[i, tag]) for i, tag in enumerate(tags))))
        invalid += path != row[:n].argmax(-1).tolist()
    assert invalid > 0
    words = [row[: int(n)].argmax(-1).tolist() for row, n in zip(logits, mask.sum(1), strict=True)]
    assert mixture.decode(logits, mask, "word") == words
    mixture.config.decoding = "word"
    assert mixture.decode(logits, mask) == words
    with pytest.raises(ValueError, match="decoding is \"?'?beam"):
        mixture.decode(logits, mask, "beam")


def test_label_sets(folders, tiny_encoder, build, tmp_path):
    """Sets that differ are named; the same labels in another order are put right, also after a reload."""
    other = save_expert(tmp_path / "other", "entities", tiny_encoder("bert"), bioes_labels(["PER", "ORG"]))
    with pytest.raises(
        ValueError, match="experts text and other differ: other alone has B-ORG, .*; text alone has B-L"
    ):
        MoReMixtureForTokenClassification.from_experts([folders["entities"][0], other])

    _, _, batch = build()
    swapped = bioes_labels(["LOC", "PER"])
    turned = save_expert(tmp_path / "turned", "entities", tiny_encoder("xlm-roberta"), swapped, max_length=400)
    mixture = MoReMixtureForTokenClassification.from_experts([folders["entities"][0], turned], image_dim=IMAGE_DIM)
    with torch.no_grad():
        output = mixture(**batch)
    own = own_log_probs(MoReForTokenClassification.from_pretrained(turned), batch["experts"][1])
    order = [swapped.index(label) for label in LABELS]
    mask = batch["word_mask"]
    assert torch.allclose(output.expert_log_probs[:, 1][mask], own[..., order][mask], atol=1e-5)
    mixture.save_pretrained(tmp_path / "mixture")
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "mixture")
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, output.logits)


def test_standardised_features_have_no_common_part():
    """Mean 0 and deviation 1 over what it was fitted on, words and image alike; saved with the gate."""
    gate = Gate(6, 4, 2)
    text, image = torch.randn(50, 6) + torch.arange(6) * 3, torch.randn(30, 4) * 2 + 5
    gate.standardise(text, image)
    seen = []
    gate.output.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    gate.eval()
    gate(text[:30], image)
    gate(text[None].expand(2, -1, -1), image[:2])  # per word
    assert torch.allclose(seen[1][0, :, :6].mean(0), torch.zeros(6), atol=1e-5)
    assert torch.allclose(seen[1][0, :, :6].std(0), torch.ones(6), atol=1e-4)
    assert torch.allclose(seen[0][:, 6:].mean(0), torch.zeros(4), atol=1e-5)
    assert torch.allclose(seen[0][:, 6:].std(0), torch.ones(4), atol=1e-4)
    assert {"center", "scale"} <= gate.state_dict().keys()
    gate.standardise(text[:1])  # one post, no image: nothing to divide by
    assert all(value.isfinite().all() for value in gate.state_dict().values())
