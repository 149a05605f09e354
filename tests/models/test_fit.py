"""Where model and processor meet their sizes are compared: an id without an embedding is told, not looked up."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoModel, AutoTokenizer

import run_ner
import run_re
from mixture_experts import NAMES, save_experts
from modeling_more import (
    MoReForRelationExtraction,
    MoReForTokenClassification,
    MoReMixtureForTokenClassification,
    MoReMixtureProcessor,
    MoReProcessor,
    predict,
)
from modeling_more.encoding import encode_posts
from modeling_more.knowledge import ImageEncoder
from modeling_more.knowledge.dense import SentenceEncoder
from modeling_more.processing_more import MARKERS
from modeling_more.training import optimization
from ner_runs import options, told
from pictures import noise
from re_runs import options as re_options
from re_runs import write_files

CLASSES = {"entities": MoReForTokenClassification, "relations": MoReForRelationExtraction}
POST = {"tokens": ["Ada", "in", "Oslo"], "head": [0, 1], "tail": [2, 3]}


@pytest.fixture(scope="module")
def experts(tmp_path_factory, tiny_encoder):
    return save_experts(tmp_path_factory.mktemp("experts"), tiny_encoder)


@pytest.fixture
def copied(experts, tmp_path):
    """`copied(task, change)` -> a copy of a saved expert of BERT whose files were changed since."""

    def copy(task, change):
        folder = Path(shutil.copytree(experts[task][0], tmp_path / f"{task}-{change.__name__}"))
        change(folder)
        return folder

    return copy


def edit(file, change):
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def added(folder):
    """Add words to the tokenizer and leave the model as it is."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["Ada", "Oslo"])
    tokenizer.save_pretrained(folder)


def high(folder):
    """Give a few words ids far beyond: as many tokens as before, another largest id."""

    def change(content):
        vocabulary = content["model"]["vocab"]
        vocabulary |= {word: id_ + 100_000 for word, id_ in list(vocabulary.items())[-5:]}

    edit(folder / "tokenizer.json", change)


def another_padding(folder):
    edit(folder / "tokenizer_config.json", lambda content: content.update(pad_token="<another one>"))


def rows_of(folder):
    config = json.loads((folder / "config.json").read_text())
    return config.get("encoder_config", config)["vocab_size"]


@pytest.mark.parametrize("task", CLASSES)
@pytest.mark.parametrize("change", [added, high, another_padding])
def test_a_tokenizer_that_was_changed_after_saving(change, task, copied):
    folder = copied(task, change)
    told = f"ids up to [0-9]+, .*{folder} has {rows_of(folder)} embeddings: .* saved with the model, or .*resize_token"
    with pytest.raises(ValueError, match=told):
        MoReProcessor.from_pretrained(folder)


@pytest.mark.parametrize("task", CLASSES)
def test_model_and_processor_of_different_folders(task, experts, copied):
    (bert, _), other = experts[task], copied(task, added)
    (other / "config.json").unlink()
    model, processor = CLASSES[task].from_pretrained(bert), MoReProcessor.from_pretrained(other)
    with pytest.raises(ValueError, match=f"ids up to [0-9]+, the encoder has {rows_of(Path(bert))} embeddings"):
        predict(model, processor, [POST])
    model.resize_token_embeddings(len(processor.tokenizer))  # as the sentence says
    assert predict(model, processor, [POST])
    processor.tokenizer.add_tokens(["!!!"])  # after it was compared
    with pytest.raises(ValueError, match="has [0-9]+ embeddings"):
        predict(model, processor, [POST])


def test_markers_count_whatever_the_tokenizer_calls_them(tiny_encoder):
    """Special tokens with which no row is built have no embedding in some models; markers must have one."""
    encoder = AutoModel.from_pretrained(tiny_encoder("bert"))
    words = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"))
    words.tokenizer.add_special_tokens({"mask_token": "<another mask>"})
    words.fit(encoder)
    pairs = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), markers=True)
    for named in ([], list(MARKERS)):
        pairs.tokenizer.add_special_tokens({"extra_special_tokens": named})
        with pytest.raises(ValueError, match=f"ids up to [0-9]+, the encoder has {encoder.config.vocab_size} emb"):
            pairs.fit(encoder)


def test_encoded_posts_of_another_tokenizer_are_refused_before_training(experts, copied):
    folder = copied("entities", added)
    (folder / "config.json").unlink()
    model = MoReForTokenClassification.from_pretrained(experts["entities"][0])
    encoded = encode_posts([{"tokens": ["met"]}, {"tokens": ["Ada"]}], MoReProcessor.from_pretrained(folder))
    with pytest.raises(ValueError, match="post 1 has the sub-token id [0-9]+, the encoder has [0-9]+ embeddings"):
        optimization.check_rows(model, encoded)
    optimization.check_rows(model, encoded[:1])


