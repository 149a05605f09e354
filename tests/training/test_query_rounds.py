"""`--query entities` without files: the run predicts by folds what it then searches for, as one would by hand."""

import json
import shutil

import pytest
from transformers import pipeline

import re_runs
import run_ner
import run_re
from modeling_more import predict
from modeling_more.knowledge import KnowledgeCorpus
from modeling_more.knowledge.entities import EntityRetriever, entity_query, read_predictions
from modeling_more.training.arguments import DataArguments
from modeling_more.training.crossfit import folds_of
from modeling_more.training.query_rounds import words_first
from ner_runs import KNOWLEDGE, ROOT, launch_two, options, posts, read_lines, write_conll, write_jsonl

FOLDS = 2
TEXTS = ["Ada Lovelace met in Oslo today !", "Rivera met in Germany !", "Oslo Olsen met in London today today !"]
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


def entities_of(out):
    return json.loads((out / "arguments.json").read_text())["entities"]


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

    of = [
        {id_: one.entities for id_, one in read_predictions(names).items()} for names in (entities_of(itself), by_hand)
    ]
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
    best = max(results["runs"], key=lambda one: one["dev_f1"])["seed"]
    assert entities_of(tmp_path / "out") == entities_of(tmp_path / "out" / f"seed-{best}") != []


def test_a_control_has_the_queries_of_the_run_that_it_controls():
    given = {"retrieval": "text", "knowledge": ["wiki.jsonl"], "top_k": 3}
    control = DataArguments(**given, query="entities", shuffle_knowledge=True)
    assert words_first(control) == DataArguments(**given) == words_first(DataArguments(**given, query="entities"))
    by_files = DataArguments(**given, query="entities", entities=["p.jsonl"], shuffle_knowledge=True)
    assert words_first(by_files) == by_files


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


def read_twice_by_hand(model, processor, retrieval, rows):
    """The entities and titles of posts that are searched by words, read, searched by their entities and read again."""
    column, top_k = processor.knowledge_column, processor.top_k
    by_words = retrieval.find(rows, top_k)
    first = predict(model, processor, [{**row, column: one} for row, one in zip(rows, by_words, strict=True)])
    asked = [{**row, "predicted_entities": one["entities"]} for row, one in zip(rows, first, strict=True)]
    by_entities = retrieval.find(asked, top_k)
    assert [titles(one) for one in by_words] != [titles(one) for one in by_entities]
    again = predict(model, processor, [{**row, column: one} for row, one in zip(rows, by_entities, strict=True)])
    return [one["entities"] for one in again], [titles(one) for one in by_entities]


def titles(entries):
    return [entry["title"] for entry in entries]


def test_a_pipeline_reads_searches_for_what_it_found_and_reads_again(itself):
    pipe = pipeline("more-ner", model=str(itself))
    found = pipe(TEXTS)
    rows = [{"tokens": text.split()} for text in TEXTS]
    entities, of_entities = read_twice_by_hand(pipe.model, pipe.processor, pipe.reader.knowledge.retrievals[0], rows)
    assert any(entities)
    assert [titles(one["knowledge"]) for one in found] == of_entities
    for ours, theirs in zip(found, entities, strict=True):
        assert [(one["type"], one["text"]) for one in ours["entities"]] == [(o["type"], o["text"]) for o in theirs]
        scores = [one["score"] for one in theirs]
        assert [one["score"] for one in ours["entities"]] == pytest.approx(scores, abs=1e-4)
    # what a post brings comes first: its knowledge, then its entities
    one = {"text": TEXTS[0], "predicted_entities": [{"text": "Bavaria"}]}
    assert "Bavaria" in titles(pipe(one)["knowledge"]) and "Bavaria" not in titles(found[0]["knowledge"])
    by_words = pipe({"text": TEXTS[0], "predicted_entities": []})["knowledge"]
    assert (
        by_words
        == pipe({"text": TEXTS[0], "predicted_entities": None, "knowledge_text": by_words_of(pipe)})["knowledge"]
    )
    assert pipe({"text": TEXTS[0], "knowledge_text": []})["knowledge"] == []
    for given in ("Oslo", [{"type": "LOC"}], [{"text": 7}]):
        with pytest.raises(ValueError, match='post 1.*"predicted_entities"'):
            pipe([TEXTS[0], {"text": TEXTS[1], "predicted_entities": given}])


def by_words_of(pipe):
    retrieval = pipe.reader.knowledge.retrievals[0]
    return retrieval.find([{"tokens": TEXTS[0].split()}], pipe.processor.top_k)[0]


