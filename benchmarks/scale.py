"""What a row of knowledge costs in bytes, memory and time, and from that the plan for a whole Wikipedia.

python benchmarks/scale.py --data_dir ../shared/data
python benchmarks/scale.py --plan     measures nothing: writes the table of docs/scale.md from the saved figures
"""

import argparse
import io
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from _common import RESULTS_DIR, ROOT, PeakMemory, write_result
from modeling_more.markdown import markdown_table

PAGE = ROOT / "docs" / "scale.md"
BEGIN, END = "<!-- plan: written by benchmarks/scale.py -->", "<!-- end of plan -->"
SENTENCES, IMAGES = 200_000_000, 6_500_000  # of the English Wikipedia, roughly
DIMENSION = 512  # of CLIP ViT-B/32
FACTORIES = ("Flat", "SQ8", "HNSW32,SQ8", "IVF256,PQ64")

Row = dict[str, Any]


# ---------------------------------------------------------------- measured


def measured(run: Callable[..., Any], *arguments: Any, **options: Any) -> tuple[Any, float, float]:
    """The result, the seconds, and the anonymous memory on top of what was there before, in bytes."""
    with PeakMemory() as memory:
        start = time.perf_counter()
        result = run(*arguments, **options)
        seconds = time.perf_counter() - start
    return result, seconds, (memory.peak - memory.before) * 2**20


def row(
    step: str, rows: int, seconds: float, size: float = 0, memory: float = 0, query: float = 0, of: str = ""
) -> Row:
    """Figures of one step; `query`: seconds of one query over these rows in one thread."""
    return {
        "step": step,
        "rows": rows,
        "rows/s": round(rows / seconds, 1),
        "bytes a row on disk": round(size / rows, 1) if size else "",
        "bytes a row in memory": round(memory / rows, 1) if memory else "",
        "ms a query": round(query * 1e3, 3) if query else "",
        "of": of,
    }


def size_of(folder: Path, pattern: str = "*") -> int:
    return sum(file.stat().st_size for file in folder.rglob(pattern) if file.is_file())


def tables(data_dir: Path) -> list[Row]:
    """The corpus tables of the real texts, and what is published of them."""
    from retrieval import real_files

    from modeling_more.knowledge import KnowledgeCorpus

    with tempfile.TemporaryDirectory() as scratch:
        built, seconds, memory = measured(KnowledgeCorpus.from_files, real_files(data_dir), scratch)
        info = built.info
        characters = sum(map(len, built.paragraphs["value"])) / info.sentences
        of = f"sentences: {info.sentences / info.paragraphs:.1f} a paragraph, {characters:.0f} characters each"
        rows = [row("corpus tables", info.sentences, seconds, size_of(built.folder, "*.arrow"), memory, of=of)]
        folder = Path(scratch) / "saved"
        _, seconds, _ = measured(built.save_pretrained, folder, index=False)
        published = size_of(folder, "*.parquet")
    return [*rows, row("corpus as Parquet", info.sentences, seconds, published, of="sentences")]


def text(corpus: Any, name: str, queries: list[str]) -> Row:
    """Index of the sentences, and the search over it; the first queries only compile and warm."""
    from modeling_more.knowledge import BM25Retriever

    with tempfile.TemporaryDirectory() as scratch:
        retriever, seconds, memory = measured(BM25Retriever.from_corpus, corpus, Path(scratch) / "index")
        postings = len(retriever.index.scores["data"]) / len(corpus)
        size = size_of(retriever.index_dir)
        retriever.search(queries[:20])
        _, searching, _ = measured(retriever.search, queries)
    of = f"sentences: {postings:.1f} postings each"
    return row(f"BM25 index, {name}", len(corpus), seconds, size, memory, searching / len(queries), of)


def embeddings(images: int = 48) -> Row:
    """CLIP ViT-B/32 in its real size with random weights, on JPEG files of 300 x 225 pixels."""
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    from modeling_more.knowledge import ImageEncoder

    torch.set_num_threads(1)
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
    _, seconds, _ = measured(encoder.embed, files)
    return row("CLIP ViT-B/32 on a core", images, seconds, of="images embedded")


def vectors(count: int = 20_000, queries: int = 100) -> list[Row]:
    """FAISS indices of random unit vectors."""
    import faiss

    faiss.omp_set_num_threads(1)
    data = np.random.default_rng(0).standard_normal((count, DIMENSION), dtype=np.float32)
    data /= np.linalg.norm(data, axis=1, keepdims=True)
    rows = []
    for factory in FACTORIES:
        index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
        _, training, _ = measured(index.train, data)
        _, adding, _ = measured(index.add, data)
        size = len(faiss.serialize_index(index))
        _, searching, _ = measured(index.search, data[:queries], 10)
        of = f"vectors of {DIMENSION} numbers"
        rows.append(row(f"FAISS {factory}", count, training + adding, size, size, searching / queries, of))
    return rows


