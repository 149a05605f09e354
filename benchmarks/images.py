"""Image retrieval on 239 distinct flags: what a small tower learns, exact against approximate indices, attach's speed.

python benchmarks/images.py --data_dir FOLDER

FOLDER holds flags.jsonl (file, title, code, text) and the pictures it names. Each flag is distorted as a post might
show it (cut to 80-90 %, turned by up to 10 degrees, blurred, its colours shifted, JPEG of quality 30) and queries the
clean flags.
"""

import argparse
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from PIL import Image, ImageFilter
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from _common import ROOT, write_result

if str(ROOT) not in sys.path:  # run by its path
    sys.path.insert(0, str(ROOT))

from dataset_scripts.demo_tower import make_tower, save_tower, train_tower
from modeling_more.knowledge import (
    ImageEncoder,
    ImageRetriever,
    KnowledgeCorpus,
    attach_image_knowledge,
    open_image,
)
from modeling_more.knowledge.vectors import build_index, load_index, search_rows

SEEDS = (1, 2, 3)
MANY = 30_000  # vectors for the approximate indices


def distinct_flags(folder: Path) -> list[dict[str, str]]:
    """Rows of flags.jsonl as knowledge, of pictures that are equal pixel for pixel only the first."""
    rows: dict[tuple[Any, ...], dict[str, str]] = {}
    for line in (folder / "flags.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        file = (folder / row["file"]).resolve()
        picture = open_image(file)
        made = {"id": row["code"], "title": row["title"], "text": row["text"] or "", "image": str(file)}
        rows.setdefault((picture.size, picture.tobytes()), made)
    return list(rows.values())


def distort(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """What a post shows of a flag."""
    (width, height), share = picture.size, rng.uniform(0.8, 0.9)
    left, top = (rng.uniform(0, (1 - share) * side) for side in (width, height))
    picture = picture.rotate(rng.uniform(-10, 10), Image.Resampling.BILINEAR, fillcolor=(128, 128, 128))
    box = (left, top, left + share * width, top + share * height)
    picture = picture.resize((width, height), Image.Resampling.BILINEAR, box=box)
    picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 1.5)))
    pixels = np.asarray(picture) * rng.uniform(0.85, 1.15, 3) + rng.integers(-20, 21, 3)
    stream = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "JPEG", quality=30)
    return open_image(stream.getvalue())


def pixel_vectors(pictures: Sequence[Image.Image]) -> np.ndarray:
    """16 x 12 pixels without their mean, of length 1."""
    small = [np.asarray(p.resize((16, 12), Image.Resampling.BOX), np.float32).ravel() for p in pictures]
    vectors = np.stack(small) - np.mean(small, axis=1, keepdims=True)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recalls(found: Sequence[Sequence[str]], ids: Sequence[str]) -> tuple[float, float]:
    """R@1 and R@10."""
    first, tenth = (statistics.fmean(i in row[:k] for row, i in zip(found, ids, strict=True)) for k in (1, 10))
    return first, tenth


