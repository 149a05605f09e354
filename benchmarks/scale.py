"""What a row of knowledge costs: bytes, memory and time of tables, indices and embeddings, for docs/scale.md.

python benchmarks/scale.py --data_dir ../shared/data
"""

import argparse
import io
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch
from PIL import Image
from retrieval import anonymous_mb, posts, real_files, recombined
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from _common import ROOT, write_result
from modeling_more.knowledge import BM25Retriever, ImageEncoder, KnowledgeCorpus

DIMENSION = 512  # of CLIP ViT-B/32
FACTORIES = ("Flat", "SQ8", "HNSW32,SQ8", "IVF256,PQ64")

Row = dict[str, Any]


def measured(run: Callable[[], Any]) -> tuple[Any, float, float]:
    """The result, the seconds, and the anonymous memory on top of what was there before, in MB."""
    before, highest, done = anonymous_mb(), 0.0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.02):
            highest = max(highest, anonymous_mb())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = run()
    finally:
        seconds = time.perf_counter() - start
        done.set()
        watcher.join()
    return result, seconds, max(highest - before, 0)


def row(step: str, rows: int, seconds: float, size: float, memory: float | str) -> Row:
    """Figures of one step: rows a second, bytes on disk a row, bytes of memory a row."""
    return {
        "step": step,
        "rows": rows,
        "rows/s": round(rows / seconds, 1 if rows / seconds < 100 else None),
        "bytes a row on disk": round(size / rows, 1) if size else "",
        "bytes a row in memory": round(memory * 2**20 / rows) if not isinstance(memory, str) else memory,
    }


def size_of(folder: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def text(corpus: KnowledgeCorpus, name: str, queries: list[str]) -> list[Row]:
    """Index of the sentences, and the search over it in one thread; the first queries only compile and warm."""
    with tempfile.TemporaryDirectory() as scratch:
        build = lambda: BM25Retriever.from_corpus(corpus, Path(scratch) / "index")  # noqa: E731
        retriever, seconds, memory = measured(build)
        size = size_of(retriever.index_dir)
        postings = len(retriever.index.scores["data"]) / len(corpus)
        rows = [row(f"BM25 index, {name}: sentences of {postings:.1f} words", len(corpus), seconds, size, memory)]
        retriever.search(queries[:20])
        _, seconds, _ = measured(lambda: retriever.search(queries))
        million = seconds / len(queries) / len(corpus) * 1e9
        return [*rows, row(f"BM25 search, {name}: {million:.1f} ms a million sentences", len(queries), seconds, 0, "")]


def tables(data_dir: Path) -> tuple[KnowledgeCorpus, list[Row]]:
    """The corpus tables of the real texts, and what is published of them."""
    with tempfile.TemporaryDirectory() as scratch:
        built, seconds, memory = measured(lambda: KnowledgeCorpus.from_files(real_files(data_dir), scratch))
        size = size_of(built.folder, "*.arrow")
        info = built.info
        share = f"{info.sentences / info.paragraphs:.1f} a paragraph, {info.sentences / info.articles:.1f} an article"
        rows = [row(f"corpus tables: sentences, {share}", info.sentences, seconds, size, memory)]
        characters = sum(map(len, built.paragraphs["value"]))
        rows[0]["step"] += f", {characters / info.sentences:.0f} characters each"
        folder = Path(scratch) / "saved"
        _, seconds, memory = measured(lambda: built.save_pretrained(folder, index=False))
        rows.append(row("corpus as Parquet: sentences", info.sentences, seconds, size_of(folder, "*.parquet"), memory))
    return KnowledgeCorpus.from_files(real_files(data_dir)), rows


def embeddings(images: int = 48) -> list[Row]:
    """CLIP ViT-B/32 in its real size with random weights, on JPEG files of 300 x 225 pixels; one thread."""
    with tempfile.TemporaryDirectory() as folder:
        CLIPVisionModelWithProjection(CLIPVisionConfig(projection_dim=DIMENSION)).save_pretrained(folder)
        CLIPImageProcessorPil().save_pretrained(folder)
        encoder = ImageEncoder(folder, device="cpu", dtype=torch.float32, batch_size=16)
    files = []
    for seed in range(images):
        pixels = np.random.default_rng(seed).integers(0, 256, (15, 20, 3)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(pixels).resize((300, 225), Image.Resampling.BICUBIC).save(stream, "JPEG", quality=90)
        files.append(stream.getvalue())
    _, seconds, _ = measured(lambda: encoder.embed(files))
    return [row("images embedded by CLIP ViT-B/32 on one core", images, seconds, 0, "")]


def vectors(count: int = 20_000, queries: int = 100) -> list[Row]:
    """FAISS indices of random unit vectors, one thread."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    data = rng.standard_normal((count, DIMENSION), dtype=np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    rows = []
    for factory in FACTORIES:
        index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)

        def build(index: Any = index) -> None:
            index.train(data)
            index.add(data)

        _, seconds, _ = measured(build)
        size = len(faiss.serialize_index(index))
        _, searching, _ = measured(lambda index=index: index.search(data[:queries], 10))
        step = f"FAISS {factory}, {DIMENSION} dimensions: vectors; a query {searching / queries * 1e3:.2f} ms"
        rows.append(row(step, count, seconds, size, size / 2**20))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sentences", type=int, default=250_000, help="size of the recombined corpus")
    args = parser.parse_args()
    torch.set_num_threads(1)
    queries = [" ".join(tokens) for tokens in posts(args.data_dir, ("test",))["tokens"]]
    corpus, rows = tables(args.data_dir)
    rows += text(corpus, "real texts", queries)
    rows += text(recombined(args.data_dir, args.sentences), "recombined halves", queries)
    rows += embeddings() + vectors()
    write_result(
        "scale",
        "What a row of knowledge costs",
        rows,
        note="fb15k_descriptions, codex_wiki and factbook_countries, and sentences made of halves of theirs. Memory "
        "is the highest anonymous memory of the step above that before it, read every 20 ms; of a small step it is "
        "mostly what the libraries take once. Everything on one core beside other work, so times are upper bounds. "
        "docs/scale.md computes from these figures.",
    )
    for found in rows:
        print(found)


if __name__ == "__main__":
    main()
