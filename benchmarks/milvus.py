"""Milvus on a local file beside the embedded engines: the same knowledge for the same posts and flags.

python benchmarks/milvus.py --data_dir ../shared/data
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retrieval import CORPORA, posts

from _common import ROOT, anonymous_mb, write_result
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus
from modeling_more.knowledge.leakage import Entry
from modeling_more.knowledge.milvus import MilvusTextRetriever

TOP_K = 10
DEEP = 200  # places of the exact ranking in which ties with the tenth are looked for
CLOSE = 1e-4  # of the score: float32 sums in another order
MEMTABLE = "MILVUS_LITE_MEMTABLE_MEMORY_LIMIT_BYTES"


def overlap(found: Sequence[Entry], exact: Sequence[Entry]) -> float:
    """Share of the exact top ten that was found; what ties with the tenth may stand in its place."""
    wanted = min(TOP_K, len(exact))
    if not wanted:
        return float(not found)
    tenth = exact[wanted - 1]["score"]
    good = {(entry["source"], entry["text"]) for entry in exact if entry["score"] >= tenth * (1 - CLOSE)}
    return min(wanted, sum((entry["source"], entry["text"]) in good for entry in found[:TOP_K])) / wanted


def size_of(collection: Path) -> int:
    """Bytes of its rows on disk."""
    return sum(file.stat().st_size for file in collection.rglob("*.parquet"))


def text(folder: str, data_dir: Path, number: int) -> dict[str, Any]:
    """Load, search for the first posts of the test split, compare; run in a process of its own."""
    corpus = KnowledgeCorpus(folder)
    queries = [" ".join(tokens) for tokens in posts(data_dir, ("test",))["tokens"][:number]]
    embedded = BM25Retriever.from_corpus(corpus)
    embedded.search(queries[:1], DEEP)  # compiles
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "knowledge.db"
        loaded, retriever = timed(MilvusTextRetriever.from_corpus, corpus, f"milvus:{file}")
        indexed, _ = timed(retriever.search, queries[:1], TOP_K)
        times = [timed(side.search, queries, TOP_K) for side in (embedded, retriever)]
        exact = embedded.search(queries, DEEP)
        shares = [overlap(*pair) for pair in zip(times[1][1], exact, strict=True)]
        (sentences,) = file.rglob("more_sentences")
        (paragraphs,) = file.rglob("more_paragraphs")
        return {
            "corpus": "three text corpora",
            "rows": len(corpus),
            "queries": len(queries),
            "values": corpus.info.paragraphs,
            "segments": len(list(sentences.rglob("data_*.parquet"))),
            "overlap@10": round(sum(shares) / len(shares), 4),
            "lowest": round(min(shares), 2),
            "load rows/s": round((len(corpus) + corpus.info.paragraphs) / loaded),
            "first search s": round(indexed, 1),
            "queries/s": round(len(queries) / times[1][0], 1),
            "embedded queries/s": round(len(queries) / times[0][0], 1),
            "disk bytes a row": round(size_of(sentences) / len(corpus)),
            "disk bytes a value": round(size_of(paragraphs) / corpus.info.paragraphs),
            "anonymous MB": round(anonymous_mb()),
        }


def flags(data_dir: Path) -> dict[str, Any]:
    """The flags, cut to nine tenths and turned by five degrees, against the flags as they are; a random tiny CLIP."""
    import torch
    from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

    from modeling_more.knowledge.image import ImageEncoder, ImageRetriever
    from modeling_more.knowledge.milvus import MilvusImageRetriever
    from modeling_more.knowledge.pictures import open_image

    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        rows = [json.loads(line) for line in open(data_dir / "images" / "flags.jsonl", encoding="utf-8")]
        made = [
            {
                "id": row["code"],
                "title": row["title"],
                "text": row["text"],
                "image": str(data_dir / "images" / row["file"]),
            }
            for row in rows
        ]
        (folder / "flags.jsonl").write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
        corpus = KnowledgeCorpus.from_files(folder / "flags.jsonl", scratch)
        torch.manual_seed(0)
        size: dict[str, Any] = {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
        config = CLIPVisionConfig(**size, projection_dim=512, image_size=64, patch_size=16)
        CLIPVisionModelWithProjection(config).save_pretrained(folder / "tower")
        square = {"height": 64, "width": 64}
        CLIPImageProcessorPil(size=square, crop_size=square).save_pretrained(folder / "tower")
        encoder = ImageEncoder(folder / "tower")
        embedded = ImageRetriever.from_corpus(corpus, encoder)
        loaded, retriever = timed(
            MilvusImageRetriever.from_corpus, corpus, encoder, f"milvus:{folder / 'knowledge.db'}"
        )
        queries = []
        for row in made:
            image = open_image(row["image"]).rotate(5)
            across, down = image.width // 20, image.height // 20
            queries.append(image.crop((across, down, image.width - across, image.height - down)))
        vectors = encoder.embed(queries)
        indexed, _ = timed(retriever.search_vectors, vectors[:1], TOP_K)
        times = [timed(side.search_vectors, vectors, TOP_K) for side in (embedded, retriever)]
        exact = embedded.search_vectors(vectors, DEEP)
        shares = [overlap(*pair) for pair in zip(times[1][1], exact, strict=True)]
        (images,) = (folder / "knowledge.db").rglob("more_images")
        count = corpus.info.images
        return {
            "corpus": "flags",
            "rows": count,
            "queries": len(queries),
            "values": count,
            "segments": len(list(images.rglob("data_*.parquet"))),
            "overlap@10": round(sum(shares) / len(shares), 4),
            "lowest": round(min(shares), 2),
            "load rows/s": round(count / loaded),
            "first search s": round(indexed, 1),
            "queries/s": round(len(queries) / times[1][0], 1),
            "embedded queries/s": round(len(queries) / times[0][0], 1),
            "disk bytes a row": round(size_of(images) / count),
            "disk bytes a value": "",
            "anonymous MB": round(anonymous_mb()),
        }


def timed(run: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run(*arguments)
    return time.perf_counter() - start, result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--posts", type=int, default=200)
    parser.add_argument("--text", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.text:
        print(json.dumps(text(args.text, args.data_dir, args.posts)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        files = [args.data_dir / "knowledge" / f"{name}.jsonl.gz" for name in CORPORA]
        corpus = KnowledgeCorpus.from_files(files, scratch)
        BM25Retriever.from_corpus(corpus)
        for limit in ("", str(6 * 2**20)):  # milvus-lite reads its limit when it is imported
            command = [sys.executable, __file__, "--data_dir", str(args.data_dir), "--posts", str(args.posts)]
            env = {**os.environ, **({MEMTABLE: limit} if limit else {})}
            run = subprocess.run([*command, "--text", str(corpus.folder)], env=env, stdout=subprocess.PIPE, check=True)
            rows.append(json.loads(run.stdout.splitlines()[-1]))
            print(rows[-1], flush=True)
    rows.append(flags(args.data_dir))
    print(rows[-1])
    write_result(
        "milvus",
        "Milvus on a local file beside the embedded engines",
        rows,
        note=f"The first {args.posts} posts of the test split of Twitter-2017, {TOP_K} entries each; "
        f"fb15k_descriptions, codex_wiki and factbook_countries, the key a sentence. Overlap: the share of the "
        "embedded engine's ten that Milvus gives, where an entry whose exact score ties with the tenth counts as one "
        "of the ten. milvus-lite writes a segment at 128 MiB of rows in memory, which these corpora do not reach; "
        "several segments are forced by a lower limit. It counts document frequencies in each segment by itself, "
        "hence the lower overlap; a server counts over the collection. The first search includes indexing, which "
        "milvus-lite does anew in every process. The texts' rows are measured in processes of their own. Flags: a "
        "random CLIP of 512 dimensions, queries cut to nine tenths and turned by five degrees, inner products, exact "
        "search; loading includes embedding.",
    )


if __name__ == "__main__":
    main()