def test_each_expert_of_a_mixture_is_compared(experts, copied, tmp_path):
    changed = copied("entities", added)
    sources = [str(changed), experts["entities"][1]]
    mixture = MoReMixtureForTokenClassification.from_experts(sources, NAMES)
    mixture.save_pretrained(tmp_path / "mixture")
    for name, source in zip(NAMES, [experts["entities"][0], experts["entities"][1]], strict=True):
        MoReProcessor.from_pretrained(source).save_pretrained(tmp_path / "mixture" / "experts" / name)
    alone = MoReMixtureProcessor([MoReProcessor.from_pretrained(one) for one in experts["entities"]], NAMES)
    alone.save_pretrained(tmp_path / "mixture")
    assert predict(mixture, MoReMixtureProcessor.from_pretrained(tmp_path / "mixture"), [POST])
    added(tmp_path / "mixture" / "experts" / "image")
    with pytest.raises(ValueError, match="the encoder of expert image has [0-9]+ embeddings"):
        MoReMixtureProcessor.from_pretrained(tmp_path / "mixture")
    alone.processors[1].tokenizer.add_tokens(["Ada"])
    with pytest.raises(ValueError, match="has [0-9]+ embeddings"):
        predict(mixture, alone, [POST])


@pytest.mark.parametrize("script", ["run_ner", "run_re"])
def test_scripts_end_in_one_sentence(script, copied, files, tiny_encoder, tmp_path, capsys):
    """A foreign encoder to train, for relations too, whose markers alone may go beyond; an expert to go on with."""
    main = {"run_ner": run_ner.main, "run_re": run_re.main}[script]
    task, given = ("entities", files) if script == "run_ner" else ("relations", write_files(tmp_path))
    foreign = Path(shutil.copytree(tiny_encoder("bert"), tmp_path / "foreign"))
    added(foreign)
    make = options if script == "run_ner" else re_options
    for model in (foreign, copied(task, added)):
        assert f"{model} has {rows_of(model)} embeddings" in told(capsys, make(given, str(model)), main)
    expert = str(copied(task, high))
    predicting = ["--model_name_or_path", expert, "--do_predict", "--predict_file", given["test"], "--use_cpu"]
    assert "embeddings" in told(capsys, predicting, main)
    mixing = ["--retrieval", "moe", "--gate_data", "train", "--experts", expert, expert]
    assert "embeddings" in told(capsys, [*make(given, "x"), *mixing], main)


def no_padding(content):
    content["encoder_config"]["pad_token_id"] = None


def padding_beyond(content):
    content["encoder_config"]["pad_token_id"] = 100_000


@pytest.mark.parametrize("change", [no_padding, padding_beyond])
def test_an_encoder_whose_padding_is_none(change, tiny_encoder, tmp_path):
    folder = tmp_path / "roberta"
    save_experts(tmp_path, lambda _: tiny_encoder("roberta"))
    shutil.copytree(tmp_path / "entities" / "text", folder)
    edit(folder / "config.json", change)
    with pytest.raises(ValueError, match=rf"{folder} can't be .*(pad_token_id is None|Padding_idx must be)"):
        MoReProcessor.from_pretrained(folder)


def test_the_encoder_of_sentences_is_compared_with_its_tokenizer(tiny_encoder, tmp_path):
    short = Path(shutil.copytree(tiny_encoder("bert"), tmp_path / "short"))
    edit(short / "tokenizer_config.json", lambda content: content.update(model_max_length=10**6))
    encoder = SentenceEncoder(short, device="cpu", max_length=2000)
    assert encoder.max_length == 512
    encoder.embed(["Lindau " * 1000])
    foreign = Path(shutil.copytree(tiny_encoder("bert"), tmp_path / "foreign"))
    added(foreign)
    with pytest.raises(OSError, match=f"ids up to [0-9]+, .* has {rows_of(foreign)} embeddings"):
        SentenceEncoder(foreign, device="cpu")


def resized(side):
    def change(content):
        old = content["size"]
        content["size"] = {"shortest_edge": side} if "shortest_edge" in old else {"height": side, "width": side}
        if content.get("crop_size"):
            content["crop_size"] = {"height": side, "width": side}

    return change


def any_shape(content):
    content |= {"size": {"shortest_edge": 32}, "do_center_crop": False}


CASES = {"larger": (resized(64), "64 × 64"), "smaller": (resized(16), "16 × 16"), "any shape": (any_shape, "")}


@pytest.mark.parametrize("tower", ["clip", "clip bare", "siglip", "siglip vision"])
@pytest.mark.parametrize("case", CASES)
def test_a_tower_is_compared_with_its_image_processor(case, tower, towers, tmp_path):
    change, size = CASES[case]
    folder = Path(shutil.copytree(towers[tower], tmp_path / "tower"))
    assert len(ImageEncoder(folder).embed([noise(1), noise(2).resize((90, 40))])) == 2
    edit(folder / "preprocessor_config.json", change)
    with pytest.raises(ValueError, match=f"tower {folder} .* {size}.*32") as error:
        ImageEncoder(folder)
    assert "preprocessor_config.json" in str(error.value) and "\n" not in str(error.value)
