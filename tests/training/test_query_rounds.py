"""`--query entities` without files: the run predicts by folds what it then searches for, as one would by hand."""

import json
from pathlib import Path

import pytest

import run_ner
from modeling_more.knowledge.entities import read_predictions
from modeling_more.training.crossfit import folds_of
from ner_runs import KNOWLEDGE, QUICK, options, posts, read_lines, write_jsonl

FOLDS = 2
#: of these each post's words find all, so that the titles of its entities decide which come first
PLACES = [
    {"id": f"place-{index}", "title": name, "text": f"One met in it today , it is number {index} !"}
    for index, name in enumerate(["Lindau", "Oslo", "London", "Bavaria", "Germany", "Rivera", "Ada"])
]


@pytest.fixture(scope="module")
def encoder(tiny_encoder):
    return tiny_encoder("bert")


@pytest.fixture
def places(files):
    """The files of a run whose corpus is searched differently by entities than by words."""
    return {**files, "knowledge": str(write_jsonl(Path(files["knowledge"]), [*PLACES, *KNOWLEDGE]))}


def run(files, encoder, out, *more, query="entities", folds=FOLDS):
    """The options of a run that searches by entities (or words) and predicts them by two folds."""
    asked = ["--knowledge", files["knowledge"], "--top_k", "2", "--query", query, "--query_folds", str(folds)]
    learned = [*QUICK, "--learning_rate", "1e-2", "--num_train_epochs", "6"]
    return options({**files, "out": str(out)}, encoder, *asked, *learned, *more, retrieval="text")


def knowledge_of(out):
    """What was read beside each dev and test post: titles and sentences in their order."""
    rows = [row for name in ("dev", "test") for row in read_lines({"out": out}, f"predictions/{name}.jsonl")]
    return {row["id"]: row["knowledge"] for row in rows}


def test_folds_by_hand_find_the_same(places, encoder, tmp_path):
    found = run_ner.main(run(places, encoder, tmp_path / "itself"))
    report = found["retrieval_report"]
    assert report["query"] == "entities" and report["posts_without_predictions"] == 0
    assert report["predicted_entities"] > 20

    # by hand: split the file, train by words on each part, predict the other one, then give all predictions
    rows = posts(24)
    by_hand = []
    for fold in range(FOLDS):
        others = [row for row, one in zip(rows, folds_of(rows, FOLDS), strict=True) if one != fold]
        held = [row for row, one in zip(rows, folds_of(rows, FOLDS), strict=True) if one == fold]
        assert others and held
        write_jsonl(tmp_path / f"others-{fold}.jsonl", others)
        bare = [{key: row[key] for key in ("id", "tokens")} for row in held]
        predicted = ["--do_predict", "--predict_file", str(write_jsonl(tmp_path / f"held-{fold}.jsonl", bare))]
        given = {**places, "train": str(tmp_path / f"others-{fold}.jsonl")}
        run_ner.main(run(given, encoder, tmp_path / f"hand-{fold}", *predicted, query="words"))
        by_hand.append(tmp_path / f"hand-{fold}" / "predictions" / "predict.jsonl")
    words = run_ner.main(run(places, encoder, tmp_path / "words", query="words"))
    by_hand += [tmp_path / "words" / "predictions" / f"{name}.jsonl" for name in ("dev", "test")]
    other = run_ner.main(run(places, encoder, tmp_path / "hand", "--entities", *map(str, by_hand)))

    made = json.loads((tmp_path / "itself" / "arguments.json").read_text())["entities"]
    of = [{id_: one.entities for id_, one in read_predictions(names).items()} for names in (made, by_hand)]
    assert of[0] == of[1] and len(of[0]) == 24 + 8 + 9
    assert knowledge_of(tmp_path / "itself") == knowledge_of(tmp_path / "hand") != knowledge_of(tmp_path / "words")
    for result in (found, other):
        for row in result["history"]:
            row.pop("seconds")
        result["retrieval_report"].pop("cached")
    assert found == other and found["retrieval_report"] != words["retrieval_report"]


def test_an_expert_never_saw_what_it_predicts(places, encoder, tmp_path):
    run_ner.main(run(places, encoder, tmp_path / "one"))
    rows = posts(24)
    folds = folds_of(rows, FOLDS)
    for row, fold in zip(rows, folds, strict=True):
        if fold == 0:  # places are called persons, and persons places
            row["tags"] = [tag.translate(str.maketrans({"P": "L", "E": "O", "R": "C"})) if "PER" in tag else
                           tag.replace("LOC", "PER") for tag in row["tags"]]  # fmt: skip
    write_jsonl(Path(places["train"]), rows)
    run_ner.main(run(places, encoder, tmp_path / "other"))

    def said(out, fold):
        file = f"crossfit/words-{fold}/predictions/predict.jsonl"
        return {row["id"]: [(e["type"], e["text"], e["score"]) for e in row["entities"]]
                for row in read_lines({"out": out}, file)}  # fmt: skip

    for fold in range(FOLDS):
        ids = {row["id"] for row, one in zip(rows, folds, strict=True) if one == fold}
        assert said(tmp_path / "one", fold).keys() == ids
    assert said(tmp_path / "one", 0) == said(tmp_path / "other", 0)
    assert said(tmp_path / "one", 1) != said(tmp_path / "other", 1)  # this one learned from them


class Killed(Exception):
    """Stands for whatever ends a run."""


def test_a_run_that_stops_between_folds_goes_on_there(places, encoder, tmp_path, monkeypatch):
    train, trained = run_ner.train, []

    def watched(args, *rest):
        if len(trained) == 2:
            raise Killed
        trained.append(Path(args.training.output_dir).name)
        return train(args, *rest)

    monkeypatch.setattr(run_ner, "train", watched)
    arguments = run(places, encoder, tmp_path / "out", "--seeds", "1", "2")
    with pytest.raises(Killed):
        run_ner.main(arguments)
    assert trained == ["words-0", "words-1"]
    monkeypatch.undo()
    assert "unfinished run: give --resume_from_checkpoint latest" in told_of(arguments)

    monkeypatch.setattr(
        run_ner, "train", lambda args, *rest: (trained.append(args.training.output_dir), train(args, *rest))[1]
    )
    results = run_ner.main([*arguments, "--resume_from_checkpoint", "latest"])
    first, second = tmp_path / "out" / "seed-1", tmp_path / "out" / "seed-2"
    crossfit = [str(second / "crossfit" / f"words-{fold}") for fold in (0, 1, "all")]
    assert trained[2:] == [str(first / "crossfit" / "words-all"), str(first), *crossfit, str(second)]
    assert [one["seed"] for one in results["runs"]] == [1, 2]
    unbroken = run_ner.main(run(places, encoder, tmp_path / "whole", "--seed", "1"))
    assert unbroken["test_f1"] == results["runs"][0]["test_f1"]
    assert knowledge_of(first) == knowledge_of(tmp_path / "whole")


def told_of(arguments):
    with pytest.raises(SystemExit) as stopped:
        run_ner.main(arguments)
    return str(stopped.value.code)
