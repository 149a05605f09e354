"""The runs that are killed: what is there before, what they do, and what must be there in the end.

Each knows its folder, which holds all that it reads and writes, so that a second try finds what the first one left.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import ner_runs
import re_runs

_QUICK = ("--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--max_length", "48", "--use_cpu")
#: what tells the time, that a run was continued, or that it found results in the cache
_PASSING = re.compile(
    rb'"(?:seconds|cached)": [\d.]+|\b[\d.,]+ (?:s|seconds|minutes)\b'
    rb"| --(?:resume_from_checkpoint latest|overwrite_output_dir)"
    rb"|^(?:resume_from_checkpoint: latest|overwrite_output_dir: true)\n"
    rb'|"(?:resume_from_checkpoint|overwrite_output_dir)": [^,\n]*',
    re.MULTILINE,
)


_TELLING = (".json", ".jsonl", ".md")
_CHECKED = "checked"  # folder of notes on files that were checked, by their times


class Run(NamedTuple):
    """A run to be killed.

    Attributes:
        prepare: makes what is there before, in a process of its own that nobody kills.
        run: the run, with further options of the command line.
    """

    prepare: Callable[[Path], None]
    run: Callable[[Path, list[str]], Any]


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files below a folder, without what may differ between a broken run and an unbroken one."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith(".lock")]
    files = [path for path in files if path.parent.name != _CHECKED]
    return {path.relative_to(folder).as_posix(): without_passing(path.name, path.read_bytes()) for path in files}


def without_passing(name: str, content: bytes) -> bytes:
    if name == "manifest.json":  # whose digests of the files below tell the time, too
        files = json.loads(content).get("files", {})
        return repr({one: told for one, told in files.items() if not one.endswith(_TELLING)}).encode()
    return _PASSING.sub(b"", content) if name.endswith(_TELLING) else content


def difference(found: Mapping[str, bytes], expected: Mapping[str, bytes]) -> str:
    """Return in what a folder differs from that of an unbroken run, or ""."""
    lacking = sorted(expected.keys() - found.keys())
    strays = sorted(found.keys() - expected.keys())
    other = sorted(name for name in found.keys() & expected.keys() if found[name] != expected[name])
    parts = {"lacks": lacking, "left over": strays, "other content": other}
    return "; ".join(f"{what}: {', '.join(names[:6])}" for what, names in parts.items() if names)


# ---------------------------------------------------------------- experts and mixtures


def _files(folder: Path) -> dict[str, str]:
    return {name: str(folder / name) for name in ("out", "cache", "encoder")} | {
        "train": str(folder / "train.jsonl"), "dev": str(folder / "dev.jsonl"), "test": str(folder / "test.jsonl"),
        "knowledge": str(folder / "wiki.jsonl"),
    }  # fmt: skip


def _prepare_entities(folder: Path) -> None:
    from conftest import save_tiny_encoder

    files = _files(folder)
    for name, rows in (("train", ner_runs.posts(10)), ("dev", ner_runs.posts(4, 30)), ("test", ner_runs.posts(4, 50))):
        ner_runs.write_jsonl(Path(files[name]), rows)
    ner_runs.write_jsonl(Path(files["knowledge"]), ner_runs.KNOWLEDGE)
    save_tiny_encoder("bert", Path(files["encoder"]))


def _entity_options(folder: Path, out: str, *more: str) -> list[str]:
    files = _files(folder)
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--cache_dir", files["cache"], "--output_dir", str(folder / out), "--num_train_epochs", "2", *_QUICK, *more,
    ]  # fmt: skip


def _train_entities(folder: Path, more: list[str]) -> None:
    import run_ner

    options = _entity_options(folder, "out", "--retrieval", "text", "--knowledge", _files(folder)["knowledge"])
    run_ner.main([*options, "--model_name_or_path", str(folder / "encoder"), "--holdout_fraction", "0.3", *more])


def _prepare_relations(folder: Path) -> None:
    from conftest import save_tiny_encoder

    files = _files(folder)
    for name, rows in (("train", re_runs.pairs(10)), ("dev", re_runs.pairs(4, 40)), ("test", re_runs.pairs(4, 60))):
        ner_runs.write_jsonl(Path(files[name]), rows)
    save_tiny_encoder("bert", Path(files["encoder"]))


def _train_relations(folder: Path, more: list[str]) -> None:
    import run_re

    options = _entity_options(folder, "out", "--retrieval", "none")
    run_re.main([*options, "--model_name_or_path", str(folder / "encoder"), *more])


def _prepare_experts(folder: Path) -> None:
    import run_ner

    _prepare_entities(folder)
    for name, seed in (("a", "1"), ("b", "2")):
        options = _entity_options(folder, name, "--retrieval", "none", "--seed", seed, "--holdout_fraction", "0.3")
        run_ner.main([*options, "--model_name_or_path", str(folder / "encoder")])


def _mix(folder: Path, *more: str) -> list[str]:
    experts = ["--retrieval", "moe", "--experts", str(folder / "a"), str(folder / "b"), "--gate_epochs", "2"]
    return _entity_options(folder, "out", *experts, *more)


def _train_gate(folder: Path, more: list[str]) -> None:
    import run_ner

    run_ner.main([*_mix(folder), *more])


def _train_mixture(folder: Path, more: list[str]) -> None:
    import run_ner

    run_ner.main([*_mix(folder, "--train_experts"), *more])


def _predict(folder: Path, more: list[str]) -> None:
    import run_ner

    given = ["--model_name_or_path", str(folder / "a"), "--do_predict", "--predict_file", str(folder / "test.jsonl")]
    run_ner.main([*given, "--output_dir", str(folder / "predicted"), "--use_cpu", *more])


def _score(folder: Path, more: list[str]) -> None:
    import run_ner

    given = ["--model_name_or_path", str(folder / "a"), "--no_do_train", "--test_file", str(folder / "test.jsonl")]
    run_ner.main([*given, "--output_dir", str(folder / "scored"), "--use_cpu", *more])


# ---------------------------------------------------------------- corpora and data sets


def _prepare_corpus(folder: Path) -> None:
    import image_knowledge
    from pictures import save_tiny_tower

    image_knowledge.write_corpus(folder / "k", 5)
    save_tiny_tower(folder / "tower")


def _build_corpus(folder: Path, more: list[str]) -> None:
    from modeling_more.knowledge import BM25Retriever, ImageEncoder, ImageRetriever, KnowledgeCorpus

    corpus = KnowledgeCorpus.from_files(folder / "k" / "k.jsonl", folder / "cache")
    BM25Retriever.from_corpus(corpus)
    ImageRetriever.from_corpus(corpus, ImageEncoder(str(folder / "tower")))
    corpus.save_pretrained(folder / "saved", license="cc0-1.0", date="20260101")


RAW = {
    "train": "IMGID:1\nAda\tB-PER\nwon\tO\n\nIMGID:2\nOslo\tB-LOC\nUnited\tI-LOC\n",
    "valid": "IMGID:3\nAcme\tB-ORG\n", "test": "IMGID:4\nthe\tO\nGames\tB-MISC\n",
}  # fmt: skip


def _prepare_posts(folder: Path) -> None:
    for name, text in RAW.items():
        (folder / "raw").mkdir(exist_ok=True)
        (folder / "raw" / f"{name}.txt").write_text(text)
    ner_runs.write_jsonl(folder / "wiki.jsonl", ner_runs.KNOWLEDGE)


def _publish(folder: Path, more: list[str]) -> None:
    from dataset_scripts._publish import main

    options = ["--data_dir", str(folder / "raw"), "--retrieval", "text", "--knowledge", str(folder / "wiki.jsonl")]
    options += ["--cache_dir", str(folder / "cache"), "--output_dir", str(folder / "published")]
    options += ["--push_to_hub", "org/tweets"]
    if code := main("twitter17", [*options, *more]):
        sys.exit(code)


def _push_model(folder: Path, more: list[str]) -> None:
    import run_ner

    options = _entity_options(folder, "pushed", "--retrieval", "none", "--num_train_epochs", "1", "--push_to_hub")
    run_ner.main([*options, "--model_name_or_path", str(folder / "encoder"), "--hub_model_id", "org/model", *more])


RUNS: dict[str, Run] = {
    "training of entities": Run(_prepare_entities, _train_entities),
    "training of relations": Run(_prepare_relations, _train_relations),
    "gate": Run(_prepare_experts, _train_gate),
    "gate and experts": Run(_prepare_experts, _train_mixture),
    "prediction": Run(_prepare_experts, _predict),
    "scoring": Run(_prepare_experts, _score),
    "corpus": Run(_prepare_corpus, _build_corpus),
    "publisher": Run(_prepare_posts, _publish),
    "push of a model": Run(_prepare_entities, _push_model),
}


def fresh(pristine: Path, work: Path) -> None:
    """Make the folder of a run anew."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(pristine, work)
