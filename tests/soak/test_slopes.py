"""Memory and open files are measured over steps and calls; neither leaves a file open."""

import slopes


def test_a_few_steps_and_calls_open_no_more_files() -> None:
    found = {name: measure(count) for name, measure, count in (
        ("training", slopes.training, 30), ("predicting", slopes.predicting, 60))}  # fmt: skip
    assert found["training"]["done"] == 30 and found["predicting"]["done"] == 60
    assert all(one["files"] <= 0 for one in found.values()), found


def test_a_slope_is_told_per_thousand() -> None:
    growth = slopes.Growth()
    growth.rows = [(done, 900 if done < 25 else 100 + 3 * done, 7 + (done == 100)) for done in range(0, 101, 5)]
    found = growth.summary()
    assert found["kb_per_1000"] == 3000 and found["files"] == 1 and found["done"] == 100
    growth.measure(101)
    assert growth.rows[-1][1] > 10_000 and growth.rows[-1][2] > 2
