"""How long a row may be: the smaller of what the tokenizer and the encoder read, wherever a processor comes from."""

import json
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForTokenClassification, AutoProcessor, AutoTokenizer

import run_ner
from conftest import tiny_config, tiny_tokenizer
from modeling_more import (
    MoReForTokenClassification,
    MoReMixtureForTokenClassification,
    MoReMixtureProcessor,
    MoReProcessor,
    predict,
)
from modeling_more.encoding import encode_posts
from modeling_more.positions import position_limit, sketched
from modeling_more.tagging import bioes_labels
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.loop import train
from modeling_more.training.setup import make_accelerator
from ner_runs import options, posts, read_lines, write_jsonl

LABELS = dict(enumerate(bioes_labels(["PER", "LOC"])))
#: of each kind: changes to its configuration, and how many sub-tokens it then reads
SHORT = {
    "bert": ({"max_position_embeddings": 40}, 40),
    "roberta": ({"max_position_embeddings": 42}, 40),  # its padding id is 1: positions count from 2
    "xlm-roberta": ({"max_position_embeddings": 42}, 40),
    "deberta-v2": ({"max_position_embeddings": 40, "position_biased_input": True}, 40),
}
RELATIVE = {"deberta-v2": {"max_position_embeddings": 40}, "modernbert": {"max_position_embeddings": 40}}


def save_encoder(folder: Path, kind: str, changes: dict, tokenizer_limit: int = 10**30) -> str:
    tokenizer = tiny_tokenizer(kind)
    tokenizer.model_max_length = tokenizer_limit
    config = tiny_config(kind, len(tokenizer), tokenizer)
    for name, value in changes.items():
        setattr(config, name, value)
    torch.manual_seed(0)
    AutoModel.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def reads(encoder, length):
    with torch.no_grad():
        return encoder(input_ids=torch.full((1, length), 7)).last_hidden_state.shape[1] == length


@pytest.mark.parametrize("kind", SHORT)
def test_the_smaller_limit_counts(kind, tmp_path, caplog):
    changes, limit = SHORT[kind]
    folder = save_encoder(tmp_path / "long", kind, changes)
    processor = MoReProcessor.from_encoder_pretrained(folder, max_length=100)
    assert processor.max_length == limit
    assert re.search(f"max_length is lowered from 100 to {limit}: the encoder .* reads no more", caplog.text)
    assert MoReProcessor.from_encoder_pretrained(folder, max_length=limit).max_length == limit
    assert len([1 for record in caplog.records if "lowered" in record.message]) == 1
    encoder = AutoModel.from_pretrained(folder).eval()
    assert position_limit(encoder) == position_limit(sketched(encoder.config)) == limit and reads(encoder, limit)
    with pytest.raises((IndexError, RuntimeError)):  # what is to be spared
        reads(encoder, limit + 1)
    # as long as the encoder reads, and no longer
    model = MoReForTokenClassification.from_encoder_pretrained(folder, id2label=LABELS)
    inputs = processor(words=["Ada", *["today"] * 200])
    assert limit - 4 < inputs["input_ids"].shape[1] <= limit and model(**inputs).logits.shape[1] == 201

    shorter = save_encoder(tmp_path / "short", kind, changes, tokenizer_limit=limit - 8)
    caplog.clear()
    assert MoReProcessor.from_encoder_pretrained(shorter).max_length == limit - 8
    assert f"lowered from 512 to {limit - 8}: the tokenizer reads no more" in caplog.text
    assert MoReProcessor(AutoTokenizer.from_pretrained(shorter), max_length=64).max_length == limit - 8


@pytest.mark.parametrize("kind", RELATIVE)
def test_relative_positions_have_no_limit(kind, tmp_path, caplog):
    folder = save_encoder(tmp_path, kind, RELATIVE[kind])
    processor = MoReProcessor.from_encoder_pretrained(folder, max_length=200)
    assert processor.max_length == 200 and "lowered" not in caplog.text
    model = MoReForTokenClassification.from_encoder_pretrained(folder, id2label=LABELS)
    inputs = processor(words=["today"] * 500)
    assert inputs["input_ids"].shape[1] > 190 and model(**inputs).logits.shape[1] == 500


