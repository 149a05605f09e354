"""Load the sources of knowledge that `--knowledge` names as one corpus."""

from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download

from ..provenance import hub_options, is_hub_name
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
        hub_options(spec)  # a name that someone else gives is no file of this machine
        path = Path(spec)
        if path.is_dir() or not (path.exists() or path.is_absolute() or path.suffix in SUFFIXES):
            if files:
                corpora.append(KnowledgeCorpus.from_files(files, cache_dir, bool(title_in_key)))
                files = []
            corpora.append(KnowledgeCorpus.from_pretrained(_fetched(spec), cache_dir))
        else:
            files.append(path)
    if files:
        corpora.append(KnowledgeCorpus.from_files(files, cache_dir, bool(title_in_key)))
    return KnowledgeCorpus.concatenate(corpora, cache_dir)


def _fetched(spec: str | Path) -> str | Path:
    """Return a source as it is, but of a name that someone else's file gives the folder of its download."""
    if not is_hub_name(spec):
        return spec
    try:
        return snapshot_download(str(spec), repo_type="dataset", **hub_options(spec))
    except OSError as error:  # no such repository, no network
        raise FileNotFoundError(
            f"The knowledge {spec}, which a downloaded expert names, can't be had from the Hub without your token "
            f"({type(error).__name__}): give --knowledge {spec} if it is yours."
        ) from error
