"""How a gate weighs is shown where it tells something: panels, groups of posts, words on the card."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from modeling_more.encoding import EXPERT_KNOWLEDGE
from modeling_more.predictions import Prediction
from modeling_more.training.mixture_report import (
    DEVIATION,
    PLOT,
    best_scores,
    card_parts,
    draw_gate_weights,
    gate_table,
    report_gate,
    weighed_alike,
)
from modeling_more.training.model_card import write_model_card

NAMES = ["none", "text", "image"]
NONE = float("nan")


def entry(score: float | None) -> dict:
    return {"title": "Lindau", "text": "Lindau is a town.", "score": score}


#: what three experts read for four posts: one searches nothing, one found nothing once, one was given no scores
ENTRIES = [
    [None, [entry(3.0), entry(5.0)], [entry(0.0)]],
    [None, [entry(2.0)], [entry(0.0), entry(0.0)]],
    [None, [], [entry(None)]],
    [None, [entry(-0.5)], None],
]
WEIGHTS = torch.tensor([[0.1, 0.8, 0.1], [0.2, 0.7, 0.1], [0.6, 0.2, 0.2], [0.4, 0.3, 0.3]])


def test_best_scores_and_what_is_no_score():
    found = best_scores(ENTRIES)
    assert found[:, 1].nan_to_num(99.0).tolist() == [5.0, 2.0, 99.0, -0.5]
    assert found[:, [0, 2]].isnan().all()


def test_a_panel_for_each_expert_with_scores():
    scores = best_scores(ENTRIES)
    figure = draw_gate_weights(WEIGHTS, NAMES, scores, [True, True, False, False])
    (panel,) = figure.axes
    assert panel.get_title(loc="left") == "text (3 posts, 1 without a score)"
    (points,) = panel.collections
    drawn = {tuple(round(value, 4) for value in point) for point in points.get_offsets().tolist()}
    assert drawn == {(5.0, 0.8), (2.0, 0.7), (-0.5, 0.3)}

    scores[:, 2] = torch.tensor([0.1, 0.2, 0.3, 0.4])
    titles = [axes.get_title(loc="left") for axes in draw_gate_weights(WEIGHTS, NAMES, scores, [True] * 4).axes]
    assert titles == ["text (3 posts, 1 without a score)", "image (4 posts)"]


def test_without_scores_the_weights_are_drawn_by_agreement_of_the_experts():
    unknown = torch.full((4, 3), NONE)
    both = draw_gate_weights(WEIGHTS, NAMES, unknown, [True, False, False, False])
    titles = [axes.get_title(loc="left") for axes in both.axes]
    assert titles == ["experts agree (1 posts)", "experts disagree (3 posts)"]
    (one,) = draw_gate_weights(WEIGHTS, NAMES, unknown, [True] * 4).axes  # a panel without posts is left out
    assert one.get_title(loc="left") == "experts agree (4 posts)"


def test_the_table_has_rows_by_what_was_found():
    found = {"text": [True, True, False, True], "image": [True] * 4}
    rows = {row["test posts"]: row for row in gate_table(WEIGHTS, NAMES, [True] * 4, None, found)}
    # of the image search, which always found something, there is nothing to tell
    assert list(rows)[3:] == ["text: knowledge found", "text: none found"]
    assert rows["text: knowledge found"]["text"] == pytest.approx((0.8 + 0.7 + 0.3) / 3)
    assert rows["text: none found"]["none"] == pytest.approx(0.6) and rows["text: none found"]["number"] == 1
    assert rows["experts disagree"] == {
        **{"test posts": "experts disagree", "number": 0},
        **dict.fromkeys([*NAMES, DEVIATION]),
    }
    deviation = (sum((value - 0.5) ** 2 for value in (0.8, 0.7, 0.2, 0.3)) / 4) ** 0.5
    assert rows["all posts"][DEVIATION] == pytest.approx(deviation, abs=1e-6)


def reported(weights: torch.Tensor, folder: Path) -> tuple[list[dict], str]:
    """The table of some weights, and the card beside the plot."""
    said = [["a", "a", "a"], ["a", "b", "a"], ["a", "a", "a"], ["b", "b", "a"]]
    found = [
        Prediction(
            "a", [1.0], dict(zip(NAMES, row.tolist(), strict=True)),
            {name: Prediction(label, [1.0]) for name, label in zip(NAMES, labels, strict=True)},
        )
        for row, labels in zip(weights, said, strict=True)
    ]  # fmt: skip
    folder.mkdir()
    table = report_gate([{EXPERT_KNOWLEDGE: row} for row in ENTRIES], found, folder / PLOT)
    results = {"experts": {name: name for name in NAMES}, "gate": table, "test_f1": 90.0}
    parts = card_parts(results, "token-classification", "mixed")
    return table, write_model_card(folder, results, {}, "python", [], **parts).read_text()


def test_readings_of_the_words_alone_have_weights_but_no_search(tmp_path):
    names = ["text", "image", "text_alone"]
    found = [
        Prediction("a", [1.0], dict(zip(names, row, strict=True)), {name: Prediction("a", [1.0]) for name in names})
        for row in WEIGHTS.tolist()
    ]
    table = report_gate([{EXPERT_KNOWLEDGE: row[1:]} for row in ENTRIES], found, tmp_path / PLOT)
    assert "text: none found" in {row["test posts"] for row in table} and (tmp_path / PLOT).is_file()
    assert not any(row["test posts"].startswith("text_alone") for row in table)


def linked(card: str, folder: Path) -> list[str]:
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", card)
    assert all((folder / link).is_file() for link in links)
    return links


def test_a_gate_that_weighs_is_drawn(tmp_path):
    table, card = reported(WEIGHTS, tmp_path / "a")
    assert not weighed_alike(table) and linked(card, tmp_path / "a") == [PLOT]
    assert Image.open(tmp_path / "a" / PLOT).width > 300
    groups = {row["test posts"]: row["number"] for row in table}
    assert groups["experts agree"] == 2 and groups["text: none found"] == 1 and "none: none found" not in groups
    assert "text: none found" in card and "weighed alike" not in card


@pytest.mark.parametrize(
    ("weights", "told"),
    [
        ([1 / 3] * 3, "(`none` 0.33, `text` 0.33, `image` 0.33): the plain average of the experts."),
        ([0.2, 0.5, 0.3], "(`none` 0.20, `text` 0.50, `image` 0.30)."),
    ],
)
def test_constant_weights_are_told_in_words_and_not_drawn(weights, told, tmp_path):
    table, card = reported(torch.tensor([weights] * 4), tmp_path / "a")
    assert weighed_alike(table) and not (tmp_path / "a" / PLOT).exists() and linked(card, tmp_path / "a") == []
    assert f"Every post is weighed alike {told}" in card


def test_a_table_of_an_older_run_still_has_its_plot():
    table = [{"test posts": "all posts", "number": 3, "text": 0.5, "image": 0.5}]
    results = {"experts": {"text": "a", "image": "b"}, "gate": table}
    ((_, section),) = card_parts(results, "token-classification", "mixed")["sections"]
    assert PLOT in section


def test_the_card_says_what_the_labels_would_choose():
    results = {
        "experts": {"text": "a", "image": "b"}, "test_f1": 96.0, "test_average_f1": 92.0, "test_oracle_f1": 97.0,
        "test_f1_minus_average": {"difference": 4.0, "low": 3.0, "high": 5.0},
    }  # fmt: skip
    ((_, section),) = card_parts(results, "token-classification", "mixed")["sections"]
    assert "The better expert of each post, chosen with the labels, has a test F1 of 97.00: what a gate" in section
    assert "goes 80 % of the way there from the average" in section
    del results["test_oracle_f1"]
    ((_, section),) = card_parts(results, "token-classification", "mixed")["sections"]
    assert "chosen with the labels" not in section


def test_the_oracle_is_no_score_in_the_metadata(tmp_path):
    results = {"test_f1": 96.0, "test_oracle_f1": 97.0, "test_expert_oracle_f1": 50.0}
    card = write_model_card(tmp_path, results, {}, "python", []).read_text()
    assert "| test, best expert of each post, chosen with the labels | 97.00 |" in card
    assert "| test, expert oracle | 50.00 |" in card
    metadata = card.split("---")[1]
    assert "97.0" not in metadata and "96.0" in metadata
