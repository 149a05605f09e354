"""Temperatures of experts against brute force, and the choice between experts by the labels."""

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from crf_problems import Enumeration, Problem
from mixture_experts import builder, save_experts
from modeling_more.crf import LinearChainCRF
from modeling_more.predictions import Prediction
from modeling_more.training.calibration import (
    LEAST,
    MOST,
    at_temperatures,
    fit_temperatures,
    label_likelihoods,
    oracle,
)
from modeling_more.training.expert_outputs import Features, mixed

TAGS = 3


class Experts:
    """What the functions need of a mixture: experts that have a CRF, or none."""

    device = torch.device("cpu")

    def __init__(self, *crfs):
        self.config = SimpleNamespace(readers=["a", "b", "c"][: len(crfs)], alone=[], temperatures=None)
        self.experts = [torch.nn.Module() for _ in crfs]
        for expert, crf in zip(self.experts, crfs, strict=True):
            expert.crf = crf

    def expert_log_probs(self, logits, mask=None):
        found = [
            scores.log_softmax(-1) if expert.crf is None else expert.crf.log_marginals(scores, mask)
            for expert, scores in zip(self.experts, logits.unbind(1), strict=True)
        ]
        return torch.stack(found, 1)


def chain(scale=1.0):
    torch.manual_seed(5)
    crf = LinearChainCRF(TAGS).requires_grad_(False)
    for parameter in crf.parameters():
        parameter.copy_(torch.randn(parameter.shape) * scale)
    return crf


def drawn(crf, emissions, generator):
    """The tags of one post, drawn from p(y): the labels of an expert that is exactly as sure as it should be."""
    paths, log_p = enumerated(crf, emissions)
    return paths[int(torch.multinomial(log_p.exp(), 1, generator=generator))]


def enumerated(crf, emissions):
    """All paths of one post with their log-probabilities."""
    every = Enumeration(Problem(crf, emissions[None], torch.ones(1, len(emissions), dtype=torch.bool), None), 0)
    return every.paths.tolist(), every.scores - every.log_z


@pytest.fixture(scope="module")
def posts():
    """Emissions of 150 posts of 1 to 4 words, and tags drawn from the chain."""
    generator = torch.Generator().manual_seed(7)
    emissions = [torch.randn(1 + number % 4, TAGS, generator=generator) * 2 for number in range(150)]
    crf = chain()
    return emissions, [drawn(crf, one, generator) for one in emissions]


def features(*by_expert):
    """Features of experts, each given by its emissions (or logits) of all posts."""
    logits = [torch.stack(one) for one in zip(*by_expert, strict=True)]
    return Features(logits, [torch.zeros(2)] * len(logits), search=searches(logits))


def searches(logits):
    """What nobody searched, for each post."""
    return [(torch.zeros(len(one), 7), torch.zeros(*one.shape[:2], dtype=torch.bool)) for one in logits]


def by_brute_force(crf, emissions, labels, temperature):
    """The negative log-likelihood at a temperature, from the list of all paths and their scores over T."""
    total = 0.0
    for scores, tags in zip(emissions, labels, strict=True):
        paths, log_p = enumerated(crf, scores)
        total -= float((log_p / temperature).log_softmax(0)[paths.index(tags)])
    return total


def test_a_model_of_entities_that_is_c_times_as_sure_gets_c_times_the_temperature(posts):
    emissions, labels = posts
    found = fit_temperatures(Experts(chain()), features(emissions), labels)[0]
    assert 0.8 < found < 1.25  # the labels were drawn from it
    for factor in (0.3, 4.0):
        sure = Experts(chain(factor), chain())
        both = features([one * factor for one in emissions], emissions)
        first, second = fit_temperatures(sure, both, labels)
        assert first == pytest.approx(factor * found, rel=0.01) and second == pytest.approx(found, rel=1e-6)
    # no other temperature does better, by the sum over all paths
    loss = {t: by_brute_force(chain(), emissions, labels, t) for t in (found, found * 0.97, found * 1.03, 1.0)}
    assert min(loss, key=loss.__getitem__) == found
    in_parts = fit_temperatures(Experts(chain()), features(emissions), labels, batch_size=7)
    assert in_parts == pytest.approx([found], rel=1e-3)


