"""`--query entities` without files: the run predicts by folds what it then searches for, as one would by hand."""

import json
import shutil

import pytest

import run_ner
from modeling_more.knowledge.entities import read_predictions
from modeling_more.training.crossfit import folds_of
from ner_runs import KNOWLEDGE, ROOT, launch_two, options, posts, read_lines, write_conll, write_jsonl

FOLDS = 2
#: each post's words find all of these, so that the titles of its entities decide which come first
PLACES = [
    {"id": f"place-{index}", "title": name, "text": f"One met in it today , it is number {index} !"}
    for index, name in enumerate(["Lindau", "Oslo", "London", "Bavaria", "Germany", "Rivera", "Ada"])
]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("rounds")


@pytest.fixture(scope="module")
def files(home, tiny_encoder):
    return {
        "train": str(write_jsonl(home / "train.jsonl", posts(24))),
        "dev": str(write_conll(home / "dev.conll", posts(8, 30))),
        "test": str(write_conll(home / "test.conll", posts(9, 50))),
        "knowledge": str(write_jsonl(home / "wiki.jsonl", [*PLACES, *KNOWLEDGE])),
        "cache": str(home / "cache"),
        "encoder": tiny_encoder("bert"),
    }


def run(files, out, *more, query="entities"):
    """The options of a run that searches by entities (or words) and predicts them by two folds."""
    asked = ["--knowledge", files["knowledge"], "--top_k", "2", "--query", query, "--query_folds", str(FOLDS)]
    learned = ["--learning_rate", "1e-2", "--num_train_epochs", "4"]
    return options({**files, "out": str(out)}, files["encoder"], *asked, *learned, *more, retrieval="text")


@pytest.fixture(scope="module")
def itself(files, home):
    """The folder of a run that predicts its entities itself."""
    run_ner.main(run(files, home / "itself"))
    return home / "itself"


def results_of(out):
    """What a run found, without what it took and where it lies."""
    found = json.loads((out / "all_results.json").read_text())
    for row in found["history"]:
        row.pop("seconds")
    found["retrieval_report"].pop("cached")
    return found


def knowledge_of(out):
    """What was read beside each dev and test post: titles and sentences in their order."""
    rows = [row for name in ("dev", "test") for row in read_lines({"out": out}, f"predictions/{name}.jsonl")]
    return {row["id"]: row["knowledge"] for row in rows}


def told_of(arguments):
    with pytest.raises(SystemExit) as stopped:
        run_ner.main(arguments)
    return str(stopped.value.code)


def test_folds_by_hand_find_the_same(files, itself, tmp_path):
    found = results_of(itself)
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
        given = {**files, "train": str(tmp_path / f"others-{fold}.jsonl")}
        run_ner.main(run(given, tmp_path / f"hand-{fold}", *predicted, query="words"))
        by_hand.append(tmp_path / f"hand-{fold}" / "predictions" / "predict.jsonl")
    run_ner.main(run(files, tmp_path / "words", query="words"))
    by_hand += [tmp_path / "words" / "predictions" / f"{name}.jsonl" for name in ("dev", "test")]
    run_ner.main(run(files, tmp_path / "hand", "--entities", *map(str, by_hand)))

    made = json.loads((itself / "arguments.json").read_text())["entities"]
    of = [{id_: one.entities for id_, one in read_predictions(names).items()} for names in (made, by_hand)]
    assert of[0] == of[1] and len(of[0]) == 24 + 8 + 9
    assert knowledge_of(itself) == knowledge_of(tmp_path / "hand") != knowledge_of(tmp_path / "words")
    assert found == {**results_of(tmp_path / "hand"), "dataset": found["dataset"]}


