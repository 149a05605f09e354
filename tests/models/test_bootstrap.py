"""The paired bootstrap against one that draws sample by sample."""

import numpy as np
import pytest

from modeling_more.metrics import entity_counts, paired_bootstrap, relation_counts


def test_bootstrap_against_one_sample_at_a_time():
    rng = np.random.default_rng(1)
    gold = rng.integers(1, 4, 40)
    one = np.stack([np.minimum(gold, rng.integers(0, 4, 40)), rng.integers(3, 5, 40), gold], 1)
    two = np.stack([np.minimum(gold, rng.integers(0, 3, 40)), rng.integers(3, 5, 40), gold], 1)
    difference, low, high = paired_bootstrap(one, two, samples=500, seed=3)
    drawn = np.random.default_rng(3).integers(40, size=(500, 40))

    def f1(counts):
        right, found, wanted = counts.sum(0)
        return 200 * right / (found + wanted)

    by_hand = [f1(one[rows]) - f1(two[rows]) for rows in drawn]
    assert difference == pytest.approx(f1(one) - f1(two))
    assert (low, high) == pytest.approx(tuple(np.percentile(by_hand, (2.5, 97.5))))
    assert paired_bootstrap(one, one)[0:3] == (0.0, 0.0, 0.0)
    assert entity_counts([["B-A", "I-A", "O"]], [["B-A", "I-A", "B-A"]]).tolist() == [[1, 1, 2]]
    assert relation_counts(["a", "None", "b"], ["a", "b", "None"]).tolist() == [[1, 1, 1], [0, 0, 1], [0, 1, 0]]