@pytest.mark.parametrize("words", [True, False])
def test_a_softmax_that_is_c_times_as_sure_gets_c_times_the_temperature(words):
    """Of tags without a CRF, and of relations."""
    generator = torch.Generator().manual_seed(2)
    logits = [torch.randn(*[2] * words, 4, generator=generator) * 2 for _ in range(150)]
    labels = [torch.multinomial(one.softmax(-1), 1, generator=generator).squeeze(-1).tolist() for one in logits]
    found = fit_temperatures(Experts(None), features(logits), labels)[0]
    grid = [found * (1 + step / 50) for step in range(-5, 6)]
    nll = [
        -sum(float((one / t).log_softmax(-1).gather(-1, torch.tensor(tags).unsqueeze(-1)).sum())
             for one, tags in zip(logits, labels, strict=True))
        for t in grid
    ]  # fmt: skip
    assert nll.index(min(nll)) == 5
    sure = fit_temperatures(Experts(None), features([5 * one for one in logits]), labels)
    assert sure == pytest.approx([5 * found], rel=1e-3)


def test_the_loss_never_rises_and_the_temperature_stays_within_bounds(posts):
    emissions, labels = posts
    always_right = [torch.nn.functional.one_hot(torch.tensor(tags), TAGS) * 9.0 for tags in labels]
    always_wrong = [-one for one in always_right]
    neutral = LinearChainCRF.neutral(TAGS, torch.device("cpu"))
    experts = Experts(neutral, neutral, chain())
    found = fit_temperatures(experts, features(always_right, always_wrong, emissions), labels)
    assert found[0] == pytest.approx(LEAST, rel=1e-3) and found[1] == pytest.approx(MOST, rel=1e-3)
    for crf, scores, temperature in ((neutral, always_right, found[0]), (chain(), emissions, found[2])):
        tempered = by_brute_force(crf, scores, labels, temperature)
        assert tempered <= by_brute_force(crf, scores, labels, 1.0) + 1e-4
    # nothing to gain: all tags alike
    assert fit_temperatures(Experts(neutral), features([torch.zeros_like(one) for one in emissions]), labels) == [1.0]


def test_what_folds_said_tells_no_temperature_of_the_experts(posts):
    emissions, labels = posts
    of_folds = features(emissions)
    of_folds.expert_log_probs = of_folds.expert_logits
    with pytest.raises(ValueError, match="posts that they read themselves"):
        fit_temperatures(Experts(chain()), of_folds, labels)


@pytest.fixture(scope="module")
def build(tiny_encoder, tmp_path_factory):
    return builder(save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder))


def of_mixture(build, task, **config):
    """A mixture with what its experts say of posts; with `alone`, the first one's reading of the words alone, too."""
    mixture, _, batch = build(task, **config)
    with torch.no_grad():
        logits = mixture.expert_outputs(batch["experts"], [batch["text_only"]] if config else [])
        text = mixture.text_features(batch["text_only"])
    lengths = batch["word_mask"].sum(1).tolist()
    rows = [one[:, :length] if task == "entities" else one for one, length in zip(logits, lengths, strict=True)]
    return mixture, Features(rows, list(text), search=[(one[:2], two[:2]) for one, two in searches(rows)]), lengths