def test_t5_has_no_limit_and_nothing_is_drawn():
    before = torch.get_rng_state()
    assert position_limit(sketched(AutoConfig.for_model("t5", n_positions=8, d_model=8, num_layers=1))) is None
    assert position_limit(sketched(AutoConfig.for_model("bert", num_hidden_layers=1))) == 512
    assert torch.equal(before, torch.get_rng_state())  # the head's initialisation stays as it was


@pytest.fixture
def expert(tmp_path):
    """A saved expert of 40 positions whose processor says 512, as it was saved before."""
    return save_expert(tmp_path / "expert", save_encoder(tmp_path / "encoder", "roberta", SHORT["roberta"][0]))


def save_expert(folder: Path, encoder: str) -> str:
    MoReForTokenClassification.from_encoder_pretrained(encoder, id2label=LABELS).save_pretrained(folder)
    MoReProcessor.from_encoder_pretrained(encoder).save_pretrained(folder)
    promise(folder)
    return str(folder)


def promise(folder: Path) -> None:
    path = folder / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"max_length": 512}))


def test_a_saved_processor_reads_what_its_model_does(expert, tmp_path, caplog):
    assert AutoProcessor.from_pretrained(expert).max_length == 40
    assert "lowered from 512 to 40" in caplog.text
    mixture = MoReMixtureForTokenClassification.from_experts([expert, expert], ["a", "b"])
    mixture.save_pretrained(tmp_path / "mixture")
    processor = MoReMixtureProcessor([AutoProcessor.from_pretrained(expert) for _ in range(2)], ["a", "b"])
    processor.save_pretrained(tmp_path / "mixture")
    promise(tmp_path / "mixture/experts/b")
    again = AutoProcessor.from_pretrained(tmp_path / "mixture")
    assert [one.max_length for one in again.processors] == [40, 40]
    for one in again.processors:
        one.max_length = 512
    (found,) = predict(mixture.eval(), again, [{"tokens": ["today"] * 300}])
    assert len(found["tokens"]) == 300 and [one.max_length for one in again.processors] == [40, 40]


def test_a_processor_that_promises_too_much(expert, tmp_path):
    """It is lowered by `predict`, and refused in a sentence, before the first step, where it can't be."""
    model = AutoModelForTokenClassification.from_pretrained(expert)
    processor = MoReProcessor(AutoTokenizer.from_pretrained(expert), max_length=512)
    rows = [{"tokens": ["today"] * length, "ner_tags": ["O"] * length} for length in (3, 300)]
    with pytest.raises(ValueError, match=r"a row has \d+ sub-tokens, the encoder reads at most 40"):
        model(**processor(words=rows[1]["tokens"]))
    arguments = TrainingArguments(output_dir=str(tmp_path / "out"), use_cpu=True)
    encoded = encode_posts(rows, processor, model.config.label2id, truncate=True)
    with pytest.raises(ValueError, match=r"post 1 has \d+ sub-tokens, the encoder reads at most 40"):
        train(make_accelerator(arguments), model, processor, encoded, lambda _: 1.0, arguments)
    assert len(predict(model.eval(), processor, rows)) == 2 and processor.max_length == 40


def test_the_script_trains_and_predicts(files, tmp_path, caplog):
    encoder = save_encoder(tmp_path / "encoder", "roberta", SHORT["roberta"][0])
    long = [{**row, "tokens": row["tokens"] + ["today"] * 60, "tags": row["tags"] + ["O"] * 60} for row in posts(6)]
    files["train"] = str(write_jsonl(tmp_path / "long.jsonl", long))
    files["test"] = str(write_jsonl(tmp_path / "long_test.jsonl", long[:3]))
    run_ner.main(options(files, encoder, "--max_length", "300", "--num_train_epochs", "1"))
    assert "max_length is lowered from 300 to 40" in caplog.text
    promise(Path(files["out"]))
    again = ["--model_name_or_path", files["out"], "--do_predict", "--predict_file", files["test"], "--use_cpu"]
    with pytest.raises(SystemExit, match="not the file that was saved here .* delete manifest.json if you changed it"):
        run_ner.main([*again, "--output_dir", files["out"] + "2"])
    Path(files["out"], "manifest.json").unlink()
    run_ner.main([*again, "--output_dir", files["out"] + "2"])
    files["out"] += "2"
    assert [len(row["tokens"]) for row in read_lines(files, "predictions/predict.jsonl")] == [
        len(row["tokens"]) for row in long[:3]
    ]
