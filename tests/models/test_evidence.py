"""Evidence: its numbers by hand and by brute force, what is not known, and the same on every way to a model."""

import itertools
import math

import pytest
import torch
from scipy.spatial.distance import jensenshannon

from mixture_experts import CLASSES, IMAGE_DIM, KNOWLEDGE, LABELS, NAMES, PAIRS, TASKS, WORDS, save_experts
from modeling_more import MoReMixtureConfig, MoReMixtureProcessor, MoReProcessor
from modeling_more.encoding import EXPERT_KNOWLEDGE, OneProcess
from modeling_more.evidence import CHAINS, SEARCH, of_classes, of_search
from modeling_more.evidence import CLASSES as OF_CLASSES
from modeling_more.evidence import WORDS as OF_WORDS
from modeling_more.gate import FAR, Gate
from modeling_more.pipelines import EntityPipeline, RelationPipeline, predict
from modeling_more.training.expert_outputs import expert_features, mixed

EVIDENCE = ["scores", "confidence"]


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


def build(folders, task="entities", **config):
    """A mixture whose gate reads evidence, with random weights and statistics, and its processor."""
    config = {"gate_inputs": EVIDENCE, "alone": [0, 1]} | config
    mixture = CLASSES[task][1].from_experts(folders[task], NAMES, **config)
    torch.manual_seed(5)
    with torch.no_grad():
        for value in (*mixture.gate.parameters(), *mixture.gate.buffers()):
            value.copy_(torch.randn_like(value).abs() + 0.1)
    processors = [MoReProcessor.from_pretrained(folder) for folder in folders[task]]
    return mixture, MoReMixtureProcessor(processors, NAMES, alone=bool(config["alone"]))


def entry(title, score=0.0, **more):
    return {"title": title, "text": "Some text .", "score": score, **more}


# --- of the search


def test_what_a_search_found_by_hand():
    entries = [entry("Lindau (Bodensee)", 6.0, scale=8.0), entry("The Isle", 4.5, scale=8.0), entry("Ada", 1.0)]
    told, named = of_search(["LINDAU", "isle", ",", "Bavaria"], entries, [0, 1])
    assert dict(zip(SEARCH, told, strict=True)) == {
        "entries": 2, "best_score": 6.0, "lead": 1.5, "share_of_scale": 0.75, "words_in_titles": pytest.approx(2 / 3),
        "nothing_found": 0, "without_scores": 0,
    }  # fmt: skip
    assert named == [True, True, False, False]  # a comma is no word, and no title holds Bavaria


@pytest.mark.parametrize(
    ("entries", "read", "known"),
    [
        (None, [], {}),  # an expert that reads none
        ([], [], {"entries": 0, "words_in_titles": 0, "nothing_found": 1, "without_scores": 0}),
        ([entry("Ada")], [0], {"entries": 1, "words_in_titles": 1, "nothing_found": 0, "without_scores": 1}),
        ([entry("Ada", 2.0)], [0], {"entries": 1, "best_score": 2, "words_in_titles": 1, "nothing_found": 0,
                                    "without_scores": 0}),
        ([entry("Ada", 2.0), entry("Bob", 0.5)], [0], {"entries": 1, "best_score": 2, "lead": 1.5, "nothing_found": 0,
                                                       "words_in_titles": 1, "without_scores": 0}),
        ([entry("Ada", 2.0)], [], {"entries": 0, "words_in_titles": 0, "nothing_found": 1, "without_scores": 0}),
    ],
)  # fmt: skip
def test_what_is_not_known_is_nan_and_never_a_silent_zero(entries, read, known):
    told, _ = of_search(["Ada"], entries, read)
    assert {name: value for name, value in zip(SEARCH, told, strict=True) if not math.isnan(value)} == known


