"""Mixtures saved, loaded and referred to, their processor, and errors of one sentence."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoModelForTokenClassification,
    AutoProcessor,
)

from mixture_experts import (
    CLASSES,
    ENTRIES,
    IMAGE_DIM,
    KNOWLEDGE,
    LABELS,
    NAMES,
    OTHERS,
    PAIRS,
    TASKS,
    WORDS,
    builder,
    save_expert,
    save_experts,
)
from modeling_more import (
    MoReMixtureConfig,
    MoReMixtureForRelationExtraction,
    MoReMixtureForTokenClassification,
    MoReMixtureProcessor,
    MoReProcessor,
)
from re_runs import RELATIONS


@pytest.fixture(scope="module")
def folders(tiny_encoder, tmp_path_factory):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


@pytest.fixture(scope="module")
def build(folders):
    return builder(folders)


@pytest.mark.parametrize(("task", "gate"), [("entities", "post"), ("entities", "word"), ("relations", "post")])
def test_the_checkpoint_holds_its_experts(task, gate, folders, build, tmp_path):
    """Saved, its experts' folders gone, loaded through the Auto classes: bit-equal, and frozen again."""
    copies = [shutil.copytree(folder, tmp_path / "experts" / Path(folder).name) for folder in folders[task]]
    _, processor, batch = build(task, gate=gate)
    mixture = CLASSES[task][1].from_experts(copies, NAMES, gate=gate, image_dim=IMAGE_DIM, gate_hidden=4)
    torch.nn.init.normal_(mixture.gate.output.weight)
    with torch.no_grad():
        before = mixture(**batch)
    mixture.save_pretrained(tmp_path / "mixture")
    processor.save_pretrained(tmp_path / "mixture")
    shutil.rmtree(tmp_path / "experts")
    assert str(tmp_path) not in (tmp_path / "mixture" / "config.json").read_text()

    again, report = CLASSES[task][2].from_pretrained(tmp_path / "mixture", output_loading_info=True)
    assert type(again) is CLASSES[task][1] and not report["missing_keys"] and not report["unexpected_keys"]
    assert {name for name, p in again.named_parameters() if p.requires_grad} == {
        f"gate.{name}" for name, _ in again.gate.named_parameters()
    }
    assert not any(module.training for module in again.modules())
    again.train()
    assert again.gate.training and not any(module.training for module in again.experts.modules())
    again.eval()
    processor_again = AutoProcessor.from_pretrained(tmp_path / "mixture")
    assert type(processor_again) is MoReMixtureProcessor and processor_again.markers == (task == "relations")
    assert [one.max_length for one in processor_again.processors] == [24, 400]
    assert processor_again.knowledge_columns == ["knowledge_text", "knowledge_image"]
    batch_again = processor_again(WORDS, KNOWLEDGE, pairs=PAIRS if task == "relations" else None)
    for one, two in zip(
        [*batch["experts"], batch["text_only"]], [*batch_again["experts"], batch_again["text_only"]], strict=True
    ):
        assert one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one)
    with torch.no_grad():
        after = again(**batch_again, **{key: batch[key] for key in ("image_features", "image_mask", "labels")})
    for field in before:
        assert torch.equal(before[field], after[field]), field
    everything = CLASSES[task][2].from_pretrained(tmp_path / "mixture", train_experts=True)
    assert all(p.requires_grad for p in everything.parameters())
    assert everything.train().experts[0].training


def test_two_real_experts_load_where_their_folders_are_gone(minilm, tmp_path):
    sources = [save_expert(tmp_path / name, "entities", minilm, seed=i) for i, name in enumerate(NAMES)]
    mixture = MoReMixtureForTokenClassification.from_experts(sources)
    processor = MoReMixtureProcessor([MoReProcessor.from_pretrained(source) for source in sources], NAMES)
    batch = processor(WORDS, KNOWLEDGE)
    mixture.save_pretrained(tmp_path / "mixture")
    for source in sources:
        shutil.rmtree(source)
    again = AutoModelForTokenClassification.from_pretrained(tmp_path / "mixture")
    with torch.no_grad():
        assert torch.equal(mixture(**batch).logits, again(**batch).logits)


