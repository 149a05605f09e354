"""What weighs the experts: constructed ones, whose search tells who is right, and controls where nothing does."""

import numpy as np
import pytest
import torch

from mixture_experts import CLASSES, IMAGE_DIM, LABELS, NAMES, TASKS, save_experts
from modeling_more.evidence import SEARCH
from modeling_more.gate import Gate
from modeling_more.metrics import entity_counts, relation_counts
from modeling_more.tagging import valid_tags
from modeling_more.training.calibration import fit_temperatures
from modeling_more.training.expert_outputs import Features, mixed
from modeling_more.training.gate_choice import (
    AVERAGE,
    BEST,
    TEMPERATURES,
    Choice,
    GatePosts,
    candidates_of,
    fit_gate,
    known_of,
)  # fmt: skip
from re_runs import RELATIONS

POSTS, WORDS = 240, 4
EVIDENCE = ["text", "scores", "confidence"]


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


def constructed(task, folders, seed=0, right=None, **config):
    """Two experts of which the one with the higher search score is right, and as sure as the other, which is wrong.

    Returns:
        the mixture, features and labels of POSTS posts, and which expert is right in each.
    """
    mixture = CLASSES[task][1].from_experts(folders[task], NAMES, **{"gate_inputs": EVIDENCE, "alone": []} | config)
    for expert in mixture.experts if task == "entities" else ():  # what they say is made up here, word by word
        for parameter in expert.crf.parameters():
            parameter.data.zero_()
    rng = torch.Generator().manual_seed(seed)
    right = torch.randint(0, 2, (POSTS,), generator=rng) if right is None else right
    single = [number for number, label in enumerate(LABELS) if label.startswith("S-")]
    names = single if task == "entities" else list(range(1, len(RELATIONS)))
    shape = (POSTS, WORDS) if task == "entities" else (POSTS, 1)
    gold = torch.tensor(names)[torch.randint(0, len(names), shape, generator=rng)]
    other = torch.tensor([names[(names.index(one) + 1) % len(names)] for one in gold.flatten().tolist()]).view(shape)
    chosen = torch.stack([torch.where(right[:, None] == place, gold, other) for place in (0, 1)], 1)
    number = len(LABELS) if task == "entities" else len(RELATIONS)
    logits = 4.0 * torch.nn.functional.one_hot(chosen, number).float()
    if task == "relations":
        logits, labels = logits[:, :, 0], [one[0] for one in gold.tolist()]
    else:
        labels = gold.tolist()
    search = torch.zeros(POSTS, 2, len(SEARCH))
    for place in (0, 1):
        search[:, place, 0] = 1
        search[:, place, 1] = torch.rand(POSTS, generator=rng) + 2.0 * (right == place)
    width = mixture.config.experts[0]["encoder_config"]["hidden_size"]
    text = torch.randn(POSTS, width, generator=rng)
    flags = torch.zeros(2, WORDS, dtype=torch.bool)
    features = Features(list(logits), list(text), search=[(one, flags) for one in search])
    return mixture, features, labels, right


def scorer(task, mixture, features, labels):
    """F1 counts and likelihood of the mixture as it is; `entity_counts` reads what is decoded."""

    def tags(ids):
        return valid_tags([LABELS[label] for label in ids])

    def score(rows):
        found, nll = [], 0.0
        for output, mask in mixed(mixture, features.select(rows), labels=[labels[row] for row in rows]):
            if task == "entities":
                found += [tags(path) for path in mixture.decode(output.logits, mask)]
            else:
                found += [RELATIONS[label] for label in output.logits.argmax(-1).tolist()]
            nll += float(output.loss) * len(mask)
        gold = [labels[row] for row in rows]
        if task == "entities":
            return entity_counts(found, [tags(ids) for ids in gold]), nll
        return relation_counts(found, [RELATIONS[label] for label in gold]), nll

    return score


def f1(counts):
    right, predicted, gold = counts.sum(0)
    return 200 * right / (predicted + gold)


def choice_of(task, mixture, features, labels, **more):
    known, ready = known_of(mixture, features, labels)
    raw = scorer(task, mixture, features, labels)
    score = more.pop("score", scorer(task, mixture, ready, labels))

    def either(rows):
        return raw(rows) if mixture.config.temperatures else score(rows)

    def temperatures(rows):
        return fit_temperatures(mixture, features.select(rows), [labels[row] for row in rows])

    return Choice(mixture, known, [row % 5 for row in range(POSTS)], either, temperatures, seed=0)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("inputs", [["scores"], ["auto"]])
def test_the_gate_reaches_the_oracle_where_the_score_tells_who_is_right(task, inputs, folders):
    mixture, features, labels, _ = constructed(task, folders)
    candidates = candidates_of(inputs, images=False, readers=2)
    chosen = choice_of(task, mixture, features, labels).run(candidates, progress=False)
    assert "scores" in chosen.inputs and mixture.config.gate_inputs == list(chosen.inputs)
    test, unseen, gold, who = constructed(task, folders, seed=1)
    test.set_gate(chosen.inputs)
    test.gate.load_state_dict(mixture.gate.state_dict())
    counts, _ = scorer(task, test, unseen, gold)(range(POSTS))
    oracle = 100.0  # in each post one expert is right
    assert f1(counts) >= oracle - 0.5
    weights = torch.cat([output.expert_weights for output, _ in mixed(test, unseen)])
    assert torch.equal(weights.argmax(1), who)
    average = next(one for one in candidates if one.name == AVERAGE)
    assert chosen.minus_average == pytest.approx(chosen.f1 - average.f1) and chosen.minus_average > 20


