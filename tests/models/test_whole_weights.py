"""Weights that are missing, renamed, of another shape, surplus or no numbers are told: predictions would be random."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from mixture_experts import CLASSES, LABELS, NAMES, TASKS, save_experts
from modeling_more import MoReForTokenClassification
from modeling_more.knowledge.dense import SentenceEncoder


@pytest.fixture(scope="module")
def saved(tmp_path_factory, tiny_encoder):
    """Folders of a saved expert and of a saved mixture of each task."""
    root = tmp_path_factory.mktemp("saved")
    experts = save_experts(root, tiny_encoder)
    folders = {}
    for task in TASKS:
        folders[f"expert of {task}"] = CLASSES[task][0], experts[task][0]
        for copied in (True, False):
            folder = root / f"{task} {copied}"
            CLASSES[task][1].from_experts(experts[task], NAMES, image_dim=4, copy_experts=copied).save_pretrained(
                folder
            )
            folders[f"mixture of {task}, experts {'copied' if copied else 'referred to'}"] = CLASSES[task][1], folder
    return folders


KINDS = [
    f"{what} of {task}{more}"
    for task in TASKS
    for what, more in (("expert", ""), ("mixture", ", experts copied"), ("mixture", ", experts referred to"))
]


def change(source, folder, how):
    """A copy of a saved model with one tensor changed, and the tensor's name."""
    folder.mkdir()
    weights = load_file(f"{source}/model.safetensors")
    (folder / "config.json").write_text(open(f"{source}/config.json").read())
    name = next(one for one in sorted(weights) if "classifier" in one or "gate.output" in one)
    tensor = weights.pop(name)
    if how == "renamed":
        weights[f"{name}_"] = tensor
    elif how == "reshaped":
        weights[name] = torch.zeros(3, 5)
    elif how == "NaN":
        tensor.view(-1)[0] = float("nan")
        weights[name] = tensor
    elif how == "surplus":
        weights |= {name: tensor, "encoder.layer.99.weight": tensor.clone()}
        name = "encoder.layer.99.weight"
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder, name


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_names_the_weights_that_are_not_there(kind, saved, tmp_path):
    model_class, source = saved[kind]
    for how, told in (
        ("dropped", "lacks weights: NAME"),
        ("renamed", "lacks weights: NAME"),
        ("reshaped", r"has in another shape weights: NAME \[3, 5\] instead of \["),
        ("NaN", "holds NaN or infinity in weights: NAME"),
        ("surplus", "holds, though the model of its configuration has no such weights: NAME"),
    ):
        folder, name = change(source, tmp_path / how, how)
        with pytest.raises(ValueError, match=f"{folder} {told.replace('NAME', name)}.*; predictions would be random"):
            model_class.from_pretrained(folder)


def test_a_new_head_has_to_be_asked_for(saved, tmp_path):
    model_class, source = saved["expert of relations"]
    folder, _ = change(source, tmp_path / "head", "reshaped")
    model, report = model_class.from_pretrained(folder, ignore_mismatched_sizes=True, output_loading_info=True)
    assert [key for key, *_ in report["mismatched_keys"]] == ["classifier.bias"]
    assert model.classifier.bias.isfinite().all()


def test_shards(saved, tmp_path):
    """A model in several files loads as in one; a file that is missing, or outside of the folder, is told."""
    model_class, source = saved["expert of entities"]
    model = model_class.from_pretrained(source)
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    shards = sorted((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2
    again = model_class.from_pretrained(tmp_path / "model")
    for name, value in model.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    outside = shards[1].rename(tmp_path / shards[1].name)
    with pytest.raises(ValueError, match=f"model lacks {shards[1].name}, which model.safetensors.index.json names"):
        model_class.from_pretrained(tmp_path / "model")
    index = tmp_path / "model" / "model.safetensors.index.json"
    good = index.read_text()
    for name in (f"../{outside.name}", str(outside)):
        index.write_text(good.replace(outside.name, name))
        with pytest.raises(ValueError, match="leads out of"):
            model_class.from_pretrained(tmp_path / "model")
    outside.rename(shards[1])
    for bad, told in (
        (good[:-20], "index.json is no JSON"),
        ('{"weight_map": {}}', "lacks the entry 'metadata'"),
        ('{"weight_map": [], "metadata": {}}', "'weight_map' is"),
        (good.replace(".safetensors", ".bin"), "names files that are no safetensors"),
        (json.dumps({"metadata": {}, "weight_map": {"a": ["x"]}}), "names files that are no safetensors"),
    ):
        index.write_text(bad)
        with pytest.raises(ValueError, match=told):
            model_class.from_pretrained(tmp_path / "model")
    index.write_text(good)
    shards[0].write_bytes(shards[0].read_bytes()[:-100])
    with pytest.raises(ValueError, match=rf"{shards[0]} can't be loaded .*was it saved or copied whole"):
        model_class.from_pretrained(tmp_path / "model")


def test_encoders(tiny_encoder, tmp_path):
    """A head or a pooler may be missing or surplus, a weight that is used may not."""
    encoder = AutoModel.from_pretrained(tiny_encoder("bert"))
    encoder.save_pretrained(tmp_path / "bert")
    weights = load_file(tmp_path / "bert" / "model.safetensors")
    labels = dict(enumerate(LABELS))

    def write(**changes):
        found = {key: value for key, value in {**weights, **changes}.items() if value is not None}
        save_file(found, tmp_path / "bert" / "model.safetensors", metadata={"format": "pt"})
        return str(tmp_path / "bert")

    poolers = dict.fromkeys(key for key in weights if "pooler" in key)
    loaders = (
        lambda name: MoReForTokenClassification.from_encoder_pretrained(name, id2label=labels),
        lambda name: SentenceEncoder(write_tokenizer(name)),
    )

    def write_tokenizer(name):
        from transformers import AutoTokenizer

        AutoTokenizer.from_pretrained(tiny_encoder("bert")).save_pretrained(name)
        return name

    key = "encoder.layer.1.output.dense.weight"
    nan = weights[key].clone()
    nan[0, 0] = float("inf")
    for load in loaders:
        load(write(**poolers))
        load(write(**{"classifier.weight": torch.ones(2)}))
        for changes, told in (
            ({key: None}, f"lacks weights: {key}"),
            ({key: torch.ones(2, 2)}, rf"in another shape weights: {key} \[2, 2\]"),
            ({key: nan}, f"holds NaN or infinity in weights: {key}"),
        ):
            with pytest.raises((ValueError, FileNotFoundError), match=told):
                load(write(**changes))
