"""What a downloaded model may cause: it is read as numbers and JSON, or refused in a sentence; nothing of it runs."""

import json
import pickle
import shutil
import sys
import time
from pathlib import Path

import pytest
from audit import watched
from transformers import AutoModelForTokenClassification

from hub_server import Repo
from mixture_experts import ENTRIES, LABELS, NAMES, OTHERS, save_experts
from modeling_more import (
    MoReForTokenClassification,
    MoReMixtureForTokenClassification,
    MoReMixtureProcessor,
    MoReProcessor,
    predict,
)
from modeling_more.provenance import HubName


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tiny_encoder):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)["entities"]


@pytest.fixture
def saved(experts, tmp_path):
    """A copy of a saved expert."""
    return Path(shutil.copytree(experts[0], tmp_path / "saved"))


def edit(file, change):
    """Change a JSON file in place."""
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


DEEP = "[" * 100_000
CONFIGS = {
    "attention by code of the Hub": (
        lambda c: c.update(attn_implementation="someone/kernel"), "attn_implementation is 'someone/kernel', which ",
    ),
    "the same in the encoder": (
        lambda c: c["encoder_config"].update(_attn_implementation="someone/kernel@v1:f"),
        r"encoder_config\._attn_implementation is 'someone/kernel@v1:f', which may be code",
    ),
    "for a part": (
        lambda c: c.update(attn_implementation={"": "eager", "encoder_config": "a/b"}), "is 'a/b', which may be code",
    ),
    "quantisation": (
        lambda c: c.update(quantization_config={"quant_method": "gptq"}), "quantization_config is not supported",
    ),
    "weights elsewhere": (
        lambda c: c.update(transformers_weights="other.safetensors"), "transformers_weights is not supported",
    ),
    "vocabulary": (
        lambda c: c["encoder_config"].update(vocab_size=10**12), "vocab_size is 1000000000000, it must lie between",
    ),
    "vocabulary beyond the weights": (
        lambda c: c["encoder_config"].update(vocab_size=10**7), "asks for 10000000 tokens × 32 and 2 layers, the w",
    ),
    "layers": (lambda c: c["encoder_config"].update(num_hidden_layers=10**9), "num_hidden_layers is 1000000000, it m"),
    "layers beyond the weights": (lambda c: c["encoder_config"].update(num_hidden_layers=900), "and 900 layers, the"),
    "number of labels": (lambda c: c.update(num_labels=10**9), "num_labels is 1000000000, it must lie"),
    "labels in a list": (lambda c: c.update(id2label=["O"]), "id2label must be an object of numbers and labels"),
    "labels that are numbers": (lambda c: c["id2label"].update({"0": 1}), "id2label must be an object"),
    "labels that leave out a number": (lambda c: c["id2label"].pop("0"), "must number different labels from 0 on"),
    "a label twice": (lambda c: c["id2label"].update({"0": c["id2label"]["1"]}), "must number different labels"),
    "a label of two lines": (lambda c: c["id2label"].update({"0": "O\nx"}), "which is empty or can't be printed"),
    "a label that moves the cursor": (lambda c: c["id2label"].update({"0": "\x1b[2J"}), "can't be printed"),
    "a hidden size of words": (lambda c: c["encoder_config"].update(hidden_size="x"), "can't be loaded"),
    "a negative size": (lambda c: c["encoder_config"].update(hidden_size=-4), "hidden_size is -4, it must lie"),
    "no heads": (lambda c: c["encoder_config"].update(num_attention_heads=0), "can't be loaded"),
    "another encoder": (lambda c: c["encoder_config"].update(model_type="modernbert"), "can't be loaded"),
    "an unknown encoder": (lambda c: c["encoder_config"].update(model_type="evil"), "evil"),
    "no encoder": (lambda c: c.update(encoder_config=3), "can't be loaded"),
    "an infinite temperature": (lambda c: c.update(kl_temperature="a"), "can't be loaded"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_that_asks_for_more_is_refused(case, saved):
    change, told = CONFIGS[case]
    edit(saved / "config.json", change)
    began = time.monotonic()
    for load in (MoReForTokenClassification.from_pretrained, AutoModelForTokenClassification.from_pretrained):
        with pytest.raises(ValueError, match=told):
            load(saved)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
def test_damaged_files_are_one_sentence_that_names_them(name, saved):
    good = (saved / name).read_text()
    load = MoReForTokenClassification if name == "config.json" else MoReProcessor
    for content in (good[: len(good) // 2], DEEP, "[1]", "", b"\xff"):
        (saved / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises((ValueError, OSError)) as error:
            load.from_pretrained(saved)
        assert name in str(error.value), (content[:20], error.value)
    (saved / name).unlink()
    if name != "tokenizer_config.json":  # whose settings are those of its class
        with pytest.raises((ValueError, OSError), match=name):
            load.from_pretrained(saved)


def test_only_safetensors_are_read(saved, tmp_path, tiny_encoder):
    """Pickled weights are refused, with a sentence on how to convert one's own, and not even opened."""
    encoder = Path(shutil.copytree(tiny_encoder("bert"), tmp_path / "encoder"))
    for folder in (saved, encoder):
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(print))
    code = (
        "import sys; from modeling_more import MoReForTokenClassification as M\n"
        "for load, folder in ((M.from_pretrained, sys.argv[1]), (M.from_encoder_pretrained, sys.argv[2])):\n"
        "    try: load(folder)\n"
        "    except ValueError as error: print(error)\n"
    )
    seen = watched([sys.executable, "-c", code, str(saved), str(encoder)])
    told = seen.done.stdout
    assert told.count("weights are read from safetensors alone; to convert a pytorch_model.bin") == 2, seen.done.stderr
    assert not [one for one in seen.found if one["event"] not in ("exec", "compile")], seen.found


def test_adapters_and_shards_of_processes_are_refused(saved, experts, tiny_encoder, tmp_path):
    """Their weights lie elsewhere, where the folder's files say."""
    (saved / "shard-00000-model-00001-of-00001.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="is of a checkpoint in shards of processes"):
        MoReForTokenClassification.from_pretrained(saved)
    (saved / "shard-00000-model-00001-of-00001.safetensors").unlink()
    (saved / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": experts[1]}))
    with pytest.raises(ValueError, match="saved is an adapter .*, whose model lies elsewhere: load it by peft"):
        MoReForTokenClassification.from_pretrained(saved)
    encoder = Path(shutil.copytree(tiny_encoder("bert"), tmp_path / "encoder"))
    shutil.copy(saved / "adapter_config.json", encoder)
    with pytest.raises(ValueError, match="is an adapter"):
        MoReForTokenClassification.from_encoder_pretrained(str(encoder), id2label=dict(enumerate(LABELS)))
    with pytest.raises(ValueError, match="a more is no plain encoder"):
        MoReForTokenClassification.from_encoder_pretrained(str(experts[0]), id2label=dict(enumerate(LABELS)))


def test_nothing_of_a_hostile_folder_runs_or_leads_out_of_it(saved, hub, tmp_path):
    """A folder with all that is tried in such files, loaded by the script from the Hub, under an audit."""
    private = tmp_path / "private"
    private.mkdir()
    (private / "secret.txt").write_text("mine")
    (saved / "evil.py").write_text("import os; os.system('touch ran')\nclass Evil: pass\n")
    classes = ("AutoConfig", "AutoModelForTokenClassification", "AutoProcessor", "AutoTokenizer")
    own = {"auto_map": dict.fromkeys(classes, "evil.Evil")}
    more = {"custom_pipelines": {"token-classification": {"impl": "evil.Evil"}}, "custom_generate": "evil.py"}
    edit(saved / "config.json", lambda c: c.update(own, **more))
    edit(saved / "config.json", lambda c: c["encoder_config"].update(own, _name_or_path=str(private)))
    edit(saved / "processor_config.json", lambda c: c.update(own))
    names = {
        f"{name}_file": str(private / "secret.txt") for name in ("vocab", "tokenizer", "merges", "special_tokens_map")
    }
    edit(saved / "tokenizer_config.json", lambda c: c.update(own, name_or_path=str(private), **names))
    (saved / "chat_template.jinja").write_text("{{ ''.__class__.__mro__ }}")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "custom_checkpoint_0.pkl"):
        (saved / name).write_bytes(pickle.dumps(print))
    hub.repos["model", "evil/expert"] = Repo()
    content = {str(file.relative_to(saved)): file.read_bytes() for file in saved.rglob("*") if file.is_file()}
    hub.repos["model", "evil/expert"].commit(content, "main")
    code = (
        "import sys; from modeling_more import MoReProcessor, predict\n"
        "from transformers import AutoModelForTokenClassification, AutoProcessor\n"
        "for name in sys.argv[1:]:\n"
        "    model = AutoModelForTokenClassification.from_pretrained(name)\n"
        "    for load in (AutoProcessor, MoReProcessor):\n"
        "        predict(model, load.from_pretrained(name), [{'text': 'Ada in Oslo'}])\n"
    )
    hosts = [hub.endpoint.removeprefix("http://")]
    seen = watched([sys.executable, "-c", code, "evil/expert", str(saved)], hub.env, [private], hosts, cwd=tmp_path)
    assert seen.done.returncode == 0, seen.done.stderr[-2000:]
    assert not [one for one in seen.found if one["stack"]], seen.found  # but for the code above
    assert not (tmp_path / "ran").exists()
    loaded = [path for path in hub.requests if path.endswith((".bin", ".pkl", ".pt", ".py"))]
    assert not loaded


def test_a_mixture_of_somebody_else_names_no_folder_here(experts, tmp_path, monkeypatch):
    """It refers to experts, and to a tower, that must not be opened because it says so."""
    mixture = MoReMixtureForTokenClassification.from_experts(
        experts, NAMES, image_dim=24, image_model=str(tmp_path / "tower"), copy_experts=False
    )
    mixture.save_pretrained(tmp_path / "mixture")
    again = MoReMixtureForTokenClassification.from_pretrained(tmp_path / "mixture")  # of this user
    assert again.config.image_model == str(tmp_path / "tower") and not isinstance(again.config.image_model, HubName)
    edit(tmp_path / "mixture" / "config.json", lambda c: c.update(by="somebody else"))
    with pytest.raises(ValueError, match=rf"refers to experts at {experts[0]}, .* give expert_sources=\[…\]"):
        MoReMixtureForTokenClassification.from_pretrained(tmp_path / "mixture")
    given = MoReMixtureForTokenClassification.from_pretrained(tmp_path / "mixture", expert_sources=experts)
    processor = MoReMixtureProcessor([MoReProcessor.from_pretrained(one) for one in experts], NAMES)
    post = {"tokens": ["Ada"], "knowledge_text": ENTRIES, "knowledge_image": OTHERS}
    assert predict(given, processor, [post])[0]["expert_weights"].keys() == set(NAMES)
    with pytest.raises(ValueError, match="tower' is not opened: a downloaded file names it"):
        predict(given, processor, [{**post, "image": tmp_path / "a.png"}])
    given.save_pretrained(tmp_path / "saved again")  # which doesn't make its names this user's
    again = MoReMixtureForTokenClassification.from_pretrained(tmp_path / "saved again", expert_sources=experts)
    assert isinstance(again.config.image_model, HubName)


def test_a_strangers_encoder_comes_from_the_hub_alone(tiny_encoder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny_encoder("bert"), tmp_path / "org" / "encoder")
    for load in (MoReForTokenClassification, MoReProcessor):
        load.from_encoder_pretrained("org/encoder")
        for name in ("org/encoder", str(tmp_path / "org" / "encoder"), "https://evil.example/x"):
            with pytest.raises(ValueError, match="is not opened: a downloaded file names it"):
                load.from_encoder_pretrained(HubName(name))


@pytest.mark.parametrize(
    "entry, value",
    [("top_k", 1.5), ("top_k", 0), ("max_length", "512"), ("knowledge_words", 0), ("knowledge_column", 5)],
)
def test_a_processor_says_which_of_its_settings_is_none(saved, entry, value):
    """Also beside files of a run that are no objects, such as the ids that it held out."""
    (saved / "holdout_ids.json").write_text('["1", "2"]')
    edit(saved / "processor_config.json", lambda content: content.update({entry: value}))
    with pytest.raises(ValueError, match=f"{entry} is {value!r}, it must be"):
        MoReProcessor.from_pretrained(saved)