def test_an_expert_never_saw_what_it_predicts(files, itself, tmp_path):
    rows = posts(24)
    folds = folds_of(rows, FOLDS)
    other = {"B-PER": "B-LOC", "I-PER": "I-LOC", "B-LOC": "B-PER", "I-LOC": "I-PER", "O": "O"}
    for row, fold in zip(rows, folds, strict=True):
        if fold == 0:
            row["tags"] = [other[tag] for tag in row["tags"]]
    changed = {**files, "train": str(write_jsonl(tmp_path / "train.jsonl", rows))}
    run_ner.main(run(changed, tmp_path / "changed"))

    def said(out, fold):
        rows = read_lines({"out": out}, f"crossfit/words-{fold}/predictions/predict.jsonl")
        return {row["id"]: [(one["type"], one["text"], one["score"]) for one in row["entities"]] for row in rows}

    for fold in range(FOLDS):
        assert said(itself, fold).keys() == {row["id"] for row, of in zip(rows, folds, strict=True) if of == fold}
    assert said(itself, 0) == said(tmp_path / "changed", 0)
    assert said(itself, 1) != said(tmp_path / "changed", 1)  # this one learned from them


def test_a_run_that_stops_between_folds_goes_on_there(files, itself, tmp_path, monkeypatch, capsys):
    train, trained = run_ner.train, []

    def until_the_third(args, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args.training.output_dir)
        return train(args, *rest)

    monkeypatch.setattr(run_ner, "train", until_the_third)
    arguments = run(files, tmp_path / "out", "--seeds", "42", "7")
    assert told_of(arguments) == "130"
    assert "the folds' experts that were finished are kept: add --resume_from_checkpoint" in capsys.readouterr().err
    assert "unfinished run: give --resume_from_checkpoint latest" in told_of(arguments)

    def seen(args, *rest):
        trained.append(args.training.output_dir)
        return train(args, *rest)

    monkeypatch.setattr(run_ner, "train", seen)
    results = run_ner.main([*arguments, "--resume_from_checkpoint", "latest"])
    each = [f"crossfit/words-{fold}" for fold in (0, 1, "all")] + [""]
    assert trained == [str(tmp_path / "out" / f"seed-{seed}" / name) for seed in (42, 7) for name in each]
    assert [one["seed"] for one in results["runs"]] == [42, 7]
    assert results_of(tmp_path / "out" / "seed-42") == results_of(itself)
    assert knowledge_of(tmp_path / "out" / "seed-42") == knowledge_of(itself)


def test_two_processes_search_for_what_both_predicted(files, tmp_path):
    done = launch_two(ROOT / "run_ner.py", *run(files, tmp_path, "--num_train_epochs", "1"))
    assert done.returncode == 0, done.stderr[-5000:]
    report = results_of(tmp_path)["retrieval_report"]
    assert report["query"] == "entities" and report["posts_without_predictions"] == 0
    rows = posts(24)
    for fold in range(FOLDS):
        found = read_lines({"out": tmp_path}, f"crossfit/words-{fold}/predictions/predict.jsonl")
        expected = [row["id"] for row, one in zip(rows, folds_of(rows, FOLDS), strict=True) if one == fold]
        assert [row["id"] for row in found] == expected


def test_a_run_is_replaced_with_its_folds(files, itself, tmp_path):
    shutil.copytree(itself, tmp_path / "out")
    shutil.copytree(itself / "crossfit" / "words-0", tmp_path / "out" / "crossfit" / "words-7")
    fewer = ["--num_train_epochs", "1", "--max_train_samples", "12", "--overwrite_output_dir"]
    run_ner.main(run(files, tmp_path / "out", *fewer))
    folders = sorted((tmp_path / "out" / "crossfit").iterdir())
    assert [folder.name for folder in folders] == ["words-0", "words-1", "words-all"]
    learned = [json.loads((folder / "all_results.json").read_text())["train_posts"] for folder in folders]
    assert learned[0] + learned[1] == learned[2] == 12


def test_what_can_not_be_predicted_by_folds_is_told_before_anything_is_trained(files, itself, tmp_path):
    model = {**files, "encoder": str(itself)}
    for arguments, expected in (
        (run(model, tmp_path / "x"), "--query entities: give --entities FILE …, for"),
        (run(files, tmp_path / "x", "--max_train_samples", "1"), "1 training posts are too few for --query_folds"),
        (run({**files, "test": files["dev"]}, tmp_path / "x"), "dev-0 is that of a validation post and of another"),
        (run(model, tmp_path / "x", "--no_do_train"), "nothing is trained here that could predict them: give --ent"),
    ):
        assert expected in told_of(arguments)
    assert not list(tmp_path.glob("x/crossfit/*"))
