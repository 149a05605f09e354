"""The calibration error against a second computation, post by post, and where it is known beforehand."""

import random

import pytest

from modeling_more.data.tasks import ENTITIES, RELATIONS
from modeling_more.metrics import calibration, entity_calibration, relation_calibration
from modeling_more.predictions import Prediction
from modeling_more.tagging import spans_to_bio, spans_to_bioes


def by_hand(pairs: list[tuple[float, bool]]) -> float:
    """Each prediction lies in the bin that the first decimal of its score names."""
    error = 0.0
    for place in range(10):
        own = [(score, right) for score, right in pairs if min(int(f"{score:.9f}"[2]) if score < 1 else 9, 9) == place]
        if own:
            gap = sum(score for score, _ in own) / len(own) - sum(right for _, right in own) / len(own)
            error += len(own) / len(pairs) * abs(gap)
    return 100 * error


def test_entities_as_counted_span_by_span():
    rng = random.Random(3)
    found, scores, gold, pairs = [], [], [], []
    for _ in range(60):
        true, said = (
            [(start, start + rng.randint(1, 2), rng.choice("AB")) for start in (0, 2, 4) if rng.random() < 0.6]
            for _ in range(2)
        )
        own = [rng.random() for _ in said]
        pairs += [(score, span in true) for score, span in zip(own, said, strict=True)]
        found.append(spans_to_bioes(said, 6))
        gold.append(spans_to_bio(true, 6))
        scores.append(own)
    result = entity_calibration(found, scores, gold)
    assert result["calibration_error"] == pytest.approx(by_hand(pairs), abs=1e-9) and result["calibration_error"] > 5
    assert result["predicted"] == len(pairs) == sum(row["number"] for row in result["bins"]) > 80
    predictions = [Prediction(*one) for one in zip(found, scores, strict=True)]
    assert ENTITIES.calibration(predictions, [{"ner_tags": tags} for tags in gold]) == result


def test_relations_count_pairs_without_one_too():
    rng = random.Random(4)
    names = ["None", "/a", "/b"]
    found, gold = ([rng.choice(names) for _ in range(200)] for _ in range(2))
    rows = [[rng.random() for _ in names] for _ in found]
    rows = [[value / sum(row) for value in row] for row in rows]
    scores = [max(row) for row in rows]
    result = relation_calibration(found, scores, gold)
    pairs = [(score, one == other) for score, one, other in zip(scores, found, gold, strict=True)]
    assert result["calibration_error"] == pytest.approx(by_hand(pairs), abs=1e-9)
    assert result["predicted"] == 200 and "None" in found
    predictions = [Prediction(*one) for one in zip(found, rows, strict=True)]
    assert RELATIONS.calibration(predictions, [{"relation": label} for label in gold]) == result


@pytest.mark.parametrize(
    ("scores", "right", "error"),
    [
        ([0.25] * 4 + [0.75] * 4, [True, False, False, False, True, True, True, False], 0.0),  # true to the letter
        ([1.0] * 5, [True] * 5, 0.0),
        ([0.95] * 4, [False] * 4, 95.0),  # always too sure
        ([0.05] * 4, [True] * 4, 95.0),  # never sure enough
        ([0.7] * 3 + [0.78], [True, True, True, False], 3.0),  # one bin: |0.72 - 0.75|
        ([], [], 0.0),
    ],
)
def test_closed_cases(scores, right, error):
    assert calibration(scores, right)["calibration_error"] == pytest.approx(error, abs=1e-9)


def test_the_table_of_bins():
    rows = calibration([0.0, 0.3, 0.3, 0.95, 1.0, 1.00001], [False, True, False, True, True, False])["bins"]
    assert [row["from"] for row in rows] == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9]
    filled = {place: row for place, row in enumerate(rows) if row["number"]}
    assert {place: row["number"] for place, row in filled.items()} == {0: 1, 3: 2, 9: 3}
    assert filled[3]["score"] == pytest.approx(0.3) and filled[3]["right"] == 0.5
    assert filled[9]["right"] == pytest.approx(2 / 3)
    assert rows[5] == {"from": 0.5, "to": 0.6, "number": 0, "score": None, "right": None}


def test_what_is_no_probability_or_does_not_fit_is_refused():
    for score in (1.01, -0.1, float("nan")):
        with pytest.raises(ValueError, match="no probability"):
            calibration([score], [True])
    with pytest.raises(ValueError, match="2 scores for 1 predictions"):
        calibration([0.5, 0.5], [True])
