"""What the tests of run_re.py share: invented pairs with knowledge that tells their relation, quick options."""

import json
from pathlib import Path

from ner_runs import PEOPLE, PLACES

RELATIONS = ("None", "/per/loc/place_of_birth", "/per/loc/place_of_residence")
TEXTS = ("nothing of it", "born born born", "lives lives lives")


def pairs(number: int, offset: int = 0) -> list[dict]:
    """Rows {id, tokens, head, tail, relation, knowledge_text}; neither names nor their order tell the relation."""
    rows = []
    for i in range(offset, offset + number):
        person, place = PEOPLE[i % len(PEOPLE)].split(), PLACES[(i // 2) % len(PLACES)].split()
        first, second = (place, person) if i % 2 == 0 else (person, place)
        tokens = [*first, "and", *second, *["again"] * (i % 4)]
        spans = [[0, len(first)], [len(first) + 1, len(first) + 1 + len(second)]]
        head, tail = reversed(spans) if i % 2 == 0 else spans
        kind = (i // 12 + i // 2 + i * i) % len(RELATIONS)
        rows.append(
            {"id": f"pair-{i}", "tokens": tokens, "head": head, "tail": tail, "relation": RELATIONS[kind],
             "knowledge_text": [{"title": " ".join(person), "text": TEXTS[kind], "score": 1.0}]}
        )  # fmt: skip
    return rows


def mnre_line(row: dict, image: str = "picture.jpg") -> str:
    """A row as MNRE writes it: one Python literal."""
    spans = {
        short: {"name": " ".join(row["tokens"][slice(*row[name])]), "pos": row[name]}
        for short, name in (("h", "head"), ("t", "tail"))
    }
    return repr({"token": row["tokens"], **spans, "img_id": image, "relation": row["relation"]})


def marked_lines(row: dict) -> str:
    """A row in the authors' form: markers as words, the relation beside the first one, knowledge labelled X."""
    marks = sorted(
        [(row["head"][0], 1, -row["head"][1], "<E>"), (row["head"][1], 0, -row["head"][0], "</E>"),
         (row["tail"][0], 1, -row["tail"][1], "<O>"), (row["tail"][1], 0, -row["tail"][0], "</O>")]
    )  # fmt: skip
    lines, label = [], row["relation"]
    for position in range(len(row["tokens"]) + 1):
        for mark in [mark for mark in marks if mark[0] == position]:
            lines.append(f"{mark[3]}\t{label}")
            label = "O"
        if position < len(row["tokens"]):
            lines.append(f"{row['tokens'][position]}\tO")
    entries = row.get("knowledge_text") or []
    knowledge = ["<EOS>", *(word for entry in entries for word in entry["text"].split())] if entries else []
    return "\n".join(lines + [f"{word}\tX" for word in knowledge]) + "\n"


def write_files(folder: Path) -> dict[str, str]:
    """Files of the three splits, a folder for the run's output and a cache."""
    for name, rows in (("train", pairs(36)), ("dev", pairs(12, 40)), ("test", pairs(15, 60))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return {name: str(folder / f"{name}.jsonl") for name in ("train", "dev", "test")} | {
        "out": str(folder / "out"),
        "cache": str(folder / "cache"),
    }


def options(files: dict[str, str], encoder: str, *more: str, retrieval: str = "none") -> list[str]:
    return [
        "--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"],
        "--retrieval", retrieval, "--model_name_or_path", encoder, "--num_train_epochs", "2",
        "--per_device_train_batch_size", "6", "--learning_rate", "1e-3", "--max_length", "96",
        "--cache_dir", files["cache"], "--output_dir", files["out"], "--use_cpu", *more,
    ]  # fmt: skip
