"""Search knowledge corpora, and attach what is found to a data set of posts."""

from .attach import (
    AttachReport,
    ImageAttachReport,
    TitleRecall,
    attach_image_knowledge,
    attach_text_knowledge,
    title_recall,
)
from .captions import read_captions
from .corpus import KNOWLEDGE_FEATURE, KnowledgeCorpus
from .corpus_info import CorpusInfo
from .corpus_sources import load_knowledge
from .dense import DenseRetriever, FusedRetriever, SentenceEncoder
from .entities import EntityRetriever, entity_query
from .image import ImageEncoder, ImageRetriever
from .online import OnlineRetrieval
from .pictures import ImageError, find_image, open_image
from .text import BM25Retriever

__all__ = [
    "KNOWLEDGE_FEATURE",
    "AttachReport",
    "BM25Retriever",
    "CorpusInfo",
    "DenseRetriever",
    "EntityRetriever",
    "FusedRetriever",
    "ImageAttachReport",
    "ImageEncoder",
    "ImageError",
    "ImageRetriever",
    "KnowledgeCorpus",
    "OnlineRetrieval",
    "SentenceEncoder",
    "TitleRecall",
    "attach_image_knowledge",
    "attach_text_knowledge",
    "entity_query",
    "find_image",
    "load_knowledge",
    "open_image",
    "read_captions",
    "title_recall",
]
