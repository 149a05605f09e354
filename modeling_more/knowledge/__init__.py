"""Knowledge: corpora, retrieval over them, and the columns it gives to a data set of posts."""

from .attach import AttachReport, TitleRecall, attach_text_knowledge, title_recall
from .corpus import KNOWLEDGE_FEATURE, CorpusInfo, KnowledgeCorpus, load_knowledge
from .text import BM25Retriever

__all__ = [
    "KNOWLEDGE_FEATURE",
    "AttachReport",
    "BM25Retriever",
    "CorpusInfo",
    "KnowledgeCorpus",
    "TitleRecall",
    "attach_text_knowledge",
    "load_knowledge",
    "title_recall",
]