@pytest.mark.parametrize("task", TASKS)
def test_experts_can_be_referred_to(task, folders, build, tmp_path, caplog):
    copies = [shutil.copytree(folder, tmp_path / Path(folder).name) for folder in folders[task]]
    _, _, batch = build(task)
    mixture = CLASSES[task][1].from_experts(copies, NAMES, image_dim=IMAGE_DIM, copy_experts=False)
    torch.nn.init.normal_(mixture.gate.output.weight)
    mixture.save_pretrained(tmp_path / "mixture")
    weights = load_file(tmp_path / "mixture" / "model.safetensors")
    assert weights and all(name.startswith("gate.") for name in weights)
    assert json.loads((tmp_path / "mixture" / "config.json").read_text())["expert_sources"] == [str(p) for p in copies]

    again = CLASSES[task][2].from_pretrained(tmp_path / "mixture")
    assert {name.split(".")[0] for name, p in again.named_parameters() if p.requires_grad} == {"gate"}
    assert not any(module.training for module in again.modules())
    with torch.no_grad():
        assert torch.equal(mixture(**batch).logits, again(**batch).logits)
    assert "other weights" not in caplog.text
    trained = CLASSES[task][0].from_pretrained(copies[1])
    trained.classifier.bias.data[0] += 1
    trained.save_pretrained(copies[1])
    CLASSES[task][2].from_pretrained(tmp_path / "mixture")
    (warning,) = [record.getMessage() for record in caplog.records if "other weights" in record.getMessage()]
    assert warning.startswith("expert image has other weights than when the gate was trained")

    wanted = [f"x-{label}" for label in (LABELS if task == "entities" else RELATIONS)]
    saved = json.loads((copies[1] / "config.json").read_text())
    saved["id2label"] = dict(enumerate(wanted))
    (copies[1] / "config.json").write_text(json.dumps(saved))
    with pytest.raises(ValueError, match="the label sets of experts text and image differ"):
        CLASSES[task][2].from_pretrained(tmp_path / "mixture")
    shutil.rmtree(copies[1])
    with pytest.raises(FileNotFoundError, match=f"expert image is not at {copies[1]}"):
        CLASSES[task][2].from_pretrained(tmp_path / "mixture")
    with pytest.raises(ValueError, match="train_experts needs copy_experts"):
        CLASSES[task][1].from_experts(folders[task], copy_experts=False, train_experts=True)


def test_errors_of_one_sentence(folders, build, tmp_path):
    entities, relations = folders["entities"], folders["relations"]
    make = MoReMixtureForTokenClassification.from_experts
    with pytest.raises(ValueError, match="is a MoReForRelationExtraction, this mixture takes MoReForTokenClass"):
        make([entities[0], relations[1]])
    with pytest.raises(FileNotFoundError, match="expert nowhere is not at"):
        make([entities[0], tmp_path / "nowhere"])
    with pytest.raises(ValueError, match="1 names .* for 2 experts"):
        MoReMixtureProcessor([None, None], ["a"])
    with pytest.raises(ValueError, match="1 names .* for 2 experts"):
        make(entities, ["a"])
    with pytest.raises(ValueError, match="must differ: a, a"):
        make(entities, ["a", "a"])
    with pytest.raises(ValueError, match="'../a' can't name an expert"):
        make(entities, ["../a", "b"])
    with pytest.raises(ValueError, match='its gate is "post"'):
        MoReMixtureForRelationExtraction.from_experts(relations, gate="word")
    with pytest.raises(ValueError, match="at least one expert"):
        make([])
    for bad in ({"gate": "span"}, {"decoding": "beam"}, {"image_dropout": 1.0}, {"load_balancing": -1.0},
                {"id2label": {0: "O"}}):  # fmt: skip
        with pytest.raises(ValueError):
            make(entities, **bad)
    mixture, _, batch = build()
    with pytest.raises(ValueError, match="inputs for 1 experts, the mixture has 2"):
        mixture(experts=batch["experts"][:1], text_only=batch["text_only"])
    with pytest.raises(ValueError, match="expert image reads other words than text"):
        shorter = {**batch["experts"][1], "word_mask": batch["experts"][1]["word_mask"][:, :-1]}
        mixture(**{**batch, "experts": [batch["experts"][0], shorter]})
    with pytest.raises(ValueError, match="experts .* or expert_logits"):
        mixture(text_only=batch["text_only"])
    with pytest.raises(ValueError, match="text_only .* or text_features"):
        mixture(experts=batch["experts"])
    logits, features = torch.zeros(4, 2, 30, len(LABELS)), torch.zeros(4, 32)
    with pytest.raises(ValueError, match="word_mask is needed"):
        mixture(expert_logits=logits, text_features=features)
    with pytest.raises(ValueError, match="hold 1 experts, not 2"):
        mixture(expert_logits=logits[:, :1], text_features=features, word_mask=batch["word_mask"])
    with pytest.raises(ValueError, match="do not fit a gate per post"):
        mixture(expert_logits=logits, text_features=features[:, None], word_mask=batch["word_mask"])


