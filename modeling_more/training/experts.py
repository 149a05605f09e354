"""This module reads how the experts of `--experts` were made, and retrieves for new posts as each of them did."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import hf_hub_download

from ..encoding import EXPERT_KNOWLEDGE
from ..naming import loaded_from
from ..posts import Posts
from ..processing_more import MoReProcessor
from .arguments import RETRIEVERS, DataArguments
from .models import check_saved
from .retrieval import knowledge_column, retrieved

#: options of an expert's run that say how its knowledge is retrieved
RETRIEVAL_OPTIONS = (
    *("retrieval", "knowledge", "top_k", "title_in_key", "retriever", "text_model", "query", "captions", "entities"),
    *("image_dir", "image_model"),
)
Options = TypeVar("Options")


@dataclass
class Expert:
    """A saved expert and how it was made.

    Attributes:
        source: its folder or Hub id.
        name: a short unique name for cards and scores, after what it retrieves by.
        options: the options of its run; empty if unknown.
        holdout_ids: ids of the training posts that it did not train on; None if unknown.
    """

    source: str
    name: str
    options: dict[str, Any]
    holdout_ids: set[str] | None
    processor: MoReProcessor

    def options_of(self, kind: type[Options], **changes: Any) -> Options:
        """Return the expert's options as one dataclass, with some of them changed."""
        known = {one.name for one in fields(kind)}  # type: ignore[arg-type]
        return kind(**{key: value for key, value in self.options.items() if key in known} | changes)

    def data(self, data: DataArguments) -> DataArguments:
        """Return the options that retrieve this expert's knowledge for the posts of this run."""
        found = {key: self.options[key] for key in RETRIEVAL_OPTIONS if key in self.options}
        # whoever published the expert must not choose which file is run here
        if (own := found.get("retriever", "bm25")) not in RETRIEVERS and own != data.retriever:
            raise ValueError(
                f"expert {self.name} ({self.source}) searches by code of its own: give --retriever {own} if that file "
                "is here and yours to run"
            )
        if not found:
            column = self.processor.knowledge_column
            found = {"retrieval": "none" if column is None else column.removeprefix("knowledge_")}
        # files may have moved, or belong to other posts; an expert that read none still reads none
        own = {"knowledge": bool(found.get("knowledge")), "image_dir": True}
        own |= {"captions": found.get("query") == "caption", "entities": found.get("query") == "entities"}
        found |= {key: getattr(data, key) for key, wanted in own.items() if wanted and getattr(data, key)}
        return replace(data, splitter=self.processor.splitter, **found)


def load_experts(sources: Sequence[str]) -> list[Expert]:
    """Return the experts that `--experts` names, or raise ValueError if there are none or one is no saved expert."""
    if not sources:
        raise ValueError("--retrieval moe needs --experts FOLDER_OR_ID …")
    experts: list[Expert] = []
    for source in sources:
        if Path(source).exists() and not (Path(source) / "processor_config.json").is_file():
            raise ValueError(f"--experts {source}: no saved expert (processor_config.json is missing)")
        with loaded_from("--experts", source):
            check_saved(source)
            processor = MoReProcessor.from_pretrained(source)
        options = _read_json(source, "arguments.json") or {}
        held_out = _read_json(source, "holdout_ids.json")
        retrieval = options.get("retrieval") or (processor.knowledge_column or "none").removeprefix("knowledge_")
        name = re.sub(r"\W", "_", "caption" if options.get("query") == "caption" else retrieval)
        same = Counter(re.sub(r"_\d+$", "", expert.name) for expert in experts)[name]
        name = f"{name}_{same + 1}" if same else name
        experts.append(Expert(source, name, options, None if held_out is None else set(held_out), processor))
    return experts


def _read_json(source: str, name: str) -> Any:
    path = Path(source) / name
    if not Path(source).is_dir():
        try:
            path = Path(hf_hub_download(source, name))
        except (OSError, ValueError):  # not every expert was made by our scripts
            return None
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def add_expert_knowledge(posts: Posts, data: DataArguments, sources: Sequence[str]) -> None:
    """Add `EXPERT_KNOWLEDGE` to posts without labels: what each expert retrieves, else what the posts bring along."""
    columns = []
    for expert in load_experts(sources):
        own = expert.data(data)
        column = knowledge_column(own.retrieval)
        searched = column is not None and own.knowledge
        columns.append(retrieved(own, posts) if searched else [post.get(column) if column else None for post in posts])
    for post, *knowledge in zip(posts, *columns, strict=True):
        post[EXPERT_KNOWLEDGE] = knowledge
