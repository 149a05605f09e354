"""The paper's gate, over text and image: what it learns, and when the plain average stays."""

import numpy as np
import pytest
import torch

from mixture_experts import IMAGE_DIM, LABELS, save_experts
from modeling_more import MoReMixtureForTokenClassification
from modeling_more.training.arguments import MixtureArguments
from modeling_more.training.expert_outputs import Features, gate_batch
from modeling_more.training.gate_training import DevResult, train_gate


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


def test_a_trained_gate_beats_the_average_of_over_confident_experts(folders):
    """Each expert is right on its half of the posts and, on the other half, wrong and surer of it.

    The average then follows whichever expert is surer, the wrong one; the words tell the gate whom to believe.
    """
    mixture = MoReMixtureForTokenClassification.from_experts(folders["entities"], image_dim=IMAGE_DIM)
    for expert in mixture.experts:  # what they say is made up here, word by word
        for parameter in expert.crf.parameters():
            parameter.data.zero_()
    torch.manual_seed(0)
    count, length, width = 400, 5, mixture.gate.text_norm.normalized_shape[0]
    half = torch.randint(0, 2, (count,))
    features = torch.randn(count, width)
    features[:, 0] += 3.0 * (2 * half - 1)
    gold = torch.randint(0, len(LABELS), (count, length))
    wrong = (gold + torch.randint(1, len(LABELS), (count, length))) % len(LABELS)
    right = torch.arange(2) == half[:, None]
    one_hot = torch.nn.functional.one_hot
    logits = torch.where(
        right[:, :, None, None],
        4.0 * one_hot(gold, len(LABELS))[:, None],
        8.0 * one_hot(wrong, len(LABELS))[:, None],
    )
    batch = {
        "expert_logits": logits, "text_features": features, "labels": gold,
        "word_mask": torch.ones(count, length, dtype=torch.bool), "image_features": torch.randn(count, IMAGE_DIM),
    }  # fmt: skip
    train, test = ({key: value[part] for key, value in batch.items()} for part in (slice(200), slice(200, None)))

    def accuracy(log_probs):
        return (log_probs.argmax(-1) == test["labels"]).float().mean().item()

    with torch.no_grad():
        before = mixture(**test)
    average = accuracy(before.logits)  # a gate begins as the average
    single = [accuracy(before.expert_log_probs[:, index]) for index in range(2)]
    optimizer = torch.optim.AdamW(mixture.gate.parameters(), lr=0.02)
    mixture.train()
    for _ in range(60):
        mixture(**train).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    mixture.eval()
    with torch.no_grad():
        trained = accuracy(mixture(**test).logits)
    assert average < 0.1 and max(single) < 0.6
    assert trained > 0.9


@pytest.mark.parametrize(("gained", "lost", "kept"), [(3, 2, 0), (30, 2, 1)])
def test_the_average_stays_unless_the_gain_on_dev_is_more_than_chance(folders, gained, lost, kept):
    mixture = MoReMixtureForTokenClassification.from_experts(folders["entities"])
    width = mixture.gate.text_norm.normalized_shape[0]
    torch.manual_seed(0)
    features = Features([torch.randn(2, 3, len(LABELS)) for _ in range(8)], [torch.randn(width) for _ in range(8)])
    average = np.tile([1, 2, 2], (100, 1))  # right, predicted, in the reference
    learned = average.copy()
    learned[:gained, 0] = 2
    learned[gained : gained + lost, 0] = 0
    found = iter([DevResult(50.0, average), *[DevResult(50 + (gained - lost) / 2, learned)] * 2])
    args = MixtureArguments(gate_epochs=2)
    trained = train_gate(mixture, features, [[0, 1, 2]] * 8, lambda: next(found), args, seed=0, progress=False)
    assert trained.best_epoch == kept and bool(mixture.gate.output.weight.any()) == bool(kept)
    assert trained.best_score == (50 + (gained - lost) / 2 if kept else 50)
    assert [row["epoch"] for row in trained.history] == [0, 1, 2]


def test_the_gate_learns_the_same_whatever_was_drawn_before(folders):
    """A warm cache draws no random numbers, a cold one does: the dropped images must not depend on it."""
    weights = []
    for drawn in (0, 5):
        mixture = MoReMixtureForTokenClassification.from_experts(
            folders["entities"], image_dim=IMAGE_DIM, image_dropout=0.5
        )
        width = mixture.gate.text_norm.normalized_shape[0]
        generator = torch.Generator().manual_seed(1)
        logits = [torch.randn(2, 3, len(LABELS), generator=generator) for _ in range(8)]
        text = [torch.randn(width, generator=generator) for _ in range(8)]
        images = torch.randn(8, IMAGE_DIM, generator=generator), torch.ones(8, dtype=torch.bool)
        mixture.gate.missing_image.data.zero_()
        found = iter([DevResult(float(score), np.array([[score, 100, 100]])) for score in (1, 50, 60)])
        torch.rand(drawn)
        features, args = Features(logits, text, images), MixtureArguments(gate_epochs=2)
        trained = train_gate(mixture, features, [[0, 1, 2]] * 8, found.__next__, args, seed=0, progress=False)
        assert trained.best_epoch == 2
        weights.append(mixture.gate.output.weight.detach().clone())
    assert torch.equal(*weights)


def test_the_papers_gate_learns_the_numbers_that_it_learned_before_there_was_evidence(folders):
    """The literals were printed by the code of before (3948591) for the same experts' outputs and the same seed."""
    mixture = MoReMixtureForTokenClassification.from_experts(
        folders["entities"], image_dim=IMAGE_DIM, image_dropout=0.3
    )
    for expert in mixture.experts:
        for parameter in expert.crf.parameters():
            parameter.data.zero_()
    mixture.gate.missing_image.data.zero_()
    width = mixture.gate.text_norm.normalized_shape[0]
    rng = torch.Generator().manual_seed(1)
    logits = [2 * torch.randn(2, 3, len(LABELS), generator=rng) for _ in range(24)]
    text = [torch.randn(width, generator=rng) + 1 for _ in range(24)]
    images = torch.randn(24, IMAGE_DIM, generator=rng), torch.arange(24) % 4 > 0
    labels = torch.randint(0, len(LABELS), (24, 3), generator=rng).tolist()
    found = iter([DevResult(float(score), np.array([[score, 100, 100]])) for score in (1, 50, 60, 70)])
    args = MixtureArguments(gate_epochs=3, gate_batch_size=8, gate_learning_rate=0.02)
    trained = train_gate(mixture, Features(logits, text, images), labels, found.__next__, args, seed=5, progress=False)
    batch = gate_batch(Features(logits, text, images), range(4))
    mixture.eval()
    with torch.no_grad():
        weights = mixture(**batch).expert_weights[:, 0]
    assert [row["loss"] for row in trained.history[1:]] == pytest.approx([9.556830, 9.357721, 9.274057], rel=1e-5)
    assert weights.tolist() == pytest.approx([0.322089, 0.623551, 0.855647, 0.832632], rel=1e-4)
