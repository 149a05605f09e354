"""Watch whole runs by the audit: what they run, unpickle, start, connect to.

python tests/soak/audits.py

A line of JSON for each run tells {run, reasons, found}: how many events each reason holds for, and those without one.
"""

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent), str(ROOT)]

import audit  # noqa: E402

import ner_runs  # noqa: E402
from hub_server import LocalHub, local_hub  # noqa: E402

METHODS = "a data class of ours is given its methods, which Python writes as text"


def load() -> None:
    """Load model and corpus from the Hub, search and predict."""
    from transformers import AutoModelForTokenClassification, AutoProcessor

    from modeling_more import predict
    from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus

    model = AutoModelForTokenClassification.from_pretrained("org/model")
    processor = AutoProcessor.from_pretrained("org/model")
    retriever = BM25Retriever.from_corpus(KnowledgeCorpus.from_pretrained("org/knowledge"))
    (found,) = retriever.search(["Lindau"], 3)
    print(predict(model, processor, [{"text": "Rivera met in Lindau", "knowledge_text": found}]))


def push(file: str) -> None:
    """Build a corpus and push it to the Hub."""
    from modeling_more.knowledge import KnowledgeCorpus

    KnowledgeCorpus.from_files(file).push_to_hub("org/knowledge", license="cc0-1.0")


def commands(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yield name and command of each run: the demo set and a training on it, what goes on, what is loaded again."""
    from conftest import save_tiny_encoder

    files = {name: str(folder / name) for name in ("train.jsonl", "dev.jsonl", "test.jsonl", "wiki.jsonl", "encoder")}
    for name, rows in (("train", ner_runs.posts(8)), ("dev", ner_runs.posts(4, 30)), ("test", ner_runs.posts(4, 50))):
        ner_runs.write_jsonl(Path(files[f"{name}.jsonl"]), rows)
    ner_runs.write_jsonl(Path(files["wiki.jsonl"]), ner_runs.KNOWLEDGE)
    save_tiny_encoder("bert", Path(files["encoder"]))

    def train(source: list[str], out: str, *more: str) -> list[str]:
        return [
            sys.executable, str(ROOT / "run_ner.py"), *source, "--retrieval", "text", "--top_k", "2",
            "--model_name_or_path", files["encoder"], "--per_device_train_batch_size", "4", "--max_length", "48",
            "--output_dir", str(folder / out), "--cache_dir", str(folder / "cache"), "--use_cpu", *more,
        ]  # fmt: skip

    demo = [sys.executable, str(ROOT / "dataset_scripts" / "demo.py"), "--seed", "1", "--retrieval", "text"]
    yield "demo set", [*demo, "--output_dir", str(folder / "demo"), "--knowledge_dir", str(folder / "demo-knowledge")]
    few = ["--max_train_samples", "8", "--max_eval_samples", "8", "--num_train_epochs", "1"]
    yield "demo run", train(["--dataset", str(folder / "demo")], "trained", *few)
    source = ["--train_file", files["train.jsonl"], "--validation_file", files["dev.jsonl"]]
    source += ["--test_file", files["test.jsonl"], "--knowledge", files["wiki.jsonl"]]
    pushed = ["--push_to_hub", "--hub_model_id", "org/model"]
    yield "training and push", train(source, "run", "--num_train_epochs", "1", *pushed)
    again = ["--num_train_epochs", "2", "--resume_from_checkpoint", "latest"]
    yield "resume", train(source, "run", *again)
    yield "push of a corpus", [sys.executable, __file__, "--push", files["wiki.jsonl"]]
    yield "load from the Hub", [sys.executable, __file__, "--load"]
    given = ["--model_name_or_path", "org/model", "--do_predict", "--predict_file", files["test.jsonl"], "--use_cpu"]
    given += ["--retrieval", "text", "--knowledge", "org/knowledge", "--output_dir", str(folder / "predicted")]
    yield "prediction from the Hub", [sys.executable, str(ROOT / "run_ner.py"), *given]


def audited(folder: Path, hub: LocalHub, runs: tuple[str, ...] = ()) -> Iterator[dict[str, Any]]:
    """Watch the runs (default: all) and yield {run, reasons, found} of each.

    Raises:
        RuntimeError: a run did not end well.
    """
    address = hub.endpoint.removeprefix("http://")
    environment: Mapping[str, str] = {
        **hub.env, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "MORE_CACHE": str(folder / "more"),
    }  # fmt: skip
    for name, command in commands(folder):
        if runs and name not in runs:
            continue
        watched = audit.watched(command, env=environment, hosts=(address,), cwd=folder)
        if watched.done.returncode != 0:
            raise RuntimeError(f"{name} ended with {watched.done.returncode}: {watched.done.stderr[-2000:]}")
        # a script's own data classes are no part of an import
        found = [event for event in watched.found if not "".join(event["stack"][:1]).startswith("dataclasses.py")]
        methods = len(watched.found) - len(found)
        yield {"run": name, "reasons": {**watched.reasons, **({METHODS: methods} if methods else {})}, "found": found}


def main() -> None:
    if sys.argv[1:] == ["--load"]:
        return load()
    if sys.argv[1:2] == ["--push"]:
        return push(sys.argv[2])
    with tempfile.TemporaryDirectory() as home, local_hub(Path(home) / "hf") as hub:
        for row in audited(Path(home), hub):
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
