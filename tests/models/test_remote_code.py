"""Saved models bring the code that loads them where the package is not; where it is, its own code is used."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bare_environment
import pytest
import torch
import transformers
from accelerate import Accelerator
from transformers import AutoConfig, AutoModel, AutoProcessor, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from hub_server import Repo, local_hub
from mixture_experts import CLASSES, ENTRIES, OTHERS, TASKS, builder, save_experts
from modeling_more import MoReConfig, MoReMixtureProcessor, MoReProcessor, predict
from modeling_more.files import code_names
from modeling_more.provenance import hub_options
from modeling_more.remote_code import TASKS as PIPELINE_TASKS
from modeling_more.remote_code import pipelines_of, without_code

KINDS = [(task, kind) for task in TASKS for kind in ("expert", "mixture")]
POSTS = [
    {"id": "1", "text": "Ada Lovelace met Babbage in London", "head": [0, 12], "tail": [28, 34]},
    {"id": "2", "tokens": ["Lindau", "\ufe0f", "!"], "head": [0, 1], "tail": [2, 3], "knowledge_text": ENTRIES},
    {"id": "3", "text": "Rivera " + "scored twice " * 14, "head": [0, 6], "tail": [7, 13], "knowledge_image": OTHERS},
]
USER = Path(__file__).parents[1] / "remote_user.py"


@pytest.fixture(scope="module")
def saved(tiny_encoder, tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Of each task an expert and a mixture of two, in a folder with model and processor."""
    root = tmp_path_factory.mktemp("remote code")
    folders = save_experts(root, tiny_encoder)
    found = {(task, "expert"): Path(folders[task][0]) for task in TASKS}
    for task in TASKS:
        mixture, processor, _ = builder(folders)(task)
        found[task, "mixture"] = root / task / "mixture"
        mixture.save_pretrained(found[task, "mixture"])
        processor.save_pretrained(found[task, "mixture"])
    return found


def inputs(task: str) -> dict:
    """Arguments of a processor for one post."""
    return {"words": ["Ada", "met", "Babbage", "."], "pairs": [[0, 1], [2, 3]] if task == "relations" else None}


def plan(saved, places) -> list[dict]:
    return [
        {"name": f"{task} {kind} {number}", "where": where, "auto_class": CLASSES[task][2].__name__, "posts": POSTS,
         "inputs": inputs(task), "task": PIPELINE_TASKS[CLASSES[task][2].__name__][0]}
        for task, kind in KINDS
        for number, where in enumerate(places[task, kind])
    ]  # fmt: skip


