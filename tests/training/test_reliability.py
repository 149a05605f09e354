"""How true scores are, shown: rows of the results, the plot, and words on the card."""

import json
import re

from PIL import Image

import ner_runs
import run_ner
from modeling_more.data.tasks import ENTITIES, RELATIONS
from modeling_more.predictions import Prediction
from modeling_more.training.mixture_report import card_parts
from modeling_more.training.reliability import PLOT, calibration_rows, calibration_sections, draw_reliability
from ner_runs import options, read, read_lines

GOLD = [{"relation": label} for label in ("a", "a", "None", "b", "a")]


def said(*pairs: tuple[str, float]) -> list[Prediction]:
    return [Prediction(label, [score, 1 - score]) for label, score in pairs]


FOUND = {
    "": said(("a", 0.95), ("a", 0.95), ("None", 0.95), ("a", 0.65), ("b", 0.55)),
    "expert_text": said(*[("a", 0.95)] * 5),  # right three times of five
    "expert_image": said(*[("b", 0.75)] * 5),
}
TEMPERED = FOUND | {"expert_text": said(*[("a", 0.65)] * 5)}


def test_rows_before_and_after_temperatures():
    rows = calibration_rows(RELATIONS, GOLD, "test", FOUND, ["text", "image"], TEMPERED, [3.0, 1.0])
    assert [(row["system"], row["temperature"]) for row in rows] == [("text", 3.0), ("image", 1.0), ("mixture", None)]
    assert [round(row["error"], 6) for row in rows] == [35.0, 55.0, 27.0]
    assert [round(row["tempered_error"], 6) for row in rows] == [5.0, 55.0, 27.0]
    assert all(row["predicted"] == 5 and row["posts"] == "test" for row in rows)
    assert json.loads(json.dumps(rows)) == rows
    (alone,) = calibration_rows(RELATIONS, GOLD, "dev", FOUND)
    assert alone["system"] == "this model" and alone["tempered_error"] is alone["temperature"] is None


def test_the_plot_and_the_card(tmp_path):
    rows = calibration_rows(RELATIONS, GOLD, "test", FOUND, ["text", "image"], TEMPERED, [3.0, 1.0])
    draw_reliability(rows, tmp_path / PLOT)
    both = Image.open(tmp_path / PLOT).width
    results = {"experts": {"text": "x", "image": "y"}, "calibration": rows}
    ((title, section),) = card_parts(results, "text-classification", "mixed")["sections"]
    assert title == "Calibration" and f"({PLOT})" in section
    assert "| text | 5 | 35.00 | 3.00 | 5.00 |" in section and "| mixture | 5 | 27.00 | – | 27.00 |" in section
    assert "100 % of the 3 with a score of 0.9 or more, 0 % of the 2 from 0.5 to 0.9." in section
    assert "without temperatures" in section

    plain = calibration_rows(RELATIONS, GOLD, "test", FOUND, ["text", "image"])  # of a saved mixture, say
    draw_reliability(plain, tmp_path / PLOT)
    assert Image.open(tmp_path / PLOT).width < both
    ((_, section),) = calibration_sections({"calibration": plain})
    assert "temperature" not in section and "| mixture | 5 | 27.00 |" in section


def test_nothing_predicted_is_neither_drawn_nor_told(tmp_path):
    empty = {"": [Prediction(["O", "O"], [])], "expert_text": [Prediction(["O", "O"], [])]}
    rows = calibration_rows(ENTITIES, [{"ner_tags": ["B-PER", "O"]}], "test", empty, ["text"])
    draw_reliability(rows, tmp_path / PLOT)
    assert not list(tmp_path.iterdir()) and calibration_sections({"calibration": rows}) == []
    assert calibration_sections({}) == []


def test_a_run_of_one_expert_tells_it_as_well(files, tiny_encoder):
    """The error in the results is that of the predictions that were written."""
    arguments = options(files, tiny_encoder("bert"), "--num_train_epochs", "4", "--save_checkpoints", "false")
    results = run_ner.main(arguments)
    assert results["dev_calibration_error"] >= 0 and results["calibration"][0]["posts"] == "test"
    bins: dict[int, list[tuple[float, bool]]] = {}
    for row in read_lines(files, "predictions/test.jsonl"):
        for entity in row["entities"]:
            start, end = entity["start"], entity["end"]
            wanted = [f"B-{entity['type']}", *[f"I-{entity['type']}"] * (end - start - 1)]
            right = row["gold"][start:end] == wanted and not (row["gold"][end : end + 1] or ["O"])[0].startswith("I-")
            bins.setdefault(min(9, int(entity["score"] * 10)), []).append((entity["score"], right))
    number = sum(map(len, bins.values()))
    gaps = [abs(sum(score for score, _ in one) - sum(right for _, right in one)) for one in bins.values()]
    assert number > 3 and abs(results["test_calibration_error"] - 100 * sum(gaps) / number) < 1e-6
    assert read(files, "all_results.json")["calibration"] == results["calibration"]
    card = (ner_runs.Path(files["out"]) / "README.md").read_text()
    assert "## Calibration" in card and re.search(rf"\| this model \| {number} \| [\d.e-]+ \|", card)
    assert PLOT not in card
