"""Where runs write: scores and predictions never over a model's record, trainings never over a finished run."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoModelForTokenClassification

import re_runs
import run_ner
import run_re
from modeling_more.training.command_line import parse_arguments
from modeling_more.training.experts import load_experts
from modeling_more.training.output_folders import check_output_dir
from ner_runs import QUICK, contents, told, training


@pytest.mark.parametrize("model", ["plain", "./plain/", "several", "several/seed-2", "absolute", "."])
def test_scoring_and_predicting_leave_the_models_folder_alone(model, here, tmp_path, monkeypatch):
    folder = tmp_path / ("plain" if model in ("absolute", ".") else model)
    given = str(folder) if model == "absolute" else model
    if model == ".":
        monkeypatch.chdir(folder)
    before, beside = contents(tmp_path), {path.name for path in tmp_path.iterdir()}
    score = ["--model_name_or_path", given, "--no_do_train", "--test_file", here["other"], "--use_cpu"]
    run_ner.main([*score, "--retrieval", "text", "--knowledge", here["knowledge"], "--cache_dir", here["cache"]])
    run_ner.main(["--model_name_or_path", given, "--do_predict", "--predict_file", here["dev"], "--use_cpu"])
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    name = str(folder.relative_to(tmp_path)).replace("/", "-")
    new = {path.name for path in tmp_path.iterdir()} - beside
    assert new == {f"{name}-scored-c", f"{name}-predicted-dev"}
    scored = tmp_path / f"{name}-scored-c"
    assert json.loads((scored / "all_results.json").read_text())["test_f1_per_type"]
    assert len((scored / "predictions" / "test.jsonl").read_text().splitlines()) == 5
    assert not list(scored.glob("*.safetensors"))  # the model is where it was
    card = (scored / "README.md").read_text()
    assert "Fine-tuned" not in card and f"Scores of `{folder.name}` as it is" in card
    predicted = tmp_path / f"{name}-predicted-dev" / "predictions" / "predict.jsonl"
    assert len(predicted.read_text().splitlines()) == 8


def test_scoring_into_the_models_folder_keeps_its_record(here, tmp_path):
    before = contents(tmp_path / "plain")
    score = ["--model_name_or_path", "plain", "--no_do_train", "--use_cpu", "--output_dir", "plain"]
    results = run_ner.main([*score, "--test_file", here["other"], "--seeds", "1", "2"])
    after = contents(tmp_path / "plain")
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {"scores-c.json", "predictions/test-c.jsonl"}
    assert json.loads(after["scores-c.json"]) == json.loads(json.dumps(results))
    # a model of another folder is no reason to write over this one's record
    run_ner.main([*score[:1], "several", *score[2:], "--test_file", here["test"]])
    after = contents(tmp_path / "plain")
    assert {name: after[name] for name in before} == before and "scores-test.json" in after
    predict = ["--model_name_or_path", "plain", "--do_predict", "--predict_file", here["dev"], "--use_cpu"]
    run_ner.main([*predict, "--output_dir", "plain"])
    assert {name: contents(tmp_path / "plain")[name] for name in before} == before
    # an expert still tells how it retrieves
    (expert,) = load_experts(["plain"])
    assert expert.options["knowledge"] == [here["knowledge"]] and expert.holdout_ids


def test_scores_replace_those_of_the_same_posts_and_no_others(here, tmp_path):
    score = ["--model_name_or_path", "plain", "--no_do_train", "--use_cpu", "--output_dir", "s"]
    files = ["README.md", "all_results.json", "arguments.json", "manifest.json", "predictions/test.jsonl"]
    for _ in range(2):
        run_ner.main([*score, "--test_file", here["other"]])
        assert sorted(contents("s")) == files
    before = contents("s")
    Path("more").mkdir()
    shutil.copy(here["test"], "more/c.conll")  # other posts, in a file of the same name
    for _ in range(2):
        run_ner.main([*score, "--test_file", "more/c.conll"])
        after = contents("s")
        assert {name: after[name] for name in before} == before
        assert after.keys() - before.keys() == {"scores-c.json", "predictions/test-c.jsonl"}
    run_ner.main([*score, "--model_name_or_path", "several", "--test_file", here["other"]])
    again = contents("s")
    assert {name: again[name] for name in after} == after
    assert again.keys() - after.keys() == {"scores-c-2.json", "predictions/test-c-2.jsonl"}
    Path("project").mkdir()
    Path("project/README.md").write_text("mine")
    run_ner.main([*score[:-1], "project", "--test_file", here["other"]])
    assert Path("project/README.md").read_text() == "mine" and Path("project/scores-c.json").exists()


def test_posts_of_one_file_name_are_scored_and_predicted_in_folders_of_their_own(here, tmp_path):
    Path("more").mkdir()
    shutil.copy(here["test"], "more/c.conll")
    model = ["--model_name_or_path", "plain", "--use_cpu"]
    for _ in range(2):  # the same posts again take the same folder again
        for file in (here["other"], "more/c.conll"):
            run_ner.main([*model, "--no_do_train", "--test_file", file])
            run_ner.main([*model, "--do_predict", "--predict_file", file])
    for done, name in (("scored", "test"), ("predicted", "predict")):
        assert [
            len(Path(f"plain-{done}-c{more}/predictions/{name}.jsonl").open().readlines()) for more in ("", "-2")
        ] == [
            5,
            9,
        ]
        assert len(list(tmp_path.glob(f"plain-{done}*"))) == 2
    # predictions that nobody recorded are not replaced
    Path("own/predictions").mkdir(parents=True)
    Path("own/predictions/predict.jsonl").write_text("mine")
    run_ner.main([*model, "--do_predict", "--predict_file", here["other"], "--output_dir", "own"])
    assert Path("own/predictions/predict.jsonl").read_text() == "mine"
    assert len(Path("own/predictions/predict-c.jsonl").open().readlines()) == 5


def test_mixtures_are_scored_beside_their_record(here, tmp_path, tiny_encoder):
    mixed = ["--retrieval", "moe", "--experts", "plain", "plain", "--gate_epochs", "1", "--use_cpu"]
    mixed += ["--cache_dir", here["cache"]]
    files = ["--train_file", here["train"], "--validation_file", here["dev"], "--test_file", here["test"]]
    run_ner.main([*mixed, *files, "--output_dir", "mixture"])
    before = contents("mixture")
    for out in ([], ["--output_dir", "mixture"]):
        run_ner.main([*mixed, "--no_do_train", "--model_name_or_path", "mixture", "--test_file", here["other"], *out])
    after = contents("mixture")
    assert {name: after[name] for name in before} == before
    plots = ("gate_weights", "reliability")  # of a gate that weighs posts apart, and where anything is predicted
    drawn = {f"{one}-c.png" for one in plots if f"{one}.png" in before}
    assert after.keys() - before.keys() == {"scores-c.json", "predictions/test-c.jsonl"} | drawn
    assert "What the gate adds" in Path("mixture-scored-c/README.md").read_text()


def test_relations_are_scored_elsewhere(tmp_path, tiny_encoder, monkeypatch):
    files = re_runs.write_files(tmp_path)
    run_re.main(re_runs.options(files, tiny_encoder("bert"), *QUICK))
    before = contents(files["out"])
    monkeypatch.chdir(tmp_path)
    run_re.main(["--model_name_or_path", "out", "--no_do_train", "--test_file", files["dev"], "--use_cpu"])
    assert contents(files["out"]) == before and Path("out-scored-dev/all_results.json").exists()


def test_default_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for given, folder in (
        (["--dataset", "twitter17"], "out"),
        (["--dataset", "ORG/POSTS", "--no_do_train", "--model_name_or_path", "ORG/NAME"], "ORG-NAME-scored-POSTS"),
        (["--do_predict", "--predict_file", "a/my posts.jsonl", "--model_name_or_path", ".."],
         f"{tmp_path.parent.name}-predicted-my_posts"),
        (["--dataset", "twitter17", "--no_do_train", "--output_dir", "there"], "there"),
    ):  # fmt: skip
        assert parse_arguments(given, "").training.output_dir == folder


def test_a_finished_run_is_not_written_over(here, tmp_path, capsys):
    before = contents(tmp_path)
    for folder, more in (("plain", []), ("several", ["--seeds", "1", "2"]), ("several", []), ("several/seed-1", [])):
        said = told(capsys, training(here, folder, *more))
        for way in ("another --output_dir", "--overwrite_output_dir", "--resume_from_checkpoint latest"):
            assert way in said, said
        assert f"{folder} holds a finished run" in said
    # without a checkpoint there is nothing to go on from
    shutil.rmtree("plain/checkpoints")
    assert "--resume_from_checkpoint" not in told(capsys, training(here, "plain"))
    said = told(capsys, training(here, "plain", "--resume_from_checkpoint", "latest"))
    assert "has no checkpoint to go on from" in said and "--overwrite_output_dir" in said
    after = contents(tmp_path)
    assert after == {name: content for name, content in before.items() if not name.startswith("plain/checkpoints")}
    # scores and predictions alone are results, too
    score = ["--model_name_or_path", "plain", "--no_do_train", "--test_file", here["other"], "--use_cpu"]
    run_ner.main(score)
    run_ner.main(["--model_name_or_path", "plain", "--do_predict", "--predict_file", here["dev"], "--use_cpu"])
    for folder in ("plain-scored-c", "plain-predicted-dev"):
        assert "holds a finished run" in told(capsys, training(here, folder))
        run_ner.main(training(here, folder, "--overwrite_output_dir"))
        AutoModelForTokenClassification.from_pretrained(folder)


def test_overwriting_replaces_the_run_whole(here, tmp_path):
    predict = ["--do_predict", "--predict_file", here["dev"]]
    run_ner.main(training(here, "fresh"))
    wanted = contents("fresh").keys()
    run_ner.main([*training(here, "plain", "--overwrite_output_dir"), *predict])
    assert contents("plain").keys() == {*wanted, "predictions/predict.jsonl"}
    arguments = training(here, "several", "--overwrite_output_dir")
    place = arguments.index("--test_file")
    run_ner.main(arguments[:place] + arguments[place + 2 :])
    assert contents("several").keys() == wanted - {"predictions/test.jsonl"}
    assert json.loads(Path("several/arguments.json").read_text())["overwrite_output_dir"] is False
    run_ner.main(training(here, "several", "--overwrite_output_dir", "--seeds", "3", "4"))
    assert {path.name for path in Path("several").glob("seed-*")} == {"seed-3", "seed-4"}
    assert not Path("several/checkpoints").exists()


def test_overwriting_deletes_nothing_else(here, tmp_path, capsys):
    overwrite = "--overwrite_output_dir"
    Path("plain/notes.txt").write_text("mine")
    assert "plain/notes.txt is of none" in told(capsys, training(here, "plain", overwrite))
    Path("plain/notes.txt").unlink()
    Path("plain/predictions/figures").mkdir()
    assert "plain/predictions/figures is of none" in told(capsys, training(here, "plain", overwrite))
    Path("plain/predictions/figures").rmdir()
    Path("several/seed-1/mine").mkdir()
    assert "several/seed-1/mine is of none" in told(capsys, training(here, "several", overwrite))
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter.txt").write_text("dear")
    assert "home holds no run, nothing in it is deleted" in told(capsys, training(here, "home", overwrite))
    shutil.copytree(here["encoder"], "encoder")
    before = contents("encoder")
    assert "holds no run" in told(capsys, training(here, "encoder", overwrite))
    assert "holds config.json, which is of no run" in told(capsys, training(here, "encoder"))
    assert contents("encoder") == before and Path("home/letter.txt").exists()
    # what the run reads
    given = training(here, "plain", overwrite)
    for option, value in (
        ("--model_name_or_path", "plain"), ("--knowledge", "plain/predictions"), ("--cache_dir", "plain/logs"),
    ):  # fmt: skip
        Path("plain/logs").mkdir(exist_ok=True)
        assert f"would delete {option} {value}" in told(capsys, [*given, "--retrieval", "text", option, value])
    mixture = ["--retrieval", "moe", "--experts", "several/seed-1", "several/seed-2"]
    assert "would delete --experts several/seed-1" in told(capsys, [*training(here, "several", overwrite), *mixture])
    said = told(capsys, [*given, "--resume_from_checkpoint", "latest"])
    assert "would delete what --resume_from_checkpoint latest goes on from" in said
    score = ["--model_name_or_path", "plain", "--no_do_train", "--test_file", here["other"], overwrite]
    assert "--overwrite_output_dir is for training" in told(capsys, score)
    # a mistake is seen before anything is deleted
    before = contents("plain")
    assert "no such folder" in told(capsys, [*given, "--image_dir", "nowhere"])
    Path("broken").mkdir()
    Path("broken/config.json").write_text("{}")
    assert told(capsys, [*given, "--model_name_or_path", "broken"]) and contents("plain") == before
    Path("file").write_text("")
    assert "is a file" in told(capsys, training(here, "file"))


def test_a_linked_folder_stays_a_link(here, tmp_path):
    os.symlink(tmp_path / "plain", "link")
    run_ner.main(training(here, "link", "--overwrite_output_dir"))
    assert Path("link").is_symlink() and Path("plain/all_results.json").exists()


def test_an_unfinished_run_is_gone_on_with_or_replaced(here, tmp_path, capsys):
    for folder, lost in (("plain", Path("plain")), ("several", Path("several/seed-2"))):
        seeds = ["--seeds", "1", "2"] if folder == "several" else []
        for name in ("all_results.json", "README.md"):
            (lost / name).unlink()
            (Path(folder) / name).unlink(missing_ok=True)
        said = told(capsys, training(here, folder, *seeds))
        assert f"{folder} holds an unfinished run: give --resume_from_checkpoint latest to go on" in said
        assert "--overwrite_output_dir to begin anew" in said and (lost / "checkpoints" / "last").is_dir()
    given = ["--holdout_fraction", "0.33", "--knowledge", here["knowledge"], "--top_k", "1", "--retrieval", "text"]
    resumed = run_ner.main(training(here, "plain", *given, "--resume_from_checkpoint", "latest"))
    assert len(resumed["history"]) == 1 and Path("plain/README.md").exists()
    run_ner.main(training(here, "several", "--overwrite_output_dir", "--seeds", "1"))
    # what stopped in its first epoch has nothing to lose
    for name in ("all_results.json", "checkpoints", "config.json"):
        path = Path("several") / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    run_ner.main(training(here, "several"))


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("given", [[], ["--seeds", "1", "2"], ["--seeds", "2", "3"]])
def test_the_way_to_go_on_with_several_seeds_works(finished, given, here, capsys):
    if not finished:
        for folder in ("several", "several/seed-2"):
            for name in ("all_results.json", "README.md"):
                Path(folder, name).unlink()
    same = ["--knowledge", here["knowledge"], "--top_k", "1", "--retrieval", "text"]
    said = told(capsys, training(here, "several", *same, *given))
    (way,) = re.findall(r"((?:--seeds [\d ]+)?--resume_from_checkpoint latest) to go on with it", said)
    assert ("--seeds" in way) == (given != ["--seeds", "1", "2"])
    results = run_ner.main(training(here, "several", *same, *given, *way.split()))
    assert results["seeds"] == [1, 2] and [len(one["history"]) for one in results["runs"]] == [1, 1]
    # and of one seed's run none is told to a run of several
    assert "--resume_from_checkpoint" not in told(capsys, training(here, "plain", "--seeds", "1", "2"))


def test_no_way_to_go_on_is_told_that_is_refused(here, capsys):
    """The checkpoints of earlier versions are pickles, and one seed of two may have none."""
    for folder, seeds in (("plain", []), ("several/seed-2", []), ("several", ["--seeds", "1", "2"])):
        last = Path(folder.replace("several", "several/seed-2") if seeds else folder, "checkpoints/last")
        if (last / "manifest.json").exists():
            assert "--resume_from_checkpoint latest to go on" in told(capsys, training(here, folder, *seeds))
            (last / "manifest.json").unlink()
            (last / "optimizer.safetensors").rename(last / "optimizer.bin")
        assert "--resume_from_checkpoint" not in told(capsys, training(here, folder, *seeds))
        said = told(capsys, training(here, folder, *seeds, "--resume_from_checkpoint", "latest"))
        assert "is of an earlier version" in said or "is of a run with other" in said
    shutil.rmtree("several/seed-2/checkpoints")
    assert "--resume_from_checkpoint" not in told(capsys, training(here, "several", "--seeds", "1", "2"))


def test_going_on_leaves_no_old_predictions(here, tmp_path):
    given = ["--holdout_fraction", "0.33", "--knowledge", here["knowledge"], "--top_k", "1", "--retrieval", "text"]
    arguments = training(here, "plain", *given, "--resume_from_checkpoint", "latest", "--num_train_epochs", "2")
    place = arguments.index("--test_file")
    run_ner.main(arguments[:place] + arguments[place + 2 :])
    assert [path.name for path in Path("plain/predictions").iterdir()] == ["dev.jsonl"]


def test_a_checkpoint_elsewhere_does_not_open_a_finished_folder(here, tmp_path, capsys):
    elsewhere = ["--resume_from_checkpoint", "several/seed-1/checkpoints/last"]
    assert "plain holds a finished run" in told(capsys, training(here, "plain", *elsewhere))


def test_other_things_in_a_folder_do_not_hinder(tmp_path):
    """A log or a note of commits; a folder of runs."""
    (tmp_path / "commits.txt").write_text("")
    (tmp_path / "text").mkdir()
    check_output_dir(parse_arguments(["--dataset", "twitter17", "--output_dir", str(tmp_path)], ""))


def test_files_of_others_are_not_deleted_from_a_runs_subfolders(here, tmp_path, capsys):
    """In a folder that is no run, and by --overwrite_output_dir in one that is."""
    mine = ("notes.txt", "checkpoints/epoch1.pt", "logs/diary.txt")
    for name in mine:
        (tmp_path / "project" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "project" / name).write_text("mine")
    for seeds in ([], ["--seeds", "1", "2"]):
        assert "checkpoints/epoch1.pt is of no run" in told(capsys, training(here, "project", *seeds))
    (tmp_path / "project" / "checkpoints" / "epoch1.pt").rename(tmp_path / "project" / "epoch1.pt")
    run_ner.main(training(here, "project"))
    assert all((tmp_path / "project" / name).exists() for name in ("notes.txt", "epoch1.pt", "logs/diary.txt"))
    foreign = (
        "checkpoints/epoch1.pt",
        "checkpoints/other/a",
        "crossfit/a.txt",
        "crossfit/a-0/notes.txt",
        "experts/x/y",
    )
    for name in (*foreign, "logs/diary.txt", "logs/more/diary.txt", "seed-1/logs/diary.txt"):
        path = tmp_path / "plain" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
        said = told(capsys, training(here, "plain", "--overwrite_output_dir"))
        assert "is of none: move it" in said and str(path.relative_to(tmp_path)).startswith(said.split()[6]), said
        assert path.read_text() == "mine"
        path.unlink()
        if name == "checkpoints/other/a":
            path.parent.rmdir()
    (tmp_path / "plain" / "logs" / "more" / "events.out.tfevents.1").write_text("")
    run_ner.main(training(here, "plain", "--overwrite_output_dir"))
    assert not Path("plain/logs").exists()


def test_a_folder_that_can_not_be_written_is_told_before_the_training(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    posts = ["--train_file", files["train"], "--validation_file", files["dev"]]
    with pytest.raises(SystemExit, match="is a link to nothing"):
        run_ner.main([*posts, "--output_dir", str(tmp_path / "link")])
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write everywhere
    with pytest.raises(SystemExit, match="is read-only"):
        run_ner.main([*posts, "--output_dir", str(tmp_path / "new" / "out")])


def test_an_id_that_no_hub_takes_is_told_before_the_training(files: dict[str, str]) -> None:
    posts = ["--train_file", files["train"], "--validation_file", files["dev"], "--output_dir", files["out"]]
    with pytest.raises(SystemExit, match="error: .*a b"):
        run_ner.main([*posts, "--push_to_hub", "--hub_model_id", "a b"])