@pytest.mark.parametrize("task", TASKS)
def test_resized_embeddings_are_saved_and_loaded(task, folders, build, tmp_path):
    """One by itself, as their vocabularies differ; all where they are alike; none that is only referred to."""
    mixture, _, batch = build(task)
    sizes = [expert.encoder.get_input_embeddings().num_embeddings for expert in mixture.experts]
    with pytest.raises(ValueError, match=f"vocabularies hold {sizes[0]}, {sizes[1]} tokens: resize each by itself"):
        mixture.resize_token_embeddings(900)
    mixture.experts[1].resize_token_embeddings(900)
    mixture.save_pretrained(tmp_path / "one")
    again = CLASSES[task][2].from_pretrained(tmp_path / "one")
    assert [saved["encoder_config"]["vocab_size"] for saved in again.config.experts] == [sizes[0], 900]
    with torch.no_grad():
        assert torch.equal(mixture(**batch).logits, again(**batch).logits)

    alike = CLASSES[task][1].from_experts([folders[task][0]] * 2, NAMES)
    assert alike.resize_token_embeddings(700).num_embeddings == 700
    alike.save_pretrained(tmp_path / "all")
    again = CLASSES[task][2].from_pretrained(tmp_path / "all")
    assert [one.encoder.get_input_embeddings().num_embeddings for one in again.experts] == [700, 700]
    again.experts[0].save_pretrained(tmp_path / "expert")
    CLASSES[task][0].from_pretrained(tmp_path / "expert")

    referring = CLASSES[task][1].from_experts(folders[task], NAMES, copy_experts=False)
    referring.save_pretrained(tmp_path / "referring")
    referring.experts[0].resize_token_embeddings(900)
    with pytest.raises(ValueError, match="the embeddings of expert text were resized, but a mixture that only refers"):
        referring.save_pretrained(tmp_path / "referring")


def test_from_a_config_alone_and_in_half_precision(folders, build, tmp_path):
    mixture, _, batch = build()
    fresh = MoReMixtureForTokenClassification(mixture.config)
    assert fresh.experts[0].classifier.weight.isfinite().all()
    assert not torch.equal(fresh.experts[0].classifier.weight, mixture.experts[0].classifier.weight)
    mixture.save_pretrained(tmp_path)
    half = AutoModelForTokenClassification.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation="eager")
    precise = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert precise == {name for name, _ in half.named_parameters() if name.startswith("gate.") or ".crf." in name}
    assert half.experts[0].encoder.config._attn_implementation == "eager"
    with torch.no_grad():
        output, exact = half(**batch), mixture(**batch)
    assert output.loss.dtype == torch.float32
    assert torch.allclose(output.expert_weights.sum(-1), torch.ones(()), atol=1e-6)
    assert output.loss.item() == pytest.approx(exact.loss.item(), rel=0.1)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        assert mixture(**batch).expert_weights.dtype == torch.float32


