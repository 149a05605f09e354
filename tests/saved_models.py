"""Train the tiny models of the tests of pipelines and page: experts by text and image, their mixture, relations."""

import shutil
from pathlib import Path

from PIL import Image

import ner_runs
import re_runs
import run_ner
import run_re
from image_knowledge import write_corpus


def train_models(root: Path, encoder: str, tower: str) -> dict[str, str]:
    """Return the folders of the trained models, and the files that they were trained with, by name."""
    posts = ner_runs.posts(33)
    corpus = write_corpus(root / "pictures")
    pictures = sorted(path for path in corpus.parent.rglob("*") if path.suffix in (".png", ".jpg"))
    images = root / "images"
    images.mkdir()
    for number, post in enumerate(posts):
        post["image_id"] = f"{number}.png"
        Image.open(pictures[number % len(pictures)]).convert("RGB").save(images / f"{number}.png")
    files = {name: str(root / name) for name in ("text", "image", "mixture", "relations")}
    files |= {"cache": str(root / "cache"), "encoder": encoder, "images": str(images)}
    for name, rows in (("train", posts[:18]), ("dev", posts[18:24]), ("test", posts[24:])):
        rows = [{"id": p["id"], "tokens": p["tokens"], "ner_tags": p["tags"], "image_id": p["image_id"]} for p in rows]
        files[name] = str(ner_runs.write_jsonl(root / f"{name}.jsonl", rows))
    files["wiki"] = str(ner_runs.write_jsonl(root / "wiki.jsonl", ner_runs.KNOWLEDGE))
    files["pictures"] = str(corpus)
    # a tower of nobody else's, which the model must carry along
    files["tower"] = str(shutil.copytree(tower, root / "private tower"))
    more = {
        "text": ["--knowledge", files["wiki"], "--top_k", "2"],
        "image": ["--knowledge", files["pictures"], "--top_k", "2", "--image_dir", files["images"],
                  "--image_model", files["tower"]],
    }  # fmt: skip
    for name, given in more.items():
        run = {**files, "out": files[name]}
        given += ["--holdout_fraction", "0.4", "--num_train_epochs", "6"]
        run_ner.main(ner_runs.options(run, files["encoder"], *given, retrieval=name))
    mixed = ["--train_file", files["train"], "--validation_file", files["dev"], "--test_file", files["test"]]
    mixed += [
        "--retrieval",
        "moe",
        "--gate_inputs",
        "text",
        "image",
        "--experts",
        files["text"],
        files["image"],
        "--image_dir",
        files["images"],
    ]
    mixed += ["--gate_epochs", "1", "--cache_dir", files["cache"], "--use_cpu", "--output_dir", files["mixture"]]
    run_ner.main(mixed)
    related = {**re_runs.write_files(root), "out": files["relations"], "cache": files["cache"]}
    given = ["--knowledge", files["wiki"], "--top_k", "1", *ner_runs.QUICK]
    run_re.main(re_runs.options(related, files["encoder"], *given, retrieval="text"))
    return files
