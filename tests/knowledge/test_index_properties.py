"""Any articles are split without a letter lost, and searched as the formula says."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from knowledge_rows import bm25_scores
from modeling_more.knowledge import BM25Retriever, KnowledgeCorpus
from modeling_more.knowledge.articles import split_paragraphs, split_sentences
from ner_runs import write_jsonl

TEXT = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from(".!? \n\r"), max_size=80)
WORD = st.sampled_from([f"w{number}" for number in range(9)])
SENTENCE = st.lists(WORD, min_size=1, max_size=6).map(lambda words: " ".join(words).capitalize() + ".")
ARTICLE = st.lists(st.lists(SENTENCE, min_size=1, max_size=3).map(" ".join), min_size=1, max_size=2).map("\n".join)


@given(TEXT, st.sampled_from(["en", "de", "ja", "th"]))
@settings(max_examples=200, deadline=None)
def test_paragraphs_and_sentences_lose_no_word(text: str, language: str) -> None:
    paragraphs = split_paragraphs(text)
    rest = text
    for paragraph in paragraphs:
        at = rest.find(paragraph)
        assert at >= 0 and not rest[:at].strip()
        rest = rest[at + len(paragraph) :]
    assert not rest.strip()
    for paragraph in paragraphs:
        end = 0
        for start, stop in split_sentences(paragraph, language):
            assert end <= start < stop <= len(paragraph)
            assert not re.search(r"\w", paragraph[end:start]) and re.search(r"\w", paragraph[start:stop])
            end = stop
        assert not re.search(r"\w", paragraph[end:])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("indexes")


@given(st.lists(ARTICLE, min_size=1, max_size=8), st.lists(WORD | st.just("other"), min_size=1, max_size=5))
@settings(max_examples=25, deadline=None)
def test_search_equals_brute_force(folder: Path, texts: list[str], words: list[str]) -> None:
    rows: list[dict[str, Any]] = [{"id": str(n), "title": f"T{n}", "text": text} for n, text in enumerate(texts)]
    corpus = KnowledgeCorpus.from_files(write_jsonl(folder / "made.jsonl", rows), folder / "cache")
    retriever, query = BM25Retriever.from_corpus(corpus), " ".join(words)
    exact = bm25_scores(list(corpus.keys()), query)
    best: dict[int, float] = {}  # the best sentence of each paragraph
    for row in np.flatnonzero(exact > 0):
        paragraph = int(corpus.sentence_paragraph[row])
        best[paragraph] = max(best.get(paragraph, 0), exact[row])
    for k in (1, 3, 100):
        (found,), (scores,) = retriever.search_paragraphs([query], k)
        hits = found[found >= 0]
        assert len(hits) == min(k, len(best)) == len({int(corpus.sentence_paragraph[row]) for row in hits})
        np.testing.assert_allclose(scores[: len(hits)], sorted(best.values(), reverse=True)[:k], rtol=1e-5)
        np.testing.assert_allclose(exact[hits], scores[: len(hits)], rtol=1e-5)
    # saved, loaded from its Parquet, and searched again
    saved = KnowledgeCorpus.from_pretrained(corpus.save_pretrained(folder / "saved"), folder / "other cache")
    again = BM25Retriever.from_corpus(saved)
    assert again.search([query], 5) == retriever.search([query], 5) and saved.fingerprint == corpus.fingerprint
