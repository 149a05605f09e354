"""Entity scores against values computed by hand; those of relations stand in test_relations.py."""

import pytest

from modeling_more.metrics import EntityF1, entity_counts, entity_scores

GOLD = [["B-PER", "I-PER", "O", "B-LOC"], ["I-LOC", "O", "B-ORG"], ["O", "O"]]
FOUND = [["B-PER", "E-PER", "O", "S-ORG"], ["S-LOC", "O", "O"], ["O", "S-PER"]]


def test_scores_by_hand():
    """Right are the person and the place whose tag strays; a type is wrong, one is missed, one is invented."""
    scores = entity_scores(FOUND, GOLD)
    assert (scores["precision"], scores["recall"], scores["f1"]) == (50.0, 50.0, 50.0)
    # the place that no B- opens is no entity there: one of three is right, of four that are found
    assert scores["strict_f1"] == pytest.approx(100 * 2 / 7)
    rows = {name: tuple(row.values()) for name, row in scores["f1_per_type"].items()}
    assert rows["PER"] == pytest.approx((50, 100, 200 / 3, 1))
    assert rows["LOC"] == pytest.approx((100, 50, 200 / 3, 2))
    assert rows["ORG"] == (0, 0, 0, 1)
    assert EntityF1().compute(predictions=FOUND, references=GOLD) == scores
    assert entity_counts(FOUND, GOLD).sum(0).tolist() == [2, 4, 4]


def test_nothing_found_and_other_lengths():
    assert entity_scores([["O"]], [["O"]])["f1"] == 0.0 == entity_scores([["O"]], [["B-PER"]])["f1"]
    with pytest.raises(ValueError, match="sentence 0 has 1 tags and 2 predictions"):
        entity_scores([["O", "O"]], [["O"]])
