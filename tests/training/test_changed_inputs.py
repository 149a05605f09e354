"""A training goes on only with what it has read before: the same posts as the same sub-tokens, the same experts."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import re_runs
import run_ner
import run_re
from mixture_experts import save_expert
from modeling_more import MoReProcessor
from modeling_more.encoding import encode_posts, rows_digest
from modeling_more.files import write_manifest
from ner_runs import KNOWLEDGE, options, posts, told, write_jsonl
from short_trainings import run, scores

ON = ("--resume_from_checkpoint", "latest", "--num_train_epochs", "2")


def edit(file, change):
    content = json.loads(Path(file).read_text())
    change(content)
    Path(file).write_text(json.dumps(content))


def swap_words(content):
    vocabulary = content["model"]["vocab"]
    vocabulary["oslo"], vocabulary["lindau"] = vocabulary["lindau"], vocabulary["oslo"]


@pytest.mark.parametrize("script", ["run_ner", "run_re"])
def test_a_changed_tokenizer_is_told(script, files, tiny_encoder, tmp_path, capsys):
    """The options and the posts are the same, the rows are others."""
    main, given, make = run_ner.main, files, options
    if script == "run_re":
        main, given, make = run_re.main, re_runs.write_files(tmp_path), re_runs.options
    encoder = shutil.copytree(tiny_encoder("bert"), tmp_path / "encoder")
    arguments = make(given, str(encoder), "--num_train_epochs", "1")
    main(arguments)
    main([*arguments, *ON])  # as it was
    before = Path(encoder, "tokenizer.json").read_text()
    edit(Path(encoder, "tokenizer.json"), swap_words)
    on = [*arguments, *ON[:2], "--num_train_epochs", "3"]
    said = told(capsys, on, main)
    assert "is of a run with other sub-tokens of the posts (" in said and "tokenizer or processor has changed" in said
    Path(encoder, "tokenizer.json").write_text(before)
    main(on)


def test_an_expert_that_learns_on_with_other_settings_is_told(files, tiny_encoder, tmp_path, capsys):
    """The processor of a saved expert decides what is read, not the options."""
    expert = save_expert(tmp_path / "expert", "entities", tiny_encoder("bert"))
    wiki = write_jsonl(tmp_path / "k.jsonl", KNOWLEDGE)
    arguments = options(files, expert, "--num_train_epochs", "1", "--knowledge", str(wiki), retrieval="text")
    run_ner.main(arguments)
    edit(Path(expert, "processor_config.json"), lambda content: content.update(knowledge_words=2))
    assert "other sub-tokens of the posts (" in told(capsys, [*arguments, *ON])


def test_the_digest_tells_all_that_is_read_apart(tiny_encoder):
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=64)
    rows = [{**post, "ner_tags": post["tags"], "knowledge_text": KNOWLEDGE[:2]} for post in posts(6)]
    labels = ["O", *(f"{prefix}-{kind}" for kind in ("PER", "LOC") for prefix in "BIES")]
    ids = {label: place for place, label in enumerate(labels)}
    others = {label: place for place, label in enumerate(reversed(labels))}

    def digest(rows=rows, ids=ids, two_views=True, **settings):
        changed = MoReProcessor(processor.tokenizer, **({"max_length": 64} | settings))
        return rows_digest(encode_posts(rows, changed, ids, two_views), encode_posts(rows[:2], changed))

    found = [
        digest(), digest(rows[::-1]), digest(rows[:5]), digest(ids=others), digest(two_views=False), digest(top_k=1),
        digest(knowledge_words=1), digest(max_length=20), digest([{**rows[0], "tokens": rows[0]["tokens"][::-1]}]),
        rows_digest(encode_posts(rows, processor, ids, True), []),
    ]  # fmt: skip
    assert len(set(found)) == len(found) and digest() == found[0]


def test_notebooks_remember_their_rows_too(tiny_encoder, tmp_path, monkeypatch):
    run(tiny_encoder("bert"), tmp_path / "run", scores(1), num_train_epochs=1)
    encode = MoReProcessor.encode
    monkeypatch.setattr(
        MoReProcessor, "encode", lambda self, words, *more: encode(self, [w[:2] for w in words], *more)
    )
    with pytest.raises(ValueError, match="other sub-tokens of the posts"):
        run(tiny_encoder("bert"), tmp_path / "run", scores(1), num_train_epochs=2, resume_from_checkpoint="latest")


def test_experts_whose_weights_changed_are_told(files, tiny_encoder, tmp_path, capsys):
    experts = [
        save_expert(tmp_path / name, "entities", tiny_encoder("bert"), seed=seed, knowledge_column=None)
        for seed, name in enumerate(("one", "two"))
    ]
    arguments = [
        "--train_file", files["train"], "--validation_file", files["dev"], "--retrieval", "moe", "--experts", *experts,
        "--gate_data", "train", "--train_experts", "--num_train_epochs", "1", "--use_cpu", "--cache_dir",
        files["cache"], "--output_dir", files["out"],
    ]  # fmt: skip
    run_ner.main(arguments)
    run_ner.main([*arguments, *ON])
    weights = Path(experts[1], "model.safetensors")
    tensors = load_file(weights)
    tensors["classifier.bias"] += 1
    save_file(tensors, weights)
    said = told(capsys, [*arguments, *ON[:2], "--num_train_epochs", "3"])
    assert "is of a run with other weights of expert none_2 (" in said


def test_a_checkpoint_that_does_not_tell_its_rows_is_of_an_earlier_version(files, tiny_encoder, capsys):
    arguments = options(files, tiny_encoder("bert"), "--num_train_epochs", "1")
    run_ner.main(arguments)
    last = Path(files["out"], "checkpoints", "last")
    (last / "manifest.json").unlink()
    edit(last / "training_state.json", lambda state: state["made_of"].pop("sub-tokens of the posts"))
    write_manifest(last, [path.name for path in last.iterdir()])
    said = told(capsys, [*arguments, *ON])
    assert "is of an earlier version, whose checkpoints don't tell the sub-tokens of the posts" in said
