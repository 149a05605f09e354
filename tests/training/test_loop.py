"""What the options of the training loop do to the weights, and whose weights come back."""

import pytest
from accelerate import Accelerator
from transformers import AutoModelForTokenClassification

import run_ner
from modeling_more import MoReForTokenClassification, MoReProcessor
from modeling_more.encoding import encode_posts
from modeling_more.tagging import bioes_labels
from modeling_more.training.arguments import TrainingArguments
from modeling_more.training.loop import train
from ner_runs import options, posts, read, read_lines, write_jsonl


@pytest.fixture
def weights_of(files, tiny_encoder, tmp_path):
    """`weights_of(*options)`: those of a model after one epoch of one batch."""

    def run(*more):
        once = ["--num_train_epochs", "1", "--max_train_samples", "4", "--weight_decay", "0", *more]
        run_ner.main(options(files, tiny_encoder("bert"), *once, "--overwrite_output_dir"))
        return AutoModelForTokenClassification.from_pretrained(files["out"]).state_dict()

    return run


def moved(one, other):
    """Names of the parameters that differ, and by how much at most."""
    gaps = {name: float((value - other[name]).abs().max()) for name, value in one.items()}
    return {name: gap for name, gap in gaps.items() if gap}


def test_rates_of_the_crf_and_of_the_rest(weights_of):
    start = weights_of("--learning_rate", "0", "--crf_learning_rate", "0")
    crf_alone = moved(start, weights_of("--learning_rate", "0", "--crf_learning_rate", "0.01"))
    assert crf_alone and all(name.startswith("crf.") for name in crf_alone)
    assert max(crf_alone.values()) == pytest.approx(0.01, rel=0.01)  # the first step of Adam is its rate
    rest = moved(start, weights_of("--learning_rate", "0.001", "--crf_learning_rate", "0"))
    assert "classifier.weight" in rest and not [name for name in rest if name.startswith("crf.")]
    # of a warm-up over the whole run the first step has rate 0
    assert not moved(start, weights_of("--learning_rate", "0.001", "--warmup_ratio", "1"))
    # gradients far below Adam's epsilon hardly move anything
    clipped = moved(start, weights_of("--learning_rate", "0.001", "--max_grad_norm", "1e-12"))
    assert max(clipped.values()) < 1e-5 < 5e-4 < max(rest.values())


def test_the_best_epoch_comes_back(tiny_encoder, tmp_path):
    processor = MoReProcessor.from_encoder_pretrained(tiny_encoder("bert"), max_length=64)
    labels = bioes_labels(["PER", "LOC"])
    model = MoReForTokenClassification.from_encoder_pretrained(tiny_encoder("bert"), id2label=dict(enumerate(labels)))
    rows = [{**post, "ner_tags": post["tags"]} for post in posts(8)]
    encoded = encode_posts(rows, processor, model.config.label2id, truncate=True)
    scores, seen = iter([40.0, 70.0, 60.0]), []

    def evaluate(candidate):
        seen.append({name: value.clone() for name, value in candidate.state_dict().items()})
        return next(scores)

    arguments = TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, learning_rate=1e-3, use_cpu=True
    )
    best, result = train(Accelerator(cpu=True), model, processor, encoded, evaluate, arguments)
    assert (result.best_epoch, result.best_score) == (2, 70.0) and len(seen) == 3
    assert not moved(best.state_dict(), seen[1]) and moved(best.state_dict(), seen[2])


def test_posts_longer_than_max_length(files, tiny_encoder, tmp_path):
    """In training they are cut, which is counted; dev and test read them in windows, to the last word."""
    long = [{**row, "tokens": row["tokens"] + ["today"] * 60, "tags": row["tags"] + ["O"] * 60} for row in posts(6)]
    files["train"] = str(write_jsonl(tmp_path / "long.jsonl", long))
    files["test"] = str(write_jsonl(tmp_path / "long_test.jsonl", long[:3]))
    run_ner.main(options(files, tiny_encoder("bert"), "--max_length", "32"))
    words = sum(len(row["tokens"]) for row in long)
    cut = read(files, "all_results.json")["train_cut_words"]
    assert 6 * 30 < cut < words - 6 * 10
    for row, post in zip(read_lines(files, "predictions/test.jsonl"), long, strict=False):
        assert len(row["tags"]) == len(post["tokens"]) == len(row["gold"])