def test_a_gate_takes_what_is_not_known_for_the_mean_and_bounds_what_is_far():
    gate = Gate(0, 0, 2, evidence_dim=3)
    values = torch.tensor([[1.0, float("nan"), 7.0], [3.0, 5.0, 7.0], [float("nan"), 9.0, 7.0]])
    gate.standardise(evidence=values)
    assert gate.evidence_center.tolist() == [2, 7, 7]
    assert gate.evidence_scale.tolist() == pytest.approx([2**0.5, 8**0.5, 1])  # the last one never changes
    seen = gate.standardised(torch.tensor([[2.0 + 2**0.5, float("nan"), 1e9]]))
    assert seen.tolist() == [[pytest.approx(1), 0, FAR]]


# --- of what experts say


def test_classes_by_hand_with_impossible_ones():
    probs = torch.tensor([[[0.5, 0.5, 0.0], [0.25, 0.25, 0.5]]])
    alone = torch.tensor([[[0.5, 0.0, 0.5], [float("nan")] * 3]])
    found = dict(zip(OF_CLASSES, of_classes(probs.log(), alone.log()).unbind(-1), strict=True))
    assert found["entropy"].tolist() == [pytest.approx([math.log(2), 1.5 * math.log(2)])]
    assert found["maximum"].tolist() == [[0.5, 0.5]]
    mean = probs.mean(1)[0]
    wanted = [jensenshannon(one, mean) ** 2 for one in probs[0]]
    assert found["to_mean"][0].tolist() == pytest.approx(wanted, rel=1e-5)
    assert found["to_alone"][0, 0].item() == pytest.approx(jensenshannon(probs[0, 0], alone[0, 0]) ** 2, rel=1e-5)
    assert found["to_alone"][0, 1].isnan()


def test_chains_by_brute_force(folders):
    """Everything from the list of all label sequences of a short post and their probabilities."""
    mixture, processor = build(folders, alone=[1])
    processor.alone = False
    torch.manual_seed(0)
    words, labels = 3, len(LABELS)
    logits = torch.randn(1, 3, words, labels)  # two experts, and the second one reading the words alone
    mask = torch.ones(1, words, dtype=torch.bool)
    with torch.no_grad():
        evidence = mixture(expert_logits=logits, word_mask=mask).evidence
    found = evidence[0, 2 * len(SEARCH) :].reshape(2, len(CHAINS))
    assert evidence[0, : 2 * len(SEARCH)].isnan().all()  # no search was given
    paths = list(itertools.product(range(labels), repeat=words))

    def distribution(expert, emissions):
        crf = expert.crf
        scores = [
            crf.start_transitions[path[0]] + crf.end_transitions[path[-1]]
            + sum(emissions[i, tag] for i, tag in enumerate(path))
            + sum(crf.transitions[a, b] for a, b in itertools.pairwise(path))
            for path in paths
        ]  # fmt: skip
        return torch.stack(scores).softmax(0).detach()

    chances = [distribution(mixture.experts[place], logits[0, row]) for row, place in enumerate((0, 1, 1))]
    q = torch.zeros(3, words, labels)
    for row, path in itertools.product(range(3), range(len(paths))):
        for word, tag in enumerate(paths[path]):
            q[row, word, tag] += chances[row][path]
    for row in range(2):
        entropy = -(q[row] * q[row].log()).sum(-1)
        mass = 1 - q[row, :, LABELS.index("O")]
        begins = [number for number, label in enumerate(LABELS) if label[0] in "BS"]
        told = dict(zip(CHAINS, found[row].tolist(), strict=True))
        assert told["entropy"] == pytest.approx(entropy.mean().item(), rel=1e-4)
        assert told["entity_entropy"] == pytest.approx(((mass * entropy).sum() / mass.sum()).item(), rel=1e-4)
        assert told["entity_maximum"] == pytest.approx(((mass * q[row].amax(-1)).sum() / mass.sum()).item(), rel=1e-4)
        number = sum(
            chance * sum(tag in begins for tag in path)
            for chance, path in zip(chances[row].tolist(), paths, strict=True)
        )
        assert told["expected_entities"] == pytest.approx(number, rel=1e-4)
        assert told["best_path"] == pytest.approx(chances[row].max().log().item(), rel=1e-4, abs=1e-5)
        mean = q[:2].mean(0)
        wanted = sum(jensenshannon(q[row, word], mean[word]) ** 2 for word in range(words))
        assert told["to_mean"] == pytest.approx(wanted, rel=1e-3, abs=1e-5)
        if row == 0:
            assert math.isnan(told["to_alone"])
        else:
            wanted = sum(jensenshannon(q[1, word], q[2, word]) ** 2 for word in range(words))
            assert told["to_alone"] == pytest.approx(wanted, rel=1e-3, abs=1e-5)


