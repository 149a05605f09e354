"""What others chose of a corpus (splitter, licence, date, names of indices) is text on its card, and no HTML."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from hostile_texts import HOSTILE, rendered
from knowledge_rows import ARTICLES, make
from modeling_more.knowledge.corpus_info import FAISS_META, corpus_card

pytest.importorskip("markdown_it")


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_description_is_text_on_the_card(text: str, tmp_path: Path) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    plain = replace(corpus.info, images=2)
    (tmp_path / "faiss" / "0a1b-Flat").mkdir(parents=True)
    meta = tmp_path / "faiss" / "0a1b-Flat" / FAISS_META
    cards = []
    for word, info in (("x", plain), (text, replace(plain, splitter=text, language=text))):
        meta.write_text(json.dumps({"factory": word, "encoder_name": word}))
        cards.append(corpus_card(info, word, "", word, tmp_path / "faiss"))
    calm, hostile = map(rendered, cards)
    # the same tags, in the same order, wherever the texts stand
    assert re.findall(r"<[^>]*>", hostile) == re.findall(r"<[^>]*>", calm)
    (metadata,) = re.findall(r"\A---\n(.*?)\n---\n", cards[1], flags=re.DOTALL)
    assert yaml.safe_load(metadata)["license"] == text
    assert yaml.safe_load(metadata)["tags"] == ["knowledge-corpus", "modeling-more"]


def test_an_index_that_is_not_described_is_named(tmp_path: Path) -> None:
    corpus = make(tmp_path, ARTICLES).corpus
    (tmp_path / "faiss" / "0a1b-Flat").mkdir(parents=True)
    (tmp_path / "faiss" / "0a1b-Flat" / FAISS_META).write_text("{}")
    with pytest.raises(ValueError, match="0a1b-Flat/image_index.json lacks the entry 'factory'"):
        corpus_card(corpus.info, None, "", None, tmp_path / "faiss")