def test_processor_reads_one_post_or_several_from_words_or_text(folders, build):
    _, processor, _ = build()
    one = processor(WORDS[0], [ENTRIES, OTHERS])
    several = processor([WORDS[0]], [[ENTRIES], [OTHERS]])
    text = processor(text=" ".join(WORDS[0]), knowledge=[ENTRIES, OTHERS])
    for inputs in (several, text):
        for a, b in zip([*one["experts"], one["text_only"]], [*inputs["experts"], inputs["text_only"]], strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    for index, (own, entries) in enumerate(zip(processor.processors, (ENTRIES, OTHERS), strict=True)):
        alone = own(WORDS[0], entries)
        assert all(torch.equal(alone[key], one["experts"][index][key]) for key in alone)
    alone = processor.processors[0](WORDS[0])
    assert all(torch.equal(alone[key], one["text_only"][key]) for key in alone)
    without = processor(WORDS[0])
    assert torch.equal(without["experts"][0]["input_ids"], one["text_only"]["input_ids"])
    moved = one.to("meta")
    assert moved["experts"][1]["input_ids"].is_meta and moved["text_only"]["word_mask"].is_meta
    with pytest.raises(ValueError, match="knowledge for 1 experts, there are text, image"):
        processor(WORDS[0], [ENTRIES])
    with pytest.raises(ValueError, match="only b of the experts a, b have relation markers"):
        MoReMixtureProcessor(
            [processor.processors[0], MoReProcessor.from_pretrained(folders["relations"][0])], ["a", "b"]
        )


def test_the_gate_of_relations_reads_the_words_without_markers(build):
    _, processor, batch = build("relations")
    assert batch["experts"][0]["word_mask"].shape == (len(WORDS), 2)
    assert batch["text_only"]["word_mask"].sum(1).tolist() == [len(words) for words in WORDS]
    markers = processor.processors[0].tokenizer.convert_tokens_to_ids(["<E>", "<O>"])
    assert not torch.isin(batch["text_only"]["input_ids"], torch.tensor(markers)).any()


@pytest.mark.parametrize("kind", ["mixture", "expert"])
def test_a_processor_that_was_loaded_once_loads_without_network(kind, hub, folders, tmp_path):
    """By itself: with a configuration beside it transformers has less to ask for."""
    push = """
import sys
from modeling_more import MoReMixtureProcessor, MoReProcessor
both = [MoReProcessor.from_pretrained(folder) for folder in sys.argv[2:]]
(both[0] if sys.argv[1] == "expert" else MoReMixtureProcessor(both, ["text", "image"])).push_to_hub("someone/it")
"""
    load = """
import modeling_more
from transformers import AutoProcessor
print(len(AutoProcessor.from_pretrained("someone/it")([["Ada", "in", "Lindau"]])))
"""
    download = "from huggingface_hub import snapshot_download; snapshot_download('someone/it')"
    home = {"HF_HOME": str(tmp_path / "downloaded")}
    offline = {"HF_HUB_OFFLINE": "1"}
    before: list[str] = []
    for number, (code, env) in enumerate([
        (push, {}), (load, {}), (load, offline), (download, home), (load, home | offline)
    ]):  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-c", code, kind, *folders["entities"]],
            env={**os.environ, **hub.env, "OMP_NUM_THREADS": "1", **env},
            cwd=Path(__file__).resolve().parents[2], capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, f"step {number}: {done.stderr[-3000:]}"
        asked, before = hub.requests[len(before) :], list(hub.requests)
        assert not [path for path in asked if re.search(r"experts/.*/config\.json", path)]
        assert not asked or env.get("HF_HUB_OFFLINE") is None


def test_processor_and_references_through_the_hub(hub, folders, tmp_path):
    code = """
import sys
import torch
from transformers import AutoModelForTokenClassification, AutoProcessor
from modeling_more import MoReForTokenClassification, MoReMixtureForTokenClassification, MoReMixtureProcessor
from modeling_more import MoReProcessor
folders, out = sys.argv[1:3], sys.argv[3]
for name, folder in zip(("text", "image"), folders):
    MoReForTokenClassification.from_pretrained(folder).push_to_hub(f"someone/{name}")
processor = MoReMixtureProcessor([MoReProcessor.from_pretrained(folder) for folder in folders], ["text", "image"])
processor.push_to_hub("someone/mixture")
mixture = MoReMixtureForTokenClassification.from_experts(["someone/text", "someone/image"], copy_experts=False)
mixture.push_to_hub("someone/mixture")
again = AutoModelForTokenClassification.from_pretrained("someone/mixture")
assert again.config.expert_sources == ["someone/text", "someone/image"]
read = AutoProcessor.from_pretrained("someone/mixture")
assert type(read) is MoReMixtureProcessor and [one.max_length for one in read.processors] == [24, 400]
batch = [one([["Ada", "in", "Lindau"]]) for one in (processor, read)]
with torch.no_grad():
    assert torch.equal(mixture(**batch[0]).logits, again(**batch[1]).logits)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, *folders["entities"], str(tmp_path)],
        env={**os.environ, **hub.env, "OMP_NUM_THREADS": "1"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    stored = set(hub.files("someone/mixture", "model"))
    assert {"config.json", "model.safetensors", "processor_config.json"} <= stored
    assert {f"experts/{name}/processor_config.json" for name in NAMES} <= stored


def test_config_takes_its_labels_from_the_experts():
    expert = {"encoder_config": {"model_type": "bert"}, "id2label": dict(enumerate(LABELS))}
    config = MoReMixtureConfig(experts=[expert, json.loads(json.dumps(expert))])
    assert config.id2label == dict(enumerate(LABELS)) and config.label2id[LABELS[2]] == 2
    assert config.expert_names == ["expert-0", "expert-1"] and config.num_labels == len(LABELS)
    with pytest.raises(ValueError, match="expert-1 has the labels of expert-0 in another order"):
        MoReMixtureConfig(experts=[expert, {**expert, "id2label": dict(enumerate(LABELS[::-1]))}])
