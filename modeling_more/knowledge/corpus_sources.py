"""Load the sources of knowledge that `--knowledge` names as one corpus."""

from collections.abc import Sequence
from pathlib import Path

from .articles import SUFFIXES
from .corpus import KnowledgeCorpus


def load_knowledge(
    specs: Sequence[str | Path], cache_dir: str | Path | None = None, title_in_key: bool | None = None
) -> KnowledgeCorpus:
    """Load the corpus that `--knowledge` names: files, saved folders and Hub ids, joined in that order.

    Args:
        title_in_key: key design of corpora built from files (default: the sentence alone); saved ones keep theirs.
    """
    corpora: list[KnowledgeCorpus] = []
    files: list[Path] = []
    for spec in [specs] if isinstance(specs, str | Path) else specs:
        path = Path(spec)
        if path.is_dir() or not (path.exists() or path.is_absolute() or path.suffix in SUFFIXES):
            if files:
                corpora.append(KnowledgeCorpus.from_files(files, cache_dir, bool(title_in_key)))
                files = []
            corpora.append(KnowledgeCorpus.from_pretrained(spec, cache_dir))
        else:
            files.append(path)
    if files:
        corpora.append(KnowledgeCorpus.from_files(files, cache_dir, bool(title_in_key)))
    return KnowledgeCorpus.concatenate(corpora, cache_dir)
