"""What the tests of run_ner.py share: invented posts and knowledge, the options of a quick run, its files."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

QUICK = ("--num_train_epochs", "1")
ROOT = Path(__file__).resolve().parents[1]
PEOPLE = ["Ada Lovelace", "Rivera", "Charles Babbage", "Oslo Olsen", "Ada", "Lake Lindau"]
PLACES = ["Lindau", "Oslo", "London", "Lake Constance", "Bavaria", "Germany"]
KNOWLEDGE = [
    {"id": str(index), "title": name, "text": f"{name} is a {kind} .\n\nAnother paragraph about {name} and more ."}
    for kind, names in (("person", PEOPLE), ("place", PLACES))
    for index, name in enumerate(names)
]


def posts(number: int, offset: int = 0) -> list[dict]:
    rows = []
    for i in range(offset, offset + number):
        person, place = PEOPLE[i % len(PEOPLE)].split(), PLACES[(i // 2) % len(PLACES)].split()
        tokens = [*person, "met", "in", *place, *["today"] * (i % 5), "!"]
        tags = ["B-PER", *["I-PER"] * (len(person) - 1), "O", "O", "B-LOC", *["I-LOC"] * (len(place) - 1)]
        rows.append({"id": f"post-{i}", "tokens": tokens, "tags": tags + ["O"] * (len(tokens) - len(tags))})
    return rows


def write_conll(path: Path, rows: list[dict], knowledge: bool = False) -> Path:
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write("".join(f"{t}\t{tag}\n" for t, tag in zip(row["tokens"], row["tags"], strict=True)))
            if knowledge:
                file.write("<EOS>\tX\n" + "".join(f"{word}\tX\n" for word in "Lindau is a place .".split()))
            file.write("\n")
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def options(files, encoder, *more, retrieval="none"):
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--retrieval", retrieval, "--model_name_or_path", encoder, "--num_train_epochs", "2",
        "--per_device_train_batch_size", "4", "--learning_rate", "1e-3", "--crf_learning_rate", "5e-2",
        "--max_length", "96", "--cache_dir", files["cache"], "--output_dir", files["out"], "--use_cpu", *more,
    ]  # fmt: skip


def run_script(arguments, *, launch=None, env=None, **kwargs):
    """Run run_ner.py: by accelerate, where `launch` is a list of its options."""
    command = [sys.executable] if launch is None else [sys.executable, "-m", "accelerate.commands.launch", *launch]
    return subprocess.run(
        [*command, str(ROOT / "run_ner.py"), *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=600,
        **kwargs,
    )


def read(files, name):
    return json.loads((Path(files["out"]) / name).read_text())


def read_lines(files, name):
    return [json.loads(line) for line in (Path(files["out"]) / name).read_text().splitlines()]


def publish_folder(folder: Path, splits: Mapping[str, Any]) -> str:
    """A folder as `load_dataset` reads it, of one configuration."""
    (folder / "none").mkdir(parents=True)
    for split, rows in splits.items():
        rows.to_parquet(folder / "none" / f"{split}.parquet")
    files = "".join(f"  - {{split: {split}, path: none/{split}.parquet}}\n" for split in splits)
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: none\n  data_files:\n{files}---\n")
    return str(folder)


def contents(folder):
    """The files below a folder; of a manifest only what vouches for others, since it also names what scorings add."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}
    return {
        name: json.loads(content)["files"] if name.endswith("manifest.json") else content
        for name, content in found.items()
    }


def training(files, out, *more):
    return options({**files, "out": str(out)}, files["encoder"], *QUICK, *more)


def told(capsys, arguments, main=None):
    """The one sentence in which a run is refused."""
    import run_ner

    with pytest.raises(SystemExit) as stopped:
        (main or run_ner.main)(arguments)
    message = str(stopped.value.code) if not isinstance(stopped.value.code, int) else capsys.readouterr().err
    assert "error: " in message and "Traceback" not in message and "\n" not in message.strip()
    return message


# without it the threads of the process group may still run when the interpreter ends, which then aborts
END_OF_GROUP = "import torch.distributed as group\nif group.is_initialized():\n    group.destroy_process_group()\n"


def launch_two(script: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run a script in two processes on the CPU, as `accelerate launch` does."""
    launch = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--rdzv_backend", "c10d"]
    return subprocess.run(
        [sys.executable, *launch, "--rdzv_endpoint", "127.0.0.1:0", str(script), *map(str, arguments)],
        env={**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=600,
    )


def run_in_two(code: str, folder: Path, *arguments: object) -> None:
    """Write code into a folder and run it in two processes, which must end well."""
    folder.mkdir(exist_ok=True)
    (folder / "two.py").write_text(code + END_OF_GROUP)
    done = launch_two(folder / "two.py", *arguments)
    assert done.returncode == 0, done.stderr[-5000:]


def train_experts(folder, tiny_encoder):
    """Two experts of the entity task that held a third of the training posts out: text and none, two encoders."""
    import run_ner

    files = {
        "train": str(write_jsonl(folder / "train.jsonl", posts(48))),
        "dev": str(write_conll(folder / "dev.conll", posts(8, 50))),
        "test": str(write_conll(folder / "test.conll", posts(9, 70))),
        "knowledge": str(write_jsonl(folder / "wiki.jsonl", KNOWLEDGE)),
        "cache": str(folder / "cache"),
    }
    for name, kind in (("none", "bert"), ("text", "xlm-roberta")):
        files["out"] = files[name] = str(folder / name)
        extra = ["--knowledge", files["knowledge"], "--top_k", "1"] if name == "text" else []
        extra += ["--holdout_fraction", "0.33", "--num_train_epochs", "6", "--max_length", "64"]
        run_ner.main(options(files, tiny_encoder(kind), *extra, retrieval=name))
    return files
