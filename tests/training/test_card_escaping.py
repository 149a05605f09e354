"""What others chose, labels, names and command lines, is shown on cards and is no HTML or Markdown there."""

import json
import re
from pathlib import Path

import pytest
import yaml

import run_ner
from hostile_texts import HOSTILE, rendered
from modeling_more.training.mixture_report import card_parts
from modeling_more.training.model_card import scored_parts, write_model_card
from ner_runs import posts, training, write_jsonl

pytest.importorskip("markdown_it")

#: what the card itself writes
OWN = {"a", "code", "details", "em", "h1", "h2", "img", "li", "ol", "p", "pre", "strong", "summary", "ul"}
OWN |= {"table", "thead", "tbody", "tr", "th", "td"}


def check(card: str) -> str:
    html = rendered(card)
    assert {tag.lower() for tag in re.findall(r"</?([A-Za-z]\w*)", html)} <= OWN
    assert re.findall(r'<img[^>]*src="([^"]*)"', html) in ([], ["training_curve.png"])
    assert all(link.startswith("https://arxiv.org/") for link in re.findall(r'href="([^"]*)"', html))
    assert html.count("<details>") == html.count("</details>") == 2
    return html


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_label_name_or_command_is_text_on_the_card(text: str, tmp_path: Path) -> None:
    scores = {"precision": 1.0, "recall": 2.0, "f1": 3.0, "support": 4}
    results = {"test_f1": 3.0, "dev_f1": 2.0, "test_f1_per_type": {text: scores, "PER": scores}}
    config = {"dataset": text, "model_name_or_path": f"models/{text}", "retrieval": "text", "train_file": text}
    command = ["python", "run_ner.py", "--train_file", text]
    history = [{"epoch": 1, "loss": 1.0, "dev_f1": 2.0}]
    file = write_model_card(tmp_path, results, config, command, history, name=text)
    html = check(file.read_text())
    table = html.split("Scores per type")[1].split("</table>")[0]
    assert table.count("<tr>") == 3 and table.count("<td") == 10
    shown = "".join(re.findall(r"<td>(.*?)</td>", table)[:1])
    assert re.sub(r"&(lt|gt|amp|quot);", lambda m: {"lt": "<", "gt": ">", "amp": "&", "quot": '"'}[m[1]], shown) == (
        " ".join(text.split())
    )
    (metadata,) = re.findall(r"\A---\n(.*?)\n---\n", file.read_text(), flags=re.DOTALL)
    assert yaml.safe_load(metadata)["model-index"][0]["results"][0]["dataset"]["name"] == Path(text).name
    assert yaml.safe_load(metadata)["tags"][0] == "more"


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_folder_is_text_on_the_cards_of_scores_and_mixtures(text: str, tmp_path: Path) -> None:
    told = scored_parts(text, "token-classification", "text")
    check(write_model_card(tmp_path / "a", {}, {}, "python", [], **told).read_text())
    results = {"experts": {"text": f"models/{text}"}, "gate_posts": 3, "gate_data": text}
    told = card_parts(results, "token-classification", text)
    check(write_model_card(tmp_path / "b", {}, {}, "python", [], **told).read_text())


def test_a_run_on_hostile_labels(here, tmp_path):
    label = "PER<img/src=x>|`"
    rows = [{**row, "tags": [tag.replace("PER", label) for tag in row["tags"]]} for row in posts(12)]
    files = {**here, **dict.fromkeys(("train", "dev", "test"), str(write_jsonl(tmp_path / "a<b>.jsonl", rows)))}
    run_ner.main(training(files, "out"))
    html = check(Path("out/README.md").read_text())
    assert "PER&lt;img/src=x&gt;|`" in html
    assert label in json.loads(Path("out/all_results.json").read_text())["test_f1_per_type"]
