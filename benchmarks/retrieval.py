"""Text retrieval on real posts: title recall, and the speed of attach beside bare bm25s.

python benchmarks/retrieval.py --data_dir ../shared/data
"""

import argparse
import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from datasets import Dataset

from _common import ROOT, write_result
from modeling_more.formats import read_conll
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus, attach_text_knowledge, title_recall
from modeling_more.knowledge.text import split_query

CORPORA = ("fb15k_descriptions", "codex_wiki", "factbook_countries")
TOP_K = 10


def posts(data_dir: Path, splits: tuple[str, ...] = ("train", "valid", "test")) -> Dataset:
    rows = [row for split in splits for row in read_conll(data_dir / "twitter2017" / f"{split}.txt")]
    return Dataset.from_dict({name: [row[name] for row in rows] for name in ("tokens", "ner_tags")})


def recombined(corpus: KnowledgeCorpus, sentences: int, file: Path, seed: int = 0) -> Path:
    """Articles of three sentences each, made of a first and a second half of different real sentences, distinct."""
    rng = random.Random(seed)
    words = [key.rstrip(".").split() for key in corpus.keys()]
    words = [sentence for sentence in words if len(sentence) >= 6]
    made: set[str] = set()
    while len(made) < sentences:
        first, second = rng.choice(words), rng.choice(words)
        made.add(f"{' '.join(first[: len(first) // 2])} {' '.join(second[len(second) // 2 :])}.")
    texts = sorted(made)
    rng.shuffle(texts)
    with gzip.open(file, "wt", encoding="utf-8", compresslevel=1) as stream:
        for number in range(0, len(texts), 3):
            row = {"id": str(number), "title": f"Article {number}", "text": " ".join(texts[number : number + 3])}
            stream.write(json.dumps(row) + "\n")
    return file


def measure(
    name: str, files: list[Path], title_in_key: bool, tweets: Dataset, scratch: Path, repeats: int
) -> dict[str, Any]:
    """Build, then attach (to an empty cache each time) and bare bm25s in turn; both tokenise, one thread each."""
    cache = scratch / f"{name}-{title_in_key}"
    start = time.perf_counter()
    corpus = KnowledgeCorpus.from_files(files, cache, title_in_key)
    built = time.perf_counter()
    retriever = BM25Retriever.from_corpus(corpus)
    indexed = time.perf_counter()
    queries = [" ".join(tokens) for tokens in tweets["tokens"]]

    def bare() -> None:
        retriever.index.retrieve([split_query(query) for query in queries], k=TOP_K, show_progress=False)

    def attach(number: int) -> None:
        attach_text_knowledge(tweets, retriever, TOP_K, cache_dir=cache / f"run{number}")

    bare()  # compile, and touch the mapped pages
    attach(-1)
    pairs = []
    for number in range(repeats):
        times = [time.perf_counter()]
        for side in (bare, lambda number=number: attach(number)):
            side()
            times.append(time.perf_counter())
        pairs.append((times[1] - times[0], times[2] - times[1]))
    recall = ""
    if name == "real":
        test = tweets.select(range(len(tweets) - 723, len(tweets)))  # the test split comes last
        with_knowledge, _ = attach_text_knowledge(test, retriever, TOP_K, cache_dir=cache)
        score = title_recall(with_knowledge, corpus.paragraphs["title"])
        recall = f"{score.recall:.3f} ({score.found}/{score.mentions})"
    probe = [sys.executable, __file__, "--memory", str(corpus.folder), str(retriever.index_dir)]
    run = subprocess.run(probe, input=json.dumps(queries), capture_output=True, text=True, check=True)
    memory = json.loads(run.stdout)
    return {
        "corpus": "three real corpora" if name == "real" else "recombined halves",
        "key": "title + sentence" if title_in_key else "sentence",
        "paragraphs": corpus.info.paragraphs,
        "sentences": len(corpus),
        "title recall@10": recall,
        "corpus build s": round(built - start, 1),
        "index build s": round(indexed - built, 1),
        "attach posts/s": round(len(queries) / median(pair[1] for pair in pairs)),
        "bm25s queries/s": round(len(queries) / median(pair[0] for pair in pairs)),
        "attach / bm25s": round(median(pair[0] / pair[1] for pair in pairs), 2),
        "anonymous MB loaded": memory["loaded"],
        "anonymous MB searching": memory["searching"],
    }


def anonymous_mb() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) // 1024
    return -1


def memory(folder: str, index_dir: str) -> None:
    """In a fresh process: open corpus and index, search for the queries on standard input, print the memory used."""
    queries = json.load(sys.stdin)
    retriever = BM25Retriever(KnowledgeCorpus(folder), index_dir)
    loaded = anonymous_mb()
    for first in range(0, len(queries), 512):
        retriever.search(queries[first : first + 512], TOP_K)
    json.dump({"loaded": loaded, "searching": anonymous_mb()}, sys.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=ROOT.parent / "shared" / "data")
    parser.add_argument("--sentences", type=int, nargs="*", default=[1_000_000], help="sizes of recombined corpora")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory:
        return memory(*args.memory)
    files = [args.data_dir / "knowledge" / f"{name}.jsonl.gz" for name in CORPORA]
    tweets = posts(args.data_dir)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        for title_in_key in (False, True):
            rows.append(measure("real", files, title_in_key, tweets, scratch, args.repeats))
        real = KnowledgeCorpus.from_files(files, scratch / "real-False")
        for sentences in args.sentences:
            file = recombined(real, sentences, scratch / f"{sentences}.jsonl.gz")
            rows.append(measure(str(sentences), [file], False, tweets, scratch, args.repeats))
    write_result(
        "retrieval",
        "Text retrieval: title recall and speed",
        rows,
        note=f"{len(tweets)} posts of Twitter-2017, {TOP_K} entries each, one thread. Title recall: share of the "
        "mentions of the test split whose text is the title of an article (lower-cased, bracket dropped; each "
        "occurrence counts) that have an article of that title among the ten. Key: the sentence as in the "
        "paper, or title and sentence, an option. Speed: attach includes the queries' words, the search, the leakage "
        "guard and the storing of the column; bm25s includes the queries' words and its search for the ten best "
        "*sentences*. Both run in turn in one process; the ratio is the median of the pairs. Memory is measured in a "
        "fresh process, after loading and after searching for all posts.",
    )
    for row in rows:
        print(json.dumps(row))


if __name__ == "__main__":
    main()