def test_a_gate_per_word_reads_the_words_own_evidence(folders):
    mixture, processor = build(folders, gate="word")
    with torch.no_grad():
        output = mixture(**processor(WORDS, KNOWLEDGE))
    assert output.evidence.shape == (len(WORDS), 30, 2 * (len(SEARCH) + len(OF_WORDS)))
    titles = output.evidence[..., SEARCH.index("words_in_titles")]
    assert titles[1, :3].tolist() == [0, 0, 0] and titles[3, 0] == 0  # Acme Corp; "Rivera" is in no title
    assert titles[0, :5].tolist() == [0] * 5
    second = output.evidence[..., len(SEARCH) + SEARCH.index("words_in_titles")]
    assert second[1].isnan().all()  # the second expert was given nothing there
    assert output.expert_weights.shape == (len(WORDS), 30, 2)


# --- the same numbers everywhere


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("entities", {}), ("entities", {"gate": "word"}), ("entities", {"abstain": True}), ("relations", {}),
        ("relations", {"abstain": True, "alone": [1]}), ("entities", {"gate_inputs": ["scores"], "alone": []}),
        ("entities", {"gate_inputs": ["text", "image", *EVIDENCE], "image_dim": IMAGE_DIM}),
    ],
)  # fmt: skip
def test_pipeline_predict_and_cached_training_see_the_same(task, options, folders, tmp_path):
    mixture, processor = build(folders, task, **options)
    if options.get("alone") == [1]:  # of two experts the one that retrieves
        processor.processors[0].knowledge_column = None
    if (alone := options.get("alone", [0, 1])) != []:
        assert processor.alone_places == alone
    rows = (0, 1, 3) if task == "relations" else (0, 1, 2, 3)  # the third post has one word: no pair
    own = [[one[row] for row in rows] for one in KNOWLEDGE]
    if not processor.processors[0].knowledge_column:
        own[0] = [None] * len(rows)
    words, pairs = [WORDS[row] for row in rows], [PAIRS[row] for row in rows] if task == "relations" else None
    posts = [
        {"tokens": post, EXPERT_KNOWLEDGE: [one[place] for one in own]}
        | ({"head": pairs[place][0], "tail": pairs[place][1]} if pairs else {})
        for place, post in enumerate(words)
    ]
    with torch.no_grad():
        plain = mixture(**processor(words, own, pairs=pairs))
    names = mixture.config.readers
    assert plain.expert_weights.shape[-1] == len(names) == 2 + (options.get("abstain", False) and len(alone))

    class Alone(OneProcess):
        def prepare(self, one):
            return one

    features = expert_features(mixture, processor, posts, Alone(mixture.device), 3, tmp_path)
    again = expert_features(mixture, processor, posts, Alone(mixture.device), 3, tmp_path)  # from the cache
    assert len(list(tmp_path.rglob("*.safetensors"))) == 1
    for one in (features, again):
        (output, _), *others = mixed(mixture, one)
        assert not others
        assert torch.allclose(output.evidence, plain.evidence, atol=1e-5, equal_nan=True)
        assert torch.allclose(output.expert_weights, plain.expert_weights, atol=1e-5)
    weights = plain.expert_weights
    if weights.dim() == 3:
        mask = processor(words, own)["word_mask"]
        weights = torch.stack([row[one].mean(0) for row, one in zip(weights, mask, strict=True)])
    kind = RelationPipeline if task == "relations" else EntityPipeline
    for results in (predict(mixture, processor, posts), kind(mixture, processor, batch_size=1)(posts)):
        told = [one["relations"][0] if task == "relations" else one for one in results]
        found = torch.tensor([list(one["expert_weights"].values()) for one in told])
        assert [list(one["experts"]) for one in told] == [names] * len(posts)
        assert torch.allclose(found, weights, atol=1e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_saved_mixture_comes_back_bit_for_bit_with_its_statistics(task, folders, tmp_path):
    mixture, processor = build(folders, task, abstain=True)
    mixture.save_pretrained(tmp_path / "mixture")
    processor.save_pretrained(tmp_path / "mixture")
    again = CLASSES[task][1].from_pretrained(tmp_path / "mixture")
    saved = MoReMixtureProcessor.from_pretrained(tmp_path / "mixture")
    assert again.config.gate_inputs == EVIDENCE and again.config.abstain and saved.alone
    assert torch.equal(again.gate.evidence_center, mixture.gate.evidence_center)
    pairs = PAIRS if task == "relations" else None
    with torch.no_grad():
        before, after = (
            mixture(**processor(WORDS, KNOWLEDGE, pairs=pairs)),
            again(**saved(WORDS, KNOWLEDGE, pairs=pairs)),
        )
    for name in ("logits", "expert_weights", "evidence"):
        one, other = getattr(before, name), getattr(after, name)
        assert torch.equal(one.nan_to_num(7e9), other.nan_to_num(7e9)), name


def test_a_gate_that_reads_nothing_is_the_average_or_one_expert(folders):
    mixture, processor = build(folders, gate_inputs=[], alone=[])
    inputs = processor(WORDS, KNOWLEDGE)
    with torch.no_grad():
        mixture.gate.bias.zero_()
        output = mixture(**inputs)
        assert torch.equal(output.expert_weights, torch.full((len(WORDS), 2), 0.5)) and output.evidence is None
        mixture.gate.bias.copy_(torch.tensor([-1e4, 0.0]))
        output = mixture(**inputs)
    assert torch.equal(output.logits, output.expert_log_probs[:, 1])


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"gate_inputs": ["text", "scroes"]}, "gate_inputs hold 'scroes', they must be some of text, image, scores"),
        ({"alone": 5}, "alone is 5, it must be a list"),
        ({"gate_inputs": {"text": 1}}, "it must be a list"),
        ({"alone": [2]}, "alone is [2], it must hold numbers of the 2 experts"),
        ({"abstain": True, "alone": []}, "abstain needs alone"),
        ({"temperatures": [1.0]}, "temperatures are [1.0], they must be 2 numbers above 0"),
        ({"temperatures": [1.0, 0.0]}, "they must be 2 numbers above 0"),
        ({"temperatures": [1.0, float("inf")]}, "they must be 2 numbers above 0"),
    ],
)
def test_options_out_of_their_range(options, told, folders):
    experts = build(folders)[0].config.experts
    with pytest.raises(ValueError, match=told.replace("[", r"\[").replace("]", r"\]")):
        MoReMixtureConfig(experts=experts, expert_names=NAMES, **options)


def test_inputs_that_do_not_fit_the_gate(folders, tmp_path):
    mixture, processor = build(folders)
    processor.alone = False
    with pytest.raises(ValueError, match="the words alone are given for 0 experts, 2 of the mixture read them"):
        mixture(**processor(WORDS, KNOWLEDGE))
    mixture.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="its experts .0, 1. read the words alone, its processor"):
        MoReMixtureProcessor.from_pretrained(tmp_path)