def test_models_load_and_predict_where_only_transformers_torch_and_pillow_are(saved, tmp_path):
    with local_hub(tmp_path / "unused") as hub:
        places = {}
        for (task, kind), folder in saved.items():
            repo = hub.repos["model", f"tester/{task}-{kind}.v1"] = Repo()
            files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
            repo.commit(files, "main")
            places[task, kind] = [str(folder), f"tester/{task}-{kind}.v1"]
        rows = plan(saved, places)
        (tmp_path / "plan.json").write_text(json.dumps(rows))
        packages = bare_environment.link_packages(tmp_path / "packages")
        done = subprocess.run(
            bare_environment.command(packages, USER, str(tmp_path / "plan.json"), str(tmp_path / "found.json")),
            env=bare_environment.environment(tmp_path) | {"HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_XET": "1"},
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "You are using a model of type" not in done.stderr  # a warning of transformers that would frighten
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["there"] == []
    assert found["models"].keys() == {row["name"] for row in rows} and len(rows) == 8

    for (task, kind), folder in saved.items():
        model = CLASSES[task][2].from_pretrained(folder).eval()
        processor = AutoProcessor.from_pretrained(folder)
        with torch.no_grad():
            logits = model(**processor(**inputs(task))).logits
        predictions = predict(model, processor, POSTS)
        piped = pipeline(PIPELINE_TASKS[CLASSES[task][2].__name__][0], model=str(folder))(POSTS)
        for number in range(2):
            told = found["models"][f"{task} {kind} {number}"]
            assert "trust_remote_code=True" in told["without the flag"]  # transformers' own sentence
            assert all(name.startswith("transformers") for name in told["classes"].values())
            own = [
                told["classes"][one] for one in ("AutoModel", CLASSES[task][2].__name__, "AutoProcessor", "AutoConfig")
            ]
            assert all(name.startswith("transformers_modules.") for name in own)
            assert [name.split(".")[-1] for name in own[:2]] == [type(model).__name__] * 2
            assert told["tokens"] == AutoTokenizer.from_pretrained(folder).tokenize("Ada in Lindau")
            assert told["max_length"] == [one.max_length for one in getattr(processor, "processors", [processor])]
            torch.testing.assert_close(torch.tensor(told["logits"]), logits, atol=1e-6, rtol=0)
            assert_like(told["predictions"], predictions)
            assert_like(told["piped"], piped)
            assert ("pip install modeling-more" in told.get("image", "")) is (kind == "mixture")
            kinds = {name.split(".")[-2] + ".py" for name in own}
            assert kinds <= set(told["saved again"]) <= {path.name for path in folder.glob("*.py")}


def assert_like(found, wanted) -> None:
    """The same, but for the last digits of numbers."""
    if isinstance(wanted, dict):
        assert found.keys() == wanted.keys()
        for key, value in wanted.items():
            assert_like(found[key], value)
    elif isinstance(wanted, list | tuple):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_like(one, other)
    else:
        assert found == (pytest.approx(wanted, abs=1e-6) if isinstance(wanted, float) else wanted)


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_with_the_package_its_own_classes_are_used_also_with_the_flag(saved, task, kind):
    folder, auto_class = saved[task, kind], CLASSES[task][2]
    loaded = [
        one.from_pretrained(folder, trust_remote_code=True)
        for one in (AutoConfig, AutoModel, auto_class, AutoProcessor)
    ]
    assert [type(one).__module__.split(".")[0] for one in loaded] == ["modeling_more"] * 4
    assert [type(one).__name__ for one in loaded[1:3]] == [
        json.loads((folder / "config.json").read_text())["architectures"][0]
    ] * 2
    assert not hasattr(loaded[0], "auto_map") and not hasattr(loaded[0], "custom_pipelines")


@pytest.fixture
def remote(saved, tmp_path, monkeypatch):
    """The model class of an expert's own code, loaded into this process, where the package is."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = str(saved["entities", "expert"])
    yield get_class_from_dynamic_module("modeling_more.MoReForTokenClassification", folder)
    for name in [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]:
        del sys.modules[name]


def test_code_of_a_model_changes_nothing_for_the_package(saved, remote):
    assert remote.__module__.startswith("transformers_modules.")
    for task, kind in KINDS:
        test_with_the_package_its_own_classes_are_used_also_with_the_flag(saved, task, kind)
    model = remote.from_pretrained(saved["entities", "expert"])
    assert type(model) is remote and type(model.config).__module__.startswith("transformers_modules.")


def test_a_name_that_a_models_code_found_in_a_file_opens_no_folder(remote, tmp_path):
    theirs = sys.modules[remote.__module__.rpartition(".")[0] + ".provenance"].HubName
    assert hub_options(theirs("tester/tower")) == {"token": False}
    with pytest.raises(ValueError, match="is not opened"):
        hub_options(theirs(tmp_path))


def test_code_that_an_encoder_or_a_tokenizer_names_is_not_run_with_the_flag(saved, remote, tmp_path):
    folder = tmp_path / "evil"
    shutil.copytree(saved["entities", "expert"], folder)
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Evil: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config["encoder_config"]["auto_map"] = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil"}
    (folder / "config.json").write_text(json.dumps(config))
    for loader in (AutoModel, CLASSES["entities"][0], remote):
        assert loader.from_pretrained(folder, trust_remote_code=True).encoder.config.model_type == "bert"
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["auto_map"] = {"AutoTokenizer": [None, "evil.Evil"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = get_class_from_dynamic_module("processing_more.MoReProcessor", str(folder))
    for loader in (AutoProcessor, MoReProcessor, theirs):
        try:
            loader.from_pretrained(folder, trust_remote_code=True)
        except ValueError as error:
            assert "custom code" in str(error)
    assert not (tmp_path / "ran").exists()


def test_parts_of_a_mixture_and_checkpoints_hold_no_code(saved, tmp_path):
    folder = saved["entities", "mixture"]
    assert {path.parent for path in folder.rglob("*.py")} == {folder}
    for name in MoReMixtureProcessor.from_pretrained(folder).names:
        assert "auto_map" not in json.loads((folder / "experts" / name / "processor_config.json").read_text())
    model = AutoModel.from_pretrained(saved["entities", "expert"])
    with without_code():
        model.save_pretrained(tmp_path / "part")
    assert not list((tmp_path / "part").glob("*.py"))
    assert "auto_map" not in json.loads((tmp_path / "part" / "config.json").read_text())
    model.save_pretrained(tmp_path / "whole")
    assert (tmp_path / "whole" / "modeling_more.py").is_file()


def test_what_is_saved_names_only_code_that_lies_beside(saved):
    for folder in saved.values():
        config = json.loads((folder / "config.json").read_text())
        named = [
            *config["auto_map"].values(),
            *json.loads((folder / "processor_config.json").read_text())["auto_map"].values(),
        ]
        named += [one["impl"] for one in config.get("custom_pipelines", {}).values()]
        for reference in named:
            file, class_name = reference.split(".")
            assert f"class {class_name}(" in (folder / f"{file}.py").read_text()
        assert {path.name for path in folder.glob("*.py")} <= set(code_names())


def test_pipelines_are_named_where_their_file_is():
    here = "auto_pipelines.py" in code_names()
    for auto_class, (task, _) in PIPELINE_TASKS.items():
        assert list(pipelines_of(auto_class)) == [task] * here
        assert hasattr(transformers, auto_class)


@pytest.mark.parametrize("kind", [MoReConfig, MoReProcessor])
def test_a_file_of_the_user_is_not_overwritten_by_code(saved, tmp_path, kind):
    (tmp_path / "words.py").write_text("mine = 1\n")
    loaded = kind.from_pretrained(saved["entities", "expert"])
    with pytest.raises(ValueError, match=r"words\.py would be overwritten .* a folder of its own"):
        loaded.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["words.py"]
    (tmp_path / "words.py").unlink()
    loaded.save_pretrained(tmp_path)
    loaded.save_pretrained(tmp_path)  # over its own


@pytest.mark.parametrize(("task", "kind"), KINDS)
def test_transformers_own_pipelines_say_which_one_to_use(saved, task, kind):
    name = {"entities": "token-classification", "relations": "text-classification"}[task]
    pipe = pipeline(name, model=str(saved[task, kind]))
    with pytest.raises(ValueError, match=rf'use pipeline\("{"more-re" if task == "relations" else "more-ner"}"'):
        pipe("Ada met Babbage")
    model, processor = AutoModel.from_pretrained(saved[task, kind]), AutoProcessor.from_pretrained(saved[task, kind])
    batch = processor(**inputs(task))
    model(**batch, inputs_embeds=None)
    with pytest.raises(TypeError, match="does not know the argument word_ids"):
        model(**batch, word_ids=1)


def test_one_process_predicts_as_an_accelerator_does(saved):
    for task, kind in KINDS:
        model = AutoModel.from_pretrained(saved[task, kind])
        processor = AutoProcessor.from_pretrained(saved[task, kind])
        alone = predict(model, processor, POSTS, batch_size=2)
        assert predict(torch.nn.DataParallel(model), processor, POSTS, batch_size=2) == alone
        assert predict(model, processor, POSTS, batch_size=2, accelerator=Accelerator(cpu=True)) == alone
