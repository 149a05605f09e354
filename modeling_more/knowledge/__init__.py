"""Knowledge: corpora, retrieval over them, and the columns it gives to a data set of posts."""

from .attach import (
    AttachReport,
    ImageAttachReport,
    TitleRecall,
    attach_image_knowledge,
    attach_text_knowledge,
    title_recall,
)
from .corpus import KNOWLEDGE_FEATURE, CorpusInfo, KnowledgeCorpus, load_knowledge
from .image import ImageEncoder, ImageRetriever
from .pictures import ImageError, find_image, open_image
from .text import BM25Retriever

__all__ = [
    "KNOWLEDGE_FEATURE",
    "AttachReport",
    "BM25Retriever",
    "CorpusInfo",
    "ImageAttachReport",
    "ImageEncoder",
    "ImageError",
    "ImageRetriever",
    "KnowledgeCorpus",
    "TitleRecall",
    "attach_image_knowledge",
    "attach_text_knowledge",
    "find_image",
    "load_knowledge",
    "open_image",
    "title_recall",
]