def test_predict_mode_searches_for_what_the_model_found_itself(files, itself, tmp_path):
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    predicts = ["--do_predict", "--predict_file", str(asked), "--cache_dir", files["cache"], "--use_cpu"]
    run_ner.main(["--model_name_or_path", str(itself), *predicts, "--output_dir", str(tmp_path / "alone")])
    given = ["--retrieval", "text", "--knowledge", files["knowledge"], "--query", "entities"]
    run_ner.main(["--model_name_or_path", str(itself), *predicts, *given, "--output_dir", str(tmp_path / "named")])
    pipe = pipeline("more-ner", model=str(itself))
    for out in ("alone", "named"):
        rows = read_lines({"out": tmp_path / out}, "predictions/predict.jsonl")
        assert [row["knowledge"] for row in rows] == [one["knowledge"] for one in pipe(TEXTS)]
    # entities that are given come first, as ever
    nothing = write_jsonl(tmp_path / "none.jsonl", [{"id": str(i), "entities": []} for i in range(len(TEXTS))])
    arguments = ["--model_name_or_path", str(itself), *predicts, "--entities", str(nothing)]
    run_ner.main([*arguments, "--output_dir", str(tmp_path / "given")])
    by_words = [pipe({"text": text, "predicted_entities": []})["knowledge"] for text in TEXTS]
    rows = read_lines({"out": tmp_path / "given"}, "predictions/predict.jsonl")
    assert [row["knowledge"] for row in rows] == by_words != [one["knowledge"] for one in pipe(TEXTS)]


def test_each_expert_of_a_mixture_searches_for_what_it_found_itself(files, itself, tmp_path):
    untaught = ["--learning_rate", "0", "--crf_learning_rate", "0", "--num_train_epochs", "1"]
    run_ner.main(run(files, tmp_path / "other", *untaught, "--entities", *entities_of(itself)))
    asked = write_jsonl(tmp_path / "asked.jsonl", [{"id": str(i), "text": text} for i, text in enumerate(TEXTS)])
    mixed = ["--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]]
    mixed += ["--retrieval", "moe", "--experts", str(itself), str(tmp_path / "other"), "--gate_data", "train"]
    mixed += ["--gate_epochs", "1", "--do_predict", "--predict_file", str(asked)]
    run_ner.main([*mixed, "--cache_dir", files["cache"], "--use_cpu", "--output_dir", str(tmp_path / "mixed")])
    # dev and test posts: by the predictions of the first round, which the experts' options name
    assert {id_: one["text"] for id_, one in knowledge_of(tmp_path / "mixed").items()} == knowledge_of(itself)
    # others: each by its own
    alone = [pipeline("more-ner", model=str(folder))(TEXTS) for folder in (itself, tmp_path / "other")]
    expected = [[one["knowledge"] for one in found] for found in zip(*alone, strict=True)]
    assert any(one != other for one, other in expected)
    rows = read_lines({"out": tmp_path / "mixed"}, "predictions/predict.jsonl")
    assert [list(row["knowledge"].values()) for row in rows] == expected
    found = pipeline("more-ner", model=str(tmp_path / "mixed"))(TEXTS)
    assert [list(one["knowledge"].values()) for one in found] == expected


def test_relations_are_searched_by_the_two_entities_that_are_given(files, tmp_path):
    related = {**re_runs.write_files(tmp_path), "cache": files["cache"]}
    given = ["--knowledge", files["knowledge"], "--query", "entities", "--top_k", "2", "--num_train_epochs", "1"]
    run_re.main(re_runs.options(related, files["encoder"], *given, retrieval="text"))
    assert not (tmp_path / "out" / "crossfit").exists()
    retriever = EntityRetriever.from_corpus(KnowledgeCorpus.from_files(files["knowledge"], files["cache"]))
    rows = re_runs.pairs(15, 60)
    mentions = [[" ".join(row["tokens"][slice(*row[name])]) for name in ("head", "tail")] for row in rows]
    texts = [" ".join(row["tokens"]) for row in rows]
    queries = [entity_query(*one) for one in zip(texts, mentions, strict=True)]
    found = [titles(entries) for entries in retriever.search(queries, 2)]
    assert found != [titles(entries) for entries in retriever.search(texts, 2)]
    assert [titles(row["knowledge"]) for row in read_lines(related, "predictions/test.jsonl")] == found
    pipe = pipeline("more-re", model=related["out"])
    bare = [{name: row[name] for name in ("tokens", "head", "tail")} for row in rows]
    assert [titles(one["knowledge"]) for one in pipe(bare)] == found
    asked = write_jsonl(tmp_path / "asked.jsonl", bare)
    predicts = ["--model_name_or_path", related["out"], "--do_predict", "--predict_file", str(asked), "--use_cpu"]
    run_re.main([*predicts, "--cache_dir", files["cache"], "--output_dir", str(tmp_path / "alone")])
    rows = read_lines({"out": tmp_path / "alone"}, "predictions/predict.jsonl")
    assert [titles(row["knowledge"]) for row in rows] == found