@pytest.mark.parametrize("task", TASKS)
def test_permuted_evidence_falls_back_to_the_average(task, folders):
    """Each post gets another one's search; the experts are right together or wrong each by itself."""
    mixture, features, labels, _ = constructed(task, folders)
    order = torch.randperm(POSTS, generator=torch.Generator().manual_seed(3)).tolist()
    features.search = [features.search[row] for row in order]
    candidates = candidates_of(["scores"], images=False, readers=2)
    chosen = choice_of(task, mixture, features, labels).run(candidates, progress=False)
    assert chosen.name == AVERAGE
    weights = torch.cat([output.expert_weights for output, _ in mixed(mixture, features)])
    assert torch.equal(weights, torch.full((POSTS, 2), 0.5))


def test_the_best_expert_is_chosen_where_it_is_always_right(folders):
    """The other one is surer of its errors, which the average believes."""
    mixture, features, labels, _ = constructed("entities", folders, right=torch.ones(POSTS, dtype=torch.long))
    features.expert_logits = [torch.stack([2 * one[0], one[1]]) for one in features.expert_logits]
    features.search = None
    candidates = candidates_of(["auto"], images=False, readers=2)
    chosen = choice_of("entities", mixture, features, labels).run(candidates, progress=False)
    assert chosen.name == BEST
    weights = torch.cat([output.expert_weights for output, _ in mixed(mixture, features)])
    assert torch.equal(weights, torch.tensor([[0.0, 1.0]]).expand(POSTS, 2))


@pytest.mark.parametrize("task", TASKS)
def test_temperatures_are_chosen_where_an_expert_is_too_sure(task, folders):
    """The first expert is right in a fifth of the posts and sure, the second always but for that, and unsure."""
    rng = torch.Generator().manual_seed(2)
    right = (torch.rand(POSTS, generator=rng) < 0.8).long()
    mixture, features, labels, _ = constructed(task, folders, right=right)
    features.expert_logits = [torch.stack([8 * one[0], one[1]]) for one in features.expert_logits]
    candidates = [one for one in candidates_of(["auto"], False, 2) if one.name in (AVERAGE, TEMPERATURES)]
    chosen = choice_of(task, mixture, features, labels).run(candidates, progress=False)
    assert chosen.name == TEMPERATURES
    assert mixture.config.temperatures[0] > 3 > mixture.config.temperatures[1]


def test_what_is_compared():
    def names(*given, **more):
        return [one.inputs for one in candidates_of(*given, **more)]

    assert names(["auto"], True, 1) == [()]
    assert names(["scores", "text"], False, 3) == [(), (), (), ("scores", "text")]
    assert names(["auto"], True, 2, temperatures=False) == [
        (), (), ("scores",), ("confidence",), ("scores", "confidence"), ("text", "image"),
        ("text", "image", "scores", "confidence"),
    ]  # fmt: skip


def test_the_prior_does_not_depend_on_the_number_of_inputs():
    """As many copies of a feature as one likes move the weights as one does; a wider prior moves them more."""
    rng = torch.Generator().manual_seed(4)
    values = torch.randn(POSTS, 1, generator=rng)
    right = (values[:, 0] + torch.randn(POSTS, generator=rng) > 0).long()
    likelihood = torch.where(torch.arange(2) == right[:, None], -0.1, -2.0).unsqueeze(1)
    found = {}
    for copies, spread in ((1, 1.0), (40, 1.0), (1, 0.1)):
        inputs = {"scores": values.expand(-1, copies).contiguous(), "confidence": torch.zeros(POSTS, 0)}
        posts = GatePosts(inputs, None, likelihood, torch.ones(POSTS, 1, dtype=torch.bool), False)
        gate = Gate(0, 0, 2, evidence_dim=copies)
        fit_gate(gate, posts, ["scores"], (copies, 0), spread)
        with torch.no_grad():
            found[copies, spread] = gate(evidence=inputs["scores"]).exp()
    assert torch.allclose(found[1, 1.0], found[40, 1.0], atol=1e-3)
    assert (found[1, 1.0] - 0.5).abs().mean() > 1.2 * (found[1, 0.1] - 0.5).abs().mean()


def test_of_too_few_posts_the_average_is_kept_and_told(folders, caplog):
    mixture, features, labels, _ = constructed("relations", folders)
    known, _ = known_of(mixture, features, labels)
    choice = Choice(mixture, known, [0], lambda rows: (np.zeros((1, 3)), 0.0), lambda rows: [1.0, 1.0], seed=0)
    assert choice.run(candidates_of(["auto"], False, 2), progress=False).name == AVERAGE
    assert mixture.config.gate_inputs == [] and "1 posts are too few to choose what weighs the experts" in caplog.text


def test_a_gate_of_text_and_image_with_evidence_is_fitted_too(folders):
    mixture, features, labels, _ = constructed("entities", folders, image_dim=IMAGE_DIM)
    features.images = torch.randn(POSTS, IMAGE_DIM), torch.arange(POSTS) % 3 > 0
    candidates = candidates_of(["text", "image", "scores"], images=True, readers=2)
    chosen = choice_of("entities", mixture, features, labels).run(candidates, progress=False)
    assert chosen.inputs == ("text", "image", "scores") and mixture.config.image_dim == IMAGE_DIM