@pytest.mark.parametrize("task", ["entities", "relations"])
def test_at_one_nothing_changes_and_afterwards_the_model_is_as_before(task, build):
    mixture, given, _ = of_mixture(build, task)
    before = {name: value.clone() for name, value in mixture.state_dict().items()}
    ((plain, _),) = mixed(mixture, given)
    with at_temperatures(mixture, [1.0, 1.0]):
        ((same, mask),) = mixed(mixture, given)
        spans = [[(0, 1, [1])]] * len(given)
        if task == "entities":
            found = [mixture.span_scores(output, mask, spans) for output in (same, plain)]
            assert all(map(torch.equal, *found))
    assert torch.equal(same.logits, plain.logits) and torch.equal(same.expert_log_probs, plain.expert_log_probs)
    with pytest.raises(RuntimeError, match="half-way"), at_temperatures(mixture, [2.0, 3.0]):
        raise RuntimeError("half-way")
    after = mixture.state_dict()
    assert mixture.config.temperatures is None
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("alone", [False, True])
def test_marginals_and_spans_at_a_temperature_by_brute_force(alone, build):
    """Of each reader's posts of up to three words: every path's score over T, that of the expert if it reads alone."""
    mixture, given, lengths = of_mixture(build, "entities", **({"alone": [0], "abstain": True} if alone else {}))
    temperatures = [2.5, 0.7]
    with at_temperatures(mixture, temperatures):
        ((output, mask),) = mixed(mixture, given)
        spans = [[(0, 1, [4])] for _ in lengths]
        by_expert = [chain.span_scores(scores, mask, spans) for chain, scores in mixture.chains(output.expert_logits)]
    short = [post for post, length in enumerate(lengths) if length <= 3]
    assert short
    of_readers = [*temperatures, temperatures[0]] if alone else temperatures
    for post, (place, temperature) in itertools.product(short, enumerate(of_readers)):
        paths, log_p = enumerated(mixture.readers[place].crf, given.expert_logits[post][place])
        p = (log_p / temperature).softmax(0)
        for word, tag in itertools.product(range(lengths[post]), range(mixture.config.num_labels)):
            share = sum(float(one) for path, one in zip(paths, p, strict=True) if path[word] == tag)
            found = math.exp(output.expert_log_probs[post, place, word, tag])
            assert found == pytest.approx(share, abs=1e-5)
            if word == 0 and tag == 4:
                assert float(by_expert[place][post][0]) == pytest.approx(share, abs=1e-5)


def test_a_relation_at_a_temperature_is_the_softmax_over_it(build):
    mixture, given, _ = of_mixture(build, "relations")
    with at_temperatures(mixture, [2.0, 0.5]):
        ((output, _),) = mixed(mixture, given)
    expected = torch.stack(given.expert_logits) / torch.tensor([2.0, 0.5])[:, None]
    assert torch.allclose(output.expert_log_probs, expected.log_softmax(-1), atol=1e-6)


def test_the_likelihood_of_labels_counts_words_alone(posts):
    """Against sums word by word; what pads the shorter posts of a batch counts nothing."""
    emissions, labels = (part[:6] for part in posts)
    model = Experts(chain(), None)
    found = label_likelihoods(model, features(emissions, [2 * one for one in emissions]), labels, batch_size=4)
    for row, scores, tags in zip(found, emissions, labels, strict=True):
        paths, log_p = enumerated(chain(), scores)
        marginals = [
            math.log(sum(float(p.exp()) for path, p in zip(paths, log_p, strict=True) if path[word] == tag))
            for word, tag in enumerate(tags)
        ]
        softmax = [float((2 * one).log_softmax(-1)[tag]) for one, tag in zip(scores, tags, strict=True)]
        assert row.tolist() == pytest.approx([sum(marginals), sum(softmax)], abs=1e-4)
    pairs = features([torch.tensor([1.0, 2.0])], [torch.tensor([3.0, 0.0])])
    expected = [math.log(1 / (1 + math.exp(1))), math.log(1 / (1 + math.exp(-3)))]
    assert label_likelihoods(Experts(None, None), pairs, [0]).tolist()[0] == pytest.approx(expected)


def test_the_oracle_takes_the_likelier_expert_and_of_equal_ones_the_first():
    said = [[Prediction(f"{name}{post}", [1.0]) for post in range(4)] for name in "ab"]
    likelihoods = torch.tensor([[-1.0, -2.0], [-5.0, -0.5], [-3.0, -3.0], [-math.inf, -900.0]])
    assert [one.labels for one in oracle(likelihoods, said)] == ["a0", "b1", "a2", "b3"]


def test_a_reading_that_is_not_mixed_is_no_choice_of_the_oracle(build):
    """One that only tells the gate how sure an expert is."""
    mixture, given, lengths = of_mixture(build, "entities", alone=[0])
    labels = [[0] * length for length in lengths]
    found = label_likelihoods(mixture, given, labels)
    assert len(given.expert_logits[0]) == 3 and found.shape == (len(given), 2)
    everything = label_likelihoods(*of_mixture(build, "entities", alone=[0], abstain=True)[:2], labels)
    assert everything.shape == (len(given), 3) and torch.equal(everything[:, :2], found)
