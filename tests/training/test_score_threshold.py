"""--min_score: knowledge of low scores is not read, by a number or by one that is chosen on the dev posts."""

import json
import logging
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, pipeline

import ner_runs
import re_runs
import run_ner
import run_re
from modeling_more import MoReMixtureForRelationExtraction, MoReMixtureProcessor, MoReProcessor, predict
from modeling_more.retrieval_settings import READ_NOTHING
from modeling_more.training.arguments import DataArguments
from modeling_more.training.experts import load_experts
from modeling_more.training.score_threshold import thresholds

WORDS = dict(zip(re_runs.RELATIONS, re_runs.TEXTS, strict=True))


def pairs(number: int, offset: int = 0) -> list[dict[str, Any]]:
    """Pairs whose relation stands in an entry of high score; every second has none, and an entry of low score lies."""
    rows = re_runs.pairs(number, offset)
    for place, row in enumerate(rows):
        if place % 2:
            row["relation"] = "None"
            row["knowledge_text"] = [
                {"title": "", "text": re_runs.TEXTS[1 + place // 2 % 2], "score": 1 + place % 9 / 5}
            ]
        else:
            row["knowledge_text"] = [{"title": "", "text": WORDS[row["relation"]], "score": 4 + place % 7}]
    return rows


def told_by_words(number: int, offset: int = 0) -> list[dict[str, Any]]:
    """Pairs whose relation stands among their own words, without knowledge."""
    rows = re_runs.pairs(number, offset)
    return [{**row, "tokens": [*row["tokens"], *WORDS[row["relation"]].split()], "knowledge_text": []} for row in rows]


def write(folder: Path, **splits: list[dict[str, Any]]) -> dict[str, str]:
    folder.mkdir(exist_ok=True)
    files = {name: str(ner_runs.write_jsonl(folder / f"{name}.jsonl", rows)) for name, rows in splits.items()}
    return files | {"out": str(folder / "out"), "cache": str(folder / "cache")}


@pytest.fixture(scope="module")
def chosen(tmp_path_factory: pytest.TempPathFactory, tiny_encoder: Any) -> dict[str, Any]:
    """A run that learned to read what is right, and chose on dev to read nothing else; its files and results."""
    train = [{**row, "knowledge_text": row["knowledge_text"] * (row["knowledge_text"][0]["score"] > 3)}
             for row in pairs(60)]  # fmt: skip
    splits = {"train": train + told_by_words(36, 60), "dev": pairs(60, 100), "test": pairs(48, 200)}
    files = write(tmp_path_factory.mktemp("chosen"), **splits)
    more = ["--num_train_epochs", "25", "--learning_rate", "3e-3", "--min_score", "dev"]
    results = run_re.main(re_runs.options(files, tiny_encoder("bert"), *more, retrieval="text"))
    return {"files": files, "results": results, **splits}


def test_the_threshold_that_is_right_is_chosen(chosen: dict[str, Any]) -> None:
    results = chosen["results"]
    curve = results["min_score_curve"]
    assert curve[0]["min_score"] is None and curve[-1]["min_score"] == READ_NOTHING
    assert curve[0]["share_that_reads"] == 1 and curve[-1]["share_that_reads"] == 0
    shares = [row["share_that_reads"] for row in curve]
    assert shares == sorted(shares, reverse=True) and len(curve) == 11
    # of the dev posts' scores, 2.6 is the highest wrong one and 4 the lowest right one
    assert results["min_score"] == pytest.approx((2.6 + 4) / 2)
    best = next(row for row in curve if row["min_score"] == results["min_score"])
    assert best["share_below"] == best["share_that_reads"] == 0.5
    assert best["dev_f1"] == max(row["dev_f1"] for row in curve)
    assert best["dev_f1"] > max(curve[0]["dev_f1"], curve[-1]["dev_f1"]) + 10
    assert best["dev_f1"] == pytest.approx(results["dev_f1"])
    assert results["min_score_gain"] == pytest.approx(best["dev_f1"] - results["min_score_plain_f1"])
    assert results["min_score_gain"] > results["min_score_gain_error"] > 0
    assert (results["dev_read_alone"], results["test_read_alone"]) == (30, 24)
    assert "train_read_alone" not in results  # it was trained as without the option


def test_what_was_saved_applies_it(chosen: dict[str, Any]) -> None:
    """The script's predictions, a loaded processor's, a pipeline's: all read the same."""
    out, rows = Path(chosen["files"]["out"]), chosen["test"]
    processor = AutoProcessor.from_pretrained(out)
    assert processor.min_score == chosen["results"]["min_score"]
    written = [json.loads(line) for line in (out / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [bool(row["knowledge"]) for row in written] == [place % 2 == 0 for place in range(len(rows))]
    posts = [{key: row[key] for key in ("tokens", "head", "tail", "knowledge_text")} for row in rows]
    pipe = pipeline("more-re", model=str(out), processor=processor)
    model = pipe.model
    for found in (predict(model, processor, posts), pipe(posts)):
        assert [one["knowledge"] for one in found] == [row["knowledge"] for row in written]
        assert [one["relations"][0]["relation"] for one in found] == [row["relation"] for row in written]
    everything = pipe(posts, min_score=-1)
    assert all(one["knowledge"] for one in everything)
    assert (
        sum(one["relations"][0]["relation"] != row["relation"] for one, row in zip(everything, written, strict=True))
        > 5
    )
    assert not any(one["knowledge"] for one in pipe(posts, min_score=1000.0))
    assert processor.min_score == chosen["results"]["min_score"]  # of these calls alone
    for bad in ("5", math.nan, True):
        with pytest.raises(ValueError, match="min_score is .*, it must be a number"):
            pipe(posts, min_score=bad)


def test_the_card_tells_it(chosen: dict[str, Any]) -> None:
    card = (Path(chosen["files"]["out"]) / "README.md").read_text()
    section = card.split("## Which knowledge is read")[1].split("\n## ")[0]
    assert "Entries that score below 3.3 are not read" in section
    assert "more than a standard error" in section and "24 test posts" in section and "30 validation posts" in section
    assert section.count("\n|") == 2 + 11 and "| 3.3 | 50 % |" in section and "| none is read | 0 % |" in section
    assert f"{chosen['results']['test_f1']:.2f}" in card


def test_scoring_alone_chooses_too(chosen: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """On other posts, whose low scores are right as well: there all is read."""
    right = pairs(60, 300)
    for row in right:
        row["knowledge_text"][0]["text"] = WORDS[row["relation"]]
    files = write(tmp_path, dev=right, test=chosen["test"])
    given = ["--validation_file", files["dev"], "--retrieval", "text", "--no_do_train", "--use_cpu"]
    given += ["--model_name_or_path", chosen["files"]["out"], "--output_dir", files["out"]]
    with caplog.at_level(logging.INFO):
        results = run_re.main([*given, "--min_score", "dev"])
    assert results["min_score"] is None and results["dev_f1"] == results["min_score_plain_f1"]
    assert results["min_score_gain"] <= results["min_score_gain_error"] and "dev_read_alone" not in results
    assert "All entries are read. On the dev posts, the best threshold gains" in caplog.text
    # where every entry is wrong, none is read
    wrong = told_by_words(60, 300)
    for place, row in enumerate(wrong):
        text = re_runs.TEXTS[(re_runs.RELATIONS.index(row["relation"]) + 1 + place % 2) % 3]
        row["knowledge_text"] = [{"title": "", "text": text, "score": 1.0 + place % 10}]
    files = write(tmp_path, dev=wrong)
    results = run_re.main([*given, "--min_score", "dev"])
    assert results["min_score"] == READ_NOTHING and results["dev_read_alone"] == 60
    assert results["min_score_curve"][0]["dev_f1"] < results["dev_f1"] == pytest.approx(results["dev_no_knowledge_f1"])
    results = run_re.main([*given, "--min_score", "6"])
    assert results["min_score"] == 6 and "min_score_curve" not in results
    assert results["dev_read_alone"] == sum(row["knowledge_text"][0]["score"] < 6 for row in wrong)
    results = run_re.main(given)  # as it was saved
    assert results["min_score"] == chosen["results"]["min_score"]


def entity_files(folder: Path, keep: float = -math.inf) -> dict[str, str]:
    """Posts with an entry of score 2, 4 or 6 and one that has none at every third; only those from `keep` on."""
    splits = {}
    for name, number, offset in (("train", 24, 0), ("dev", 12, 30), ("test", 12, 50)):
        rows = ner_runs.posts(number, offset)
        splits[name] = [{"id": row["id"], "tokens": row["tokens"], "ner_tags": row["tags"]} for row in rows]
        for place, row in enumerate(splits[name]):
            entries = [{"title": "", "text": f"{row['tokens'][0]} is a person .", "score": 2.0 + 2 * (place % 3)}]
            entries += [{"title": "", "text": "No score ."}] if place % 3 == 2 else []
            row["knowledge_text"] = [entry for entry in entries if entry.get("score", keep) >= keep]
    return write(folder, **splits)


def test_a_number_holds_in_training_too(tmp_path: Path, tiny_encoder: Any, caplog: pytest.LogCaptureFixture) -> None:
    """It is as if the entries below were not there; those without a score are read."""
    encoder = tiny_encoder("bert")
    files, fewer = entity_files(tmp_path / "all"), entity_files(tmp_path / "fewer", 5)
    with caplog.at_level(logging.INFO):
        found = run_ner.main(ner_runs.options(files, encoder, "--min_score", "5", retrieval="text"))
    told = "16 of 24 train posts are read alone: no entry scores 5"
    assert told in caplog.text and "8 of 12 test posts are read alone" in caplog.text
    expected = run_ner.main(ner_runs.options(fewer, encoder, retrieval="text"))
    assert (found["train_read_alone"], found["dev_read_alone"], found["test_read_alone"]) == (16, 8, 8)
    assert found["min_score"] == 5 and "min_score" not in expected
    losses = [[row["loss"] for row in results["history"]] for results in (found, expected)]
    assert losses[0] == losses[1]
    same = {key: value for key, value in expected.items() if key.startswith(("dev_", "test_"))}
    assert same == {key: value for key, value in found.items() if key in same}
    rows = ner_runs.read_lines(files, "predictions/test.jsonl")
    assert [[one["sentence"] for one in row["knowledge"]][1:] for row in rows] == [[], [], ["No score ."]] * 4
    assert rows == ner_runs.read_lines(fewer, "predictions/test.jsonl")
    card = (Path(files["out"]) / "README.md").read_text()
    assert "Entries that score below 5 are not read" in card and "16 training posts, 8 validation posts" in card
    processor = AutoProcessor.from_pretrained(files["out"])
    assert processor.min_score == 5

    # and in prediction, of which the option of another number knows nothing
    names = {"low": "5", "lower": "3", "own": None}
    counts = {}
    for name, number in names.items():
        more = ["--model_name_or_path", files["out"], "--do_predict", "--predict_file", files["test"], "--use_cpu"]
        more += ["--output_dir", str(tmp_path / name), *(["--min_score", number] if number else [])]
        run_ner.main(more)
        lines = (tmp_path / name / "predictions" / "predict.jsonl").read_text().splitlines()
        counts[name] = sum(bool(json.loads(line)["knowledge"]) for line in lines)
    assert counts == {"low": 4, "lower": 8, "own": 4}


def test_entities_choose_on_dev(tmp_path: Path, tiny_encoder: Any) -> None:
    files = entity_files(tmp_path)
    given = [*ner_runs.QUICK, "--min_score", "dev", "--seeds", "1", "2"]
    results = run_ner.main(ner_runs.options(files, tiny_encoder("bert"), *given, retrieval="text"))
    for run in results["runs"]:
        assert [row["min_score"] for row in run["min_score_curve"]] == [None, 3, 5, READ_NOTHING]
        assert [row["share_that_reads"] for row in run["min_score_curve"]] == [1, 2 / 3, 1 / 3, 1 / 3]  # no score
        plain = [run["min_score_curve"][0]["dev_f1"], run["min_score_curve"][-1]["dev_f1"]]
        assert run["min_score_plain_f1"] == max(plain)
    best = max(results["runs"], key=lambda run: run["dev_f1"])
    assert AutoProcessor.from_pretrained(files["out"]).min_score == best["min_score"]
    assert "## Which knowledge is read" in (Path(files["out"]) / "README.md").read_text()


def test_a_trained_run_goes_on_to_choose(tmp_path: Path, tiny_encoder: Any) -> None:
    """The option changes nothing of the training; a number does."""
    files = entity_files(tmp_path)
    given = ner_runs.options(files, tiny_encoder("bert"), *ner_runs.QUICK, retrieval="text")
    before = run_ner.main(given)
    resumed = [*given, "--resume_from_checkpoint", "latest", "--min_score"]
    with pytest.raises(SystemExit, match=r"other min_score, .*\(None, .*; here 3.0, "):
        run_ner.main([*resumed, "3"])
    results = run_ner.main([*resumed, "dev"])
    assert results["history"] == before["history"] and len(results["min_score_curve"]) == 4
    assert results["min_score_curve"][0]["dev_f1"] == before["dev_f1"]


def test_experts_bring_their_own(chosen: dict[str, Any], tmp_path: Path) -> None:
    out, least = chosen["files"]["out"], chosen["results"]["min_score"]
    processors = [AutoProcessor.from_pretrained(out) for _ in range(2)]
    processors[1].min_score = None
    MoReMixtureProcessor(processors, ["one", "all"]).save_pretrained(tmp_path)
    mixed = AutoProcessor.from_pretrained(tmp_path)
    assert [one.min_score for one in mixed.processors] == [least, None]
    entries = [{"title": "", "text": "x", "score": score} for score in (4, 3, 0)]
    post = {"tokens": ["Ada", "and", "Oslo"], "head": [0, 1], "tail": [2, 3], "knowledge_text": entries}
    model = MoReMixtureForRelationExtraction.from_experts([out, out], names=["one", "all"])
    pipe = pipeline("more-re", model=model, processor=mixed)
    read = {name: [entry["score"] for entry in found] for name, found in pipe(post)["knowledge"].items()}
    assert read == {"one": [4, 0], "all": [4, 3, 0]}
    with pytest.raises(ValueError, match="min_score is for one expert: those of a mixture bring their own"):
        pipe(post, min_score=2.0)


def test_folds_train_as_their_expert(chosen: dict[str, Any], tmp_path: Path) -> None:
    """Whoever made it."""
    (expert,) = load_experts([chosen["files"]["out"]])
    assert [replace(expert, own=own).options_of(DataArguments).min_score for own in (True, False)] == ["dev", "dev"]
    folder = Path(shutil.copytree(chosen["files"]["out"], tmp_path / "bad"))
    (folder / "manifest.json").unlink(missing_ok=True)
    (folder / "arguments.json").write_text(json.dumps({"min_score": "nan"}))
    with pytest.raises(ValueError, match=r"arguments.json: min_score is 'nan', it must be a number, or dev"):
        load_experts([str(folder)])


def test_thresholds_lie_between_scores() -> None:
    knowledge = [[{"score": 10.0 + place}, {"score": 0.5 * place}] for place in range(20)]
    found = thresholds([*knowledge, [], [{"score": 0.0}], [{"text": "x"}]])
    assert list(found.values()) == [0.0, *(tenth / 10 for tenth in range(1, 10)), 1.0]
    assert next(iter(found)) is None and list(found)[-1] == READ_NOTHING
    for least, share in list(found.items())[1:-1]:
        assert sum(10 + place < least for place in range(20)) == round(20 * share)
        assert all(abs(entry["score"] - least) > 0.1 for entries in knowledge for entry in entries)
    assert list(thresholds([[{"score": 1 / 61}]] * 5)) == [None, READ_NOTHING]
    assert list(thresholds([[]])) == [None, READ_NOTHING]


def test_entries_without_a_score_are_read(tiny_encoder: Any) -> None:
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), min_score=-0.1, top_k=4)
    scores = [0.2, -0.3, 0, None, 5]
    entries = [{"title": "", "text": "Oslo", "score": score} for score in scores]
    entries[3].pop("score")
    (encoded,) = processor.encode([["Ada"]], [entries])
    assert encoded["read_knowledge"] == [0, 2, 3]  # the fifth is past top_k
    (without,) = processor.encode([["Ada"]], [[entries[0], *entries[2:]]])
    assert len(encoded["input_ids"][0]) < len(without["input_ids"][0])
    for bad in (math.nan, math.inf, "5", True, 10**400):
        with pytest.raises(ValueError, match="min_score is .*, it must be a number, or None"):
            MoReProcessor(processor.tokenizer, min_score=bad)


def test_what_can_not_work_is_refused(
    tmp_path: Path, tiny_encoder: Any, chosen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    files = entity_files(tmp_path)
    encoder, out = tiny_encoder("bert"), chosen["files"]["out"]

    def told(*more: str, retrieval: str = "text", drop: str = "") -> str:
        given = ner_runs.options(files, encoder, *more, retrieval=retrieval)
        if drop:
            del given[given.index(drop) : given.index(drop) + 2]
        return ner_runs.told(capsys, given)

    for bad in ("nan", "inf", "1e40", "low", ""):
        assert f"--min_score is {bad!r}, it must be a number, or dev" in told("--min_score", bad)
    for number in ("0", "dev"):
        assert "--min_score is given, but no knowledge is retrieved" in told("--min_score", number, retrieval="none")
        refused = told("--min_score", number, "--experts", out, retrieval="moe")
        assert "--min_score is for one expert: those that --experts names bring their own" in refused
    assert "--min_score dev needs validation posts" in told("--min_score", "dev", drop="--validation_file")
    predicts = ["--model_name_or_path", out, "--do_predict", "--predict_file", files["test"], "--min_score", "dev"]
    assert "give a number to predict with" in ner_runs.told(capsys, predicts)
    rows = [{**json.loads(line), "knowledge_text": [{"text": "x"}]} for line in Path(files["dev"]).open()]
    for split in ("train", "dev", "test"):
        ner_runs.write_jsonl(Path(files[split]), rows)
    assert "no entry of the validation posts has a score" in told("--min_score", "dev")
    assert "no entry of the train and validation and test posts has a score" in told("--min_score", "5")