def overlap(approximate: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact top ten that an approximate index finds."""
    rows = zip(approximate.tolist(), exact.tolist(), strict=True)
    return statistics.fmean(len(set(found) & set(best)) / len(best) for found, best in rows)


def quality(work: Path, flags: list[dict[str, str]], pictures: list[Image.Image]) -> tuple[list[dict[str, Any]], Any]:
    """Rows of the table for both towers and the pixels, and the trained tower's retriever."""
    (work / "flags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flags), encoding="utf-8")
    corpus = KnowledgeCorpus.from_files(work / "flags.jsonl", work / "cache")
    assert corpus.images is not None and len(corpus.images) == len(flags)
    ids = [row["id"] for row in flags]
    queries = {seed: [distort(p, np.random.default_rng((seed, n))) for n, p in enumerate(pictures)] for seed in SEEDS}
    rows = []
    results: dict[str, list[tuple[float, float]]] = {}
    keys = pixel_vectors(pictures)
    for seed in SEEDS:
        best = np.argsort(-(pixel_vectors(queries[seed]) @ keys.T), axis=1, kind="stable")[:, :10]
        results.setdefault("16 x 12 pixels without their mean", []).append(
            recalls([[ids[n] for n in row] for row in best], ids)
        )
    retriever = None
    seconds: list[float] = []
    agree: list[bool] = []
    for kind in ("tiny CLIP, untrained", "tiny CLIP, trained on the clean flags without labels"):
        for seed in SEEDS:
            folder = work / f"{kind}-{seed}"
            if "untrained" in kind:
                save_tower(make_tower(seed), folder)
            else:
                begin = time.process_time()
                train_tower(pictures, folder, seed)
                seconds.append(time.process_time() - begin)
            encoder = ImageEncoder(folder)
            retriever = ImageRetriever.from_corpus(corpus, encoder)
            vectors, clean = encoder.embed(queries[seed]), encoder.embed(pictures)
            found = [[entry["source"] for entry in row] for row in retriever.search_vectors(vectors, 10)]
            scores, exact = search_rows(retriever.table, vectors, 10)
            products = vectors @ clean.T
            brute = -np.sort(-products, axis=1)[:, :10]
            # equal scores up to rounding, of rows that have these scores
            agree.append(
                bool(
                    np.allclose(scores, brute, atol=1e-5)
                    and np.allclose(np.take_along_axis(products, exact, axis=1), brute, atol=1e-5)
                )
            )
            results.setdefault(kind, []).append(recalls(found, ids))
    if not all(agree):
        raise SystemExit("Exact search differs from a brute force in NumPy.")
    for kind, scores_of in results.items():
        first, tenth = zip(*scores_of, strict=True)
        at_ten = f"lowest {min(tenth):.3f}"
        rows += [row(f"R@1, {kind}", statistics.fmean(first), f"lowest {min(first):.3f}")]
        rows += [row(f"R@10, {kind}", statistics.fmean(tenth), at_ten)]
    rows.append(row("CPU-seconds of training a tower", statistics.fmean(seconds), f"highest {max(seconds):.1f}"))
    rows.append(row("exact search and NumPy brute force agree", float(all(agree)), f"{len(agree)} runs, top ten"))
    return rows, retriever


def row(what: str, value: float, more: str) -> dict[str, Any]:
    return {"measured": what, "value": round(value, 3), "more": more}


def approximate(work: Path, retriever: Any) -> list[dict[str, Any]]:
    """Recall of IVF and HNSW over many vectors: the flags' and points scattered around them."""
    keys = retriever.encoder.embed([open_image(image) for image in retriever.corpus.images["image"]])
    rng = np.random.default_rng(0)
    vectors = keys[rng.integers(len(keys), size=MANY)] + rng.normal(0, 0.06, (MANY, keys.shape[1])).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:200] + rng.normal(0, 0.02, (200, keys.shape[1])).astype(np.float32)
    features = Features({"embedding": List(Value("float32"), length=keys.shape[1])})
    table = Dataset.from_dict({"embedding": list(vectors)}, features)
    exact = np.argsort(-(queries @ vectors.T), axis=1)[:, :10]
    rows = []
    for factory in ("Flat", "IVF128,Flat", "IVF128,PQ32", "HNSW32"):
        folder = work / factory
        build_index(table, folder, factory, "index.json", {})
        plain = Dataset.from_dict({"row": range(MANY)})
        parameters, _ = load_index(plain, folder, "index.json", keys.shape[1], work)
        begin = time.perf_counter()
        _, found = search_rows(plain, queries, 10)
        rate = len(queries) / (time.perf_counter() - begin)
        size = (folder / "index.faiss").stat().st_size / MANY
        more = f"{parameters or 'exact'}, {rate:.0f} queries/s, {size:.0f} bytes a vector"
        rows.append(row(f"top ten found by {factory} of {MANY:,} vectors", overlap(found, exact), more))
    return rows


def attach_ratio(work: Path, corpus: Any, tower: Path, posts: int, repeats: int) -> tuple[float, float, float]:
    """Median of posts per second of attach over raw embedding and search, and both medians; alternating."""
    images = work / "posts"
    names = sorted(path.name for path in images.iterdir())[:posts]
    dataset = Dataset.from_dict({"tokens": [["a", "flag", name] for name in names], "image_id": names})
    encoder = ImageEncoder(tower)
    retriever = ImageRetriever.from_corpus(corpus, encoder)
    index: Any = faiss.read_index(str(retriever.index_dir / "index.faiss"))
    rates: tuple[list[float], list[float]] = ([], [])
    for repeat in range(repeats + 1):  # the first one warms up
        begin = time.perf_counter()
        for first in range(0, len(names), 64):
            index.search(encoder.embed([images / name for name in names[first : first + 64]]), 10)
        middle = time.perf_counter()
        attach_image_knowledge(dataset, retriever, image_dir=images, cache_dir=work / f"attach-{tower.name}-{repeat}")
        end = time.perf_counter()
        if repeat:
            rates[0].append(len(names) / (end - middle))
            rates[1].append(len(names) / (middle - begin))
    ratio = statistics.median(ours / raw for ours, raw in zip(*rates, strict=True))
    return ratio, statistics.median(rates[0]), statistics.median(rates[1])


def speed(work: Path, corpus: Any, trained: Path, pictures: list[Image.Image]) -> list[dict[str, Any]]:
    """Attach against raw embedding and raw faiss, with the tiny tower and with one of CLIP ViT-B/32's size."""
    (work / "posts").mkdir()
    for seed in SEEDS:
        for number, picture in enumerate(pictures):
            distorted = distort(picture, np.random.default_rng((seed, number)))
            distorted.save(work / "posts" / f"{seed}-{number:03d}.jpg", quality=90)
    torch.manual_seed(0)
    real = work / "vit-b-32"
    config = CLIPVisionConfig(image_size=224, patch_size=32, projection_dim=512)  # the defaults are ViT-B's
    CLIPVisionModelWithProjection(config).save_pretrained(real)
    CLIPImageProcessorPil().save_pretrained(real)
    small = work / "small.jsonl"
    lines = Path(work / "flags.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    small.write_text("".join(lines[:32]), encoding="utf-8")  # the large tower takes its time
    few = KnowledgeCorpus.from_files(small, work / "cache")
    rows = []
    for name, tower, over, posts, repeats in (
        ("the tiny tower", trained, corpus, 3 * len(pictures), 5),
        ("a tower of CLIP ViT-B/32's size", real, few, 16, 3),
    ):
        ratio, ours, raw = attach_ratio(work, over, tower, posts, repeats)
        more = f"{ours:.1f} against {raw:.1f} posts/s, median of {repeats}, alternating"
        rows.append(row(f"attach ÷ raw embedding and faiss, {name}", ratio, more))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data" / "images")
    folder = parser.parse_args().data_dir
    flags = distinct_flags(folder)
    pictures = [open_image(flag["image"]) for flag in flags]
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        rows, retriever = quality(work, flags, pictures)
        rows += approximate(work, retriever)
        rows += speed(work, retriever.corpus, Path(retriever.encoder.name), pictures)
    note = (
        f"{len(flags)} distinct flags; each is distorted (cut to 80–90 %, turned by up to 10°, blurred, colours "
        "shifted, JPEG of quality 30) and queries the clean ones; means over seeds 1–3 of queries and towers. The "
        "towers see the clean flags only, never the queries. The approximate indices hold points scattered around the "
        "flags' embeddings."
    )
    command = "python benchmarks/images.py --data_dir ../shared/data/images"
    write_result("images", "Retrieval by image", rows, note, command)
    for line in rows:
        print(f"{line['measured']}: {line['value']} ({line['more']})")


if __name__ == "__main__":
    main()
