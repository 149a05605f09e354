"""This module gives out-of-fold outputs, for a gate: experts read training posts on which they did not train."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from accelerate import Accelerator
from torch import Tensor

from ..encoding import EXPERT_KNOWLEDGE
from ..files import write_text
from ..posts import Posts
from .arguments import Arguments, DataArguments, ModelArguments, TrainingArguments
from .expert_outputs import mixed
from .experts import Expert
from .folder_contents import MADE_OF
from .posts import post_digest

logger = logging.getLogger(__name__)


class Fold(NamedTuple):
    """A training of an expert on the posts outside a fold: its options, its splits, and posts that it predicts."""

    args: Arguments
    posts: dict[str, Posts]
    to_predict: Posts


def folds_of(posts: Posts, folds: int) -> list[int]:
    """Return the number of each row's fold, which all rows of one post share."""
    return [post_digest(post) % folds for post in posts]


def fold_folder(output_dir: str, expert: str, fold: int | str) -> str:
    """Return the folder of an expert, given by its name, that was trained without a fold."""
    return str(Path(output_dir) / "crossfit" / f"{expert}-{fold}")


def folds_to_train(
    args: Arguments, experts: Sequence[Expert], splits: dict[str, Posts], accelerator: Accelerator
) -> Iterator[Fold]:
    """Yield the trainings that `--gate_data crossfit` still needs; each is marked when the next is requested."""
    if args.mixture.gate_data != "crossfit" or not args.training.do_train:
        return
    training, folds = args.training, folds_of(splits["train"], args.mixture.crossfit_folds)
    for fold in sorted(set(folds)):
        others = [post for post, one in zip(splits["train"], folds, strict=True) if one != fold]
        for number, expert in enumerate(experts):
            column = expert.processor.knowledge_column or "knowledge"
            own = {"train": others, "validation": splits["validation"]}
            for split, rows in own.items():
                own[split] = [{**post, column: post[EXPERT_KNOWLEDGE][number]} for post in rows]
            # images are tensors for the gate; no expert reads them
            told = [[{**post, "image": None, "has_image": None} for post in rows] for rows in own.values()]
            again = expert.options_of(
                TrainingArguments, output_dir=fold_folder(training.output_dir, expert.name, fold), seeds=[],
                resume_from_checkpoint=None, report_to=[], save_checkpoints=False, use_cpu=training.use_cpu,
                bf16=training.bf16, do_train=True, do_predict=False, overwrite_output_dir=False,
            )  # fmt: skip
            data = expert.options_of(DataArguments, holdout_fraction=0.0)
            model = expert.options_of(ModelArguments, **expert.encoder(args.model))
            name = f"crossfit: expert {expert.name} without fold {fold + 1} of {args.mixture.crossfit_folds}"
            needed = Fold(Arguments(data, model, again), own, [])
            yield from unless_finished(needed, [expert.options, told], name, accelerator)


def unless_finished(fold: Fold, made_of: Any, name: str, accelerator: Accelerator) -> Iterator[Fold]:
    """Yield a training unless an earlier run, which was interrupted, finished it; it is marked when the next is due.

    Every process must iterate over this.

    Args:
        made_of: all that the expert depends on, as values of JSON.
        name: the training in words, for the log.
    """
    mark = Path(fold.args.training.output_dir) / MADE_OF
    digest = hashlib.sha256(json.dumps(made_of, default=str).encode()).hexdigest()[:32]
    finished = mark.is_file() and mark.read_text(encoding="utf-8") == digest
    accelerator.wait_for_everyone()  # until all processes have looked
    if finished:
        return
    logger.info("%s", name)
    if accelerator.is_main_process:
        mark.unlink(missing_ok=True)  # of the expert that this one replaces
    yield fold
    if accelerator.is_main_process:
        write_text(mark, digest)


def said_by_folds(
    args: Arguments, experts: Sequence[Expert], posts: Posts, mixture_class: Any, features_of: Any, model: Any
) -> tuple[list[Tensor], list[Tensor]]:
    """Return what the experts say of each post that did not train on it, and how sure they are of it.

    These are log-probabilities [Z, N, L] (or [Z, C]) of all readings, and evidence [E] or, per word, [N, E].

    Args:
        features_of: a function (posts, description, mixture) -> outputs of its experts, see `expert_features`.
        model: the final mixture, which sets the order of the labels.
    """
    folds = folds_of(posts, args.mixture.crossfit_folds)
    said: dict[int, Tensor] = {}
    sure: dict[int, Tensor] = {}
    for fold in sorted(set(folds)):
        rows = [row for row, one in enumerate(folds) if one == fold]
        of_fold = mixture_class.from_experts(
            [fold_folder(args.training.output_dir, expert.name, fold) for expert in experts],
            names=[expert.name for expert in experts],
            gate=args.mixture.gate, gate_inputs=["confidence"], alone=model.config.alone, abstain=args.mixture.abstain,
        ).to(model.device)  # fmt: skip
        features = features_of([posts[row] for row in rows], f"fold {fold + 1}", of_fold)
        features.images = None  # this mixture's gate is not used
        # through the fold's own mixture: its experts' CRFs differ from those of the final experts
        labels = [of_fold.config.label2id[label] for _, label in sorted(model.config.id2label.items())]
        found: list[tuple[Tensor, Tensor]] = []
        for output, mask in mixed(of_fold, features):
            assert output.evidence is not None
            rest = output.evidence.cpu(), mask.sum(1).tolist()
            for log_probs, evidence, length in zip(output.readings.cpu(), *rest, strict=True):
                per_word = log_probs[:, :length] if log_probs.dim() == 3 else log_probs
                found.append((per_word, evidence[:length] if evidence.dim() == 2 else evidence))
        for row, (log_probs, evidence) in zip(rows, found, strict=True):
            said[row], sure[row] = log_probs[..., labels], evidence
    return [said[row] for row in range(len(posts))], [sure[row] for row in range(len(posts))]