def measure(data_dir: Path, sentences: int) -> list[Row]:
    from retrieval import posts, real_files, recombined

    from modeling_more.knowledge import load_knowledge

    queries = [" ".join(tokens) for tokens in posts(data_dir, ("test",))["tokens"]]
    return [
        *tables(data_dir),
        text(load_knowledge(real_files(data_dir)), "real texts", queries),
        text(recombined(data_dir, sentences), "recombined texts", queries),
        embeddings(),
        *vectors(),
    ]


# ---------------------------------------------------------------- computed


def amount(size: float) -> str:
    for unit, length in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= length:
            return f"{size / length:.3g} {unit}"
    return f"{size:.0f} bytes"


def duration(seconds: float) -> str:
    for unit, length, least in (("days", 86400, 172800), ("h", 3600, 7200), ("min", 60, 120), ("s", 1, 1)):
        if seconds >= least:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds * 1e3:.3g} ms"


def plan(results_dir: Path = RESULTS_DIR) -> list[Row]:
    """Every step for the whole Wikipedia: the measured figures of a row times the rows; a query, as it passes over
    all rows, grows with them."""
    scale = json.loads((results_dir / "scale.json").read_text(encoding="utf-8"))["rows"]
    lite = json.loads((results_dir / "milvus.json").read_text(encoding="utf-8"))["rows"][0]
    rows = []
    for found in scale:
        count = SENTENCES if found["of"].startswith("sentences") else IMAGES
        step, faiss = found["step"], found["step"].startswith("FAISS")
        # of HNSW and IVF a query reads a part of the rows that does not grow like this; IVF's time is that of training
        grows = found["ms a query"] and not step.startswith(("FAISS HNSW", "FAISS IVF"))
        query = found["ms a query"] / 1e3 * count / found["rows"] if grows else 0
        made = 0 if step.startswith("FAISS IVF") else count / found["rows/s"]
        size = found["bytes a row on disk"] or 0
        # of a small step the memory is mostly what the libraries take once
        memory = found["bytes a row in memory"] if faiss or found["rows"] >= 100_000 else 0
        rows.append(
            {
                "step": found["step"],
                "rows": f"{count / 1e6:g} million",
                "disk": amount(size * count) if size else "",
                "memory while made": amount(memory * count) if memory else "",
                "made by one core in": duration(made) if made else "",
                "a query on one core": duration(query) if query else "",
            }
        )
    load = {
        "step": "milvus-lite, the texts",
        "rows": f"{SENTENCES / 1e6:g} million",
        "disk": amount((lite["disk bytes a row"] + lite["disk bytes a value"] * _values_a_row(lite)) * SENTENCES),
        "memory while made": "",
        "made by one core in": duration(SENTENCES * (1 + _values_a_row(lite)) / lite["load rows/s"]),
        "a query on one core": duration(SENTENCES / lite["rows"] / lite["queries/s"]),
    }
    return [*rows, load]


def _values_a_row(lite: Row) -> float:
    return lite["values"] / lite["rows"]


def with_plan(page: str, rows: list[Row]) -> str:
    """The page with its table replaced; ValueError where the two lines around it are not there."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{PAGE.name} lacks the lines {BEGIN} and {END}.")
    return f"{before}{BEGIN}\n{markdown_table(rows)}\n{END}{after}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sentences", type=int, default=250_000, help="size of the recombined corpus")
    parser.add_argument("--plan", action="store_true", help="only write the table of docs/scale.md")
    args = parser.parse_args()
    if not args.plan:
        rows = measure(args.data_dir, args.sentences)
        write_result(
            "scale",
            "What a row of knowledge costs",
            rows,
            note="fb15k_descriptions, codex_wiki and factbook_countries, and sentences made of halves of theirs. "
            "Memory is the highest anonymous memory of the step above that before it, read every 20 ms (of FAISS the "
            "size of the index); of a small step it is mostly what the libraries take once. Everything on one core "
            "beside other work, so times are upper bounds. docs/scale.md computes from these figures.",
        )
        for found in rows:
            print(found)
    PAGE.write_text(with_plan(PAGE.read_text(encoding="utf-8"), plan()), encoding="utf-8")


if __name__ == "__main__":
    main()
