"""run_ner.py given bad input: one clear sentence, a failing exit code, nothing half-written."""

import json
import shutil
from pathlib import Path

import pytest
from datasets import Dataset

import run_ner
from dataset_scripts import _publish, wikipedia_text
from dataset_scripts import corpus as own
from modeling_more.knowledge import KnowledgeCorpus
from ner_runs import KNOWLEDGE, options, posts, run_script, write_conll, write_jsonl

RELATION = {
    "token": ["Ada", "in", "Oslo"],
    "h": {"name": "Ada", "pos": [0, 1]},
    "t": {"name": "Oslo", "pos": [2, 3]},
    "img_id": "x.jpg",
    "relation": "/per/loc/x",
}


GIVEN = ["--train_file", "{train}", "--validation_file", "{dev}"]


BAD = {
    "missing folder": (["--dataset", "twitter17", "--data_dir", "{tmp}/nowhere"], "nowhere"),
    "missing file": (["--train_file", "{tmp}/nowhere.txt", "--validation_file", "{dev}"], "nowhere.txt"),
    "empty file": (["--train_file", "{empty}", "--validation_file", "{dev}"], "empty.txt"),
    "no label": (["--train_file", "{nolabel}", "--validation_file", "{dev}"], "nolabel.txt, line 2"),
    "unknown label": (["--train_file", "{train}", "--validation_file", "{strange}"], "strange.txt, line 1"),
    "knowledge is no JSON": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{nojson}"],
        "nojson.jsonl, line 2",
    ),
    "knowledge lacks a column": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{nocolumn}"],
        "nocolumn.jsonl, line 1",
    ),
    "no such knowledge": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{tmp}/no.jsonl"],
        "no.jsonl",
    ),
    "posts without knowledge": ([*GIVEN, "--retrieval", "text"], "knowledge"),
    "a column missing": (["--train_file", "{notags}", "--validation_file", "{dev}"], "notags.jsonl, line 1"),
    "relation data": (["--train_file", "{relation}", "--validation_file", "{dev}"], "run_re.py"),
    "relation set": (["--dataset", "mnre"], "run_re.py"),
    "nothing to do": ([], "--dataset"),
    "no validation": (["--train_file", "{train}"], "validation"),
    "unknown set": (["--dataset", "twitter99"], "twitter99"),
    "no model": ([*GIVEN, "--model_name_or_path", "{tmp}/nomodel"], "nomodel"),
    "predict without file": (["--do_predict"], "--predict_file"),
    "predictions of no push": ([*GIVEN, "--push_predictions"], "--push_predictions is for --push_to_hub"),
    "push without name": ([*GIVEN, "--push_to_hub"], "--hub_model_id"),
    "option file": (["{tmp}/nowhere.yaml"], "nowhere.yaml"),
    "unknown option in file": (["{optionfile}"], "learning_rat"),
    "knowledge without retrieval": ([*GIVEN, "--knowledge", "{nojson}"], "--retrieval text or image"),
    "shuffled without retrieval": ([*GIVEN, "--shuffle_knowledge"], "--retrieval text or image"),
    "everything held out": ([*GIVEN, "--holdout_fraction", "1.5"], "holdout_fraction"),
    "no samples": ([*GIVEN, "--max_train_samples", "0"], "max_train_samples"),
    "no checkpoint": ([*GIVEN, "--resume_from_checkpoint", "{tmp}/nowhere"], "nowhere"),
    "a folder without checkpoint": ([*GIVEN, "--resume_from_checkpoint", "{tmp}"], "is no checkpoint"),
    "set and file": (["--dataset", "twitter17", "--test_file", "{dev}"], "--dataset and --test_file are both given"),
    "folder and file": ([*GIVEN, "--data_dir", "{tmp}"], "--data_dir and --train_file are both given"),
    "scoring an encoder": (["--test_file", "{dev}", "--no_do_train"], "is a plain encoder (bert)"),
    "predicting with an encoder": (["--do_predict", "--predict_file", "{dev}"], "is a plain encoder (bert)"),
    "another choice in file": (["{choice}"], "option 'lr_decay' is 'epochs', it must be one of step, epoch"),
    "YAML's off": (["{off}"], "option 'two_views' is False, it must be one of off, "),
    "no number in file": (["{number}"], "option 'seeds' is 'x'"),
    "a list in file": (["{list}"], "option 'seed' is a list, it must be one value"),
    "no such folder": (
        [*GIVEN, "--model_name_or_path", "../no/such"],
        "--model_name_or_path ../no/such: there is no such folder",
    ),
    "a model's name misspelt": (
        [*GIVEN, "--model_name_or_path", "{model}x"],
        "there is no such folder: did you mean {model}?",
    ),
    "no such expert": (
        ["--retrieval", "moe", "--experts", "{tmp}/text", *GIVEN],
        "--experts {tmp}/text: there is no such folder",
    ),
    "an expert that is a file": (
        ["--retrieval", "moe", "--experts", "{empty}", *GIVEN],
        "empty.txt: it is a file, give a folder or an id of the Hub",
    ),
    "no such text model": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "{nojson}", "--retriever", "dense", "--text_model", "./t"],
        "--text_model ./t: there is no such folder",
    ),
    "no such tower": (
        [*GIVEN, "--retrieval", "image", "--knowledge", "{nojson}", "--image_model", "../a/b"],
        "--image_model ../a/b: there is no such folder",
    ),
    "no such corpus": (
        [*GIVEN, "--retrieval", "text", "--knowledge", "../no/such"],
        "neither a folder nor a data set repository of the Hub: there is no such folder",
    ),
    "no such set": (["--dataset", "../no/such"], "--dataset ../no/such: there is no such folder"),
    "no such set beside": (["--dataset", "./nowhere"], "--dataset ./nowhere: there is no such folder"),
    "a set's name misspelt": (["--dataset", "twiter17"], "wikidiverse, demo: did you mean twitter17?"),
    "a set's name in capitals": (["--dataset", "WikiDiverse"], "did you mean wikidiverse?"),
    "an option misspelt": (
        ["--learning_rte", "1"],
        "there is no option --learning_rte: did you mean --learning_rate?",
    ),
    "the end of an option": (["--epochs", "3"], "there is no option --epochs: did you mean --num_train_epochs?"),
    "an option with a value": (["--outptu_dir=x"], "there is no option --outptu_dir: did you mean --output_dir?"),
    "an option of one dash": (["-seed", "1"], "there is no option -seed: did you mean --seed?"),
    "an option cut short": (
        [*GIVEN, "--max_train", "5"],
        "there is no option --max_train: did you mean --max_train_s",
    ),
    "a word of no option": (["twitter17"], "'twitter17' belongs to no option"),
    "a choice misspelt": (
        ["--retrieval", "txt"],
        "argument --retrieval: it is 'txt', it must be one of none, text, image, moe: did you mean text?",
    ),
    "a tracker misspelt": ([*GIVEN, "--report_to", "tensorbord"], "did you mean tensorboard?"),
    "a choice of nothing": (["--head", "xyz"], "it must be one of crf, softmax"),
    "a choice misspelt in file": (["{choice}"], "one of step, epoch: did you mean epoch?"),
    "an option misspelt in file": (["{optionfile}"], "'learning_rat' is unknown: did you mean learning_rate?"),
    "epochs": ([*GIVEN, "--num_train_epochs", "0"], "num_train_epochs"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_ends_with_one_sentence(case, files, tiny_encoder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    names = {key: files[key] for key in ("train", "dev")} | {"tmp": str(tmp_path)}
    contents = {
        "empty.txt": "",
        "nolabel.txt": "Ada\tB-PER\nLovelace\n",
        "strange.txt": "Ada\tB-QUX\n",
        "nojson.jsonl": json.dumps(KNOWLEDGE[0]) + "\n{title: x}\n",
        "nocolumn.jsonl": json.dumps({"id": "1", "title": "x"}) + "\n",
        "notags.jsonl": json.dumps({"id": "1", "tokens": ["a"]}) + "\n",
        "relation.txt": f"{RELATION}\n",
        "optionfile.yaml": "learning_rat: 1\n",
        "choice.yaml": "lr_decay: epochs\n",
        "off.yaml": "two_views: off\n",
        "number.yaml": "seeds: [1, x]\n",
        "list.yaml": "seed: [1]\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        names[Path(name).stem] = str(tmp_path / name)
    names["model"] = tiny_encoder("bert")
    arguments, expected = BAD[case]
    expected = expected.format(**names)
    given = [argument.format(**names) for argument in arguments]
    if "--model_name_or_path" not in given:
        given += ["--model_name_or_path", tiny_encoder("bert")]
    with pytest.raises(SystemExit) as stopped:
        run_ner.main([*given, "--output_dir", files["out"], "--cache_dir", files["cache"], "--use_cpu"])
    message = str(stopped.value.code) if not isinstance(stopped.value.code, int) else capsys.readouterr().err
    assert stopped.value.code not in (0, None)
    assert expected in message and "Traceback" not in message
    sentence = message.strip().splitlines()[-1]
    assert len(sentence) < 500 and "error:" in sentence
    assert not Path(files["out"]).exists()


def test_labels_that_the_expert_does_not_know(files, tiny_encoder, tmp_path):
    run_ner.main(options(files, tiny_encoder("bert"), "--num_train_epochs", "1"))
    (tmp_path / "misspelt.conll").write_text("Ada\tB-PRE\n\nOslo\tB-LOC\n")
    score = ["--model_name_or_path", files["out"], "--no_do_train", "--test_file", str(tmp_path / "misspelt.conll")]
    with pytest.raises(SystemExit, match=r"does not know the labels B-PRE, .*: did you mean B-PER\?"):
        run_ner.main([*score, "--output_dir", str(tmp_path / "scored"), "--use_cpu"])


def test_a_name_that_the_hub_does_not_know_either(files, hub, tmp_path):
    """A name that could be an id: the Hub is asked, then both are told."""
    (tmp_path / "org" / "text").mkdir(parents=True)
    given = ["--train_file", files["train"], "--validation_file", files["dev"], "--use_cpu"]
    for more in (
        ["--model_name_or_path", "org/txt"],
        ["--retrieval", "moe", "--experts", "org/txt"],
    ):
        done = run_script([*given, *more], env=hub.env, cwd=tmp_path)
        said = done.stderr.strip().splitlines()[-1]
        assert f"{more[-2]} org/txt: there is no such folder here, and the Hub does not give it" in said, said
        assert "did you mean org/text?" in said, said


def test_library_calls_say_what_is_not_there(tmp_path):
    from dataset_scripts import load
    from modeling_more.knowledge import ImageEncoder, KnowledgeCorpus, load_knowledge
    from modeling_more.knowledge.dense import SentenceEncoder

    (tmp_path / "corpus").mkdir()
    missing = f"{tmp_path}/corpsu"
    for call in (ImageEncoder, SentenceEncoder, KnowledgeCorpus.from_pretrained):
        with pytest.raises(FileNotFoundError, match=r"corpsu.*: there is no such folder: did you mean .*/corpus\?"):
            call(missing)
    with pytest.raises(FileNotFoundError, match=r"articels\.jsonl does not exist: did you mean .*/articles\.jsonl\?"):
        (tmp_path / "articles.jsonl").write_text("")
        load_knowledge([f"{tmp_path}/articels.jsonl"])
    with pytest.raises(ValueError, match=r"give one of .*: did you mean mnre\?"):
        load("mnr")
    with pytest.raises(ValueError, match=r"one of none, text, image: did you mean image\?"):
        load("twitter17", "imag")


ODD = "[v1] my *set? {a,b}"


def test_names_with_glob_characters(tiny_encoder, tmp_path, monkeypatch):
    """Folders and files of data, corpus, model, cache and output."""
    root = tmp_path / ODD
    encoder = shutil.copytree(tiny_encoder("bert"), root / ODD)
    monkeypatch.setenv("MORE_CACHE", str(root / f"more {ODD}"))
    (root / "raw").mkdir()
    for split in ("train", "dev", "test"):
        write_conll(root / "raw" / f"{split} {ODD}.txt", posts(8))
    articles = write_jsonl(root / f"articles {ODD}.jsonl", KNOWLEDGE)
    data, corpus, cache = root / f"data {ODD}", root / f"corpus {ODD}", ["--cache_dir", str(root / f"cache {ODD}")]
    made = ["--retrieval", "text", "--knowledge", str(articles), "--output_dir", str(data)]
    assert _publish.main("twitter17", ["--data_dir", str(root / "raw"), *made, *cache]) == 0
    assert own.run(["--data_dir", str(articles), "--output_dir", str(corpus), *cache]) == 0
    (root / "wiki").mkdir()
    article = {"id": "1", "url": "u", "title": "Ada", "text": "Ada won."}
    Dataset.from_list([article]).to_parquet(root / "wiki" / f"a {ODD}.parquet")
    (root / "lines").mkdir()
    write_jsonl(root / "lines" / f"a {ODD}.jsonl", [article])
    for source in ("wiki", "lines"):
        given = ["--data_dir", str(root / source), "--output_dir", str(root / f"{source} {ODD}"), *cache]
        assert wikipedia_text.run(given) == 0 and len(KnowledgeCorpus.from_pretrained(root / f"{source} {ODD}")) == 1
    monkeypatch.chdir(root)
    quick = ["--num_train_epochs", "1", "--max_length", "64", "--use_cpu", *cache, "--holdout_fraction", "0.3"]
    for name, dataset, more in (("a", str(data), []), ("b", data.name, ["--knowledge", str(corpus)])):
        given = ["--dataset", dataset, "--retrieval", "text", *more, "--model_name_or_path", str(encoder), *quick]
        assert run_ner.main([*given, "--output_dir", f"{name} {ODD}"])["train_posts"] < 8
    experts = ["--retrieval", "moe", "--experts", f"a {ODD}", f"b {ODD}", "--gate_epochs", "1"]
    mixed = ["--dataset", str(data), *experts, "--use_cpu", *cache]
    assert "test_f1" in run_ner.main([*mixed, "--output_dir", f"mixture {ODD}"])
    predict = ["--do_predict", "--predict_file", str(root / "raw" / f"dev {ODD}.txt"), "--use_cpu"]
    run_ner.main([*predict, "--model_name_or_path", f"mixture {ODD}"])
    (predicted,) = root.glob("*-predicted-*")
    assert len((predicted / "predictions" / "predict.jsonl").read_text().splitlines()) == 8


def test_bad_input_shows_no_traceback(files, tiny_encoder, tmp_path):
    done = run_script(["--train_file", str(tmp_path / "no.txt"), "--validation_file", files["dev"]])
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert [line for line in done.stderr.splitlines() if "no.txt" in line and line.startswith("error:")]
