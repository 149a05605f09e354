"""This module checks the options before posts or a model are loaded, so that a wrong one is reported at once."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..data.columns import check_columns
from ..naming import check_source, nearest
from ..retrieval_settings import MILVUS, READ_NOTHING, SEARCHES
from .arguments import CHOSEN_ON_DEV, Arguments, DataArguments, MixtureArguments
from .output_folders import check_output_dir

#: options, the condition on their values, and its wording; NaN is always refused
RANGES: tuple[tuple[str, Callable[[float], bool], str], ...] = (
    ("gate_learning_rate kl_temperature", lambda value: value > 0, "above 0"),
    ("learning_rate crf_learning_rate", lambda value: value >= 0, "at least 0 (0: these parts stay as they are)"),
    ("weight_decay max_grad_norm", lambda value: value >= 0, "at least 0"),
    ("warmup_ratio nll_weight", lambda value: 0 <= value <= 1, "between 0 and 1"),
    ("head_dropout word_dropout image_dropout", lambda value: 0 <= value < 1, "at least 0 and below 1"),
    ("max_tokens_per_batch early_stopping_patience gate_batch_size", lambda value: value >= 1, "at least 1"),
    (
        "max_words max_pairs max_length knowledge_words top_k max_train_samples max_eval_samples",
        lambda value: value >= 1,
        "at least 1",
    ),
    ("crossfit_folds query_folds", lambda value: value >= 2, "at least 2"),
    ("load_balancing gate_entropy gate_epochs skip_nonfinite_steps", lambda value: value >= 0, "at least 0"),
)


def check_values(args: Arguments) -> None:
    """Raise ValueError if the value of an option is out of range."""
    given = {name: value for part in vars(args).values() for name, value in vars(part).items()}
    check_ranges(given, "--")
    if (retriever := args.data.retriever) not in SEARCHES and ".py:" not in retriever:
        raise ValueError(
            f"argument --retriever: it is {retriever!r}, it must be one of {', '.join(SEARCHES)}, or FILE.py:CLASS"
            f"{nearest(retriever, SEARCHES)}"
        )
    if twice := [seed for seed, count in Counter(given["seeds"]).items() if count > 1]:
        raise ValueError(f"--seeds holds {twice[0]} twice, each must be another one")


def check_ranges(given: Mapping[str, Any], told: str) -> None:
    """Raise ValueError if one of these options is out of range; `told` stands before its name."""
    for names, fits, said in RANGES:
        for name in names.split():
            value = given.get(name)
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise ValueError(f"{told}{name} is {value}, it must be {said}")
    if (least := given.get("min_score")) not in (None, CHOSEN_ON_DEV) and not _is_score(least):
        raise ValueError(f"{told}min_score is {least!r:.80}, it must be a number, or {CHOSEN_ON_DEV}")


def _is_score(value: Any) -> bool:
    try:
        return abs(float(value)) <= READ_NOTHING  # not NaN
    except (ValueError, OverflowError):
        return False


def check_retrieval(args: DataArguments, predicts: bool = False) -> None:
    """Raise ValueError, in one sentence, if retrieval options do not go together or would be ignored.

    Args:
        predicts: whether a saved model predicts, which retrieves as it was trained, from `--knowledge` if given.
    """
    own = args.retriever not in SEARCHES
    if own and not Path(file := args.retriever.rpartition(":")[0]).is_file():
        raise FileNotFoundError(f"--retriever {args.retriever}: there is no file {file}")
    if args.retrieval == "none":
        for name in ("shuffle_knowledge",) if predicts else ("knowledge", "shuffle_knowledge", "min_score"):
            if getattr(args, name) not in (None, False, []):
                raise ValueError(f"--{name} is given, but no knowledge is retrieved: add --retrieval text or image")
        if predicts:
            return
    if args.retrieval == "moe" and args.min_score is not None:
        raise ValueError("--min_score is for one expert: those that --experts names bring their own")
    searching = ("query", "retriever", "title_in_key")
    given = [f"--{name}" for name in searching if getattr(args, name) != getattr(DataArguments, name)]
    if own and args.retrieval == "moe":  # it lets an expert search by a class of its own
        given.remove("--retriever")
    if given and (args.retrieval != "text" or not args.knowledge):
        raise ValueError(f"{given[0]} is for searching texts: it needs --retrieval text and --knowledge FILE …")
    if args.query == "caption" and not args.captions:
        raise ValueError("--query caption needs --captions FILE")
    for option, query, files in (("captions", "caption", args.captions), ("entities", "entities", args.entities)):
        if files and args.query != query and args.retrieval != "moe":  # whose experts search as they did
            raise ValueError(f"--{option} is read with --query {query} only, not with --query {args.query}")
    if args.query == "entities" and args.retriever != "bm25":
        raise ValueError(
            f"--query entities searches titles by their words: use --retriever bm25, not {args.retriever}"
        )
    if any(spec.startswith(MILVUS) for spec in args.knowledge):
        others = [name for name in given if name != "--query" or args.query == "entities"]
        if others:
            raise ValueError(f"{others[0]} is for corpora that are searched here, not for {args.knowledge[0]}")
        if len(args.knowledge) > 1:
            raise ValueError(f"--knowledge {' '.join(args.knowledge)}: a Milvus database is searched alone")


def check_arguments(args: Arguments) -> None:
    """Raise ValueError or OSError, in one sentence, if options do not go together or a folder does not exist."""
    data, training, mixture, hub = args.data, args.training, args.mixture, args.hub
    if args.posts is None and not training.do_predict:
        raise ValueError("give --dataset NAME, or --train_file and --validation_file, or --do_predict (see --help)")
    if training.do_predict and data.predict_file is None:
        raise ValueError("--do_predict needs --predict_file")
    if data.columns is not None:
        check_columns(data.columns)
        if not (data.train_file or data.validation_file or data.test_file or data.predict_file):
            raise ValueError("--columns is for files of your own: give --train_file, --predict_file or the like")
    check_retrieval(data, args.posts is None)
    if data.min_score == CHOSEN_ON_DEV and args.posts is None:
        raise ValueError("--min_score dev is chosen on labelled posts: give a number to predict with")
    if data.retrieval == "moe" and not mixture.experts:
        raise ValueError("--retrieval moe needs --experts FOLDER_OR_ID …")
    check_source("--model_name_or_path", args.model.model_name_or_path)
    for expert in mixture.experts:
        check_source("--experts", expert)
    check_source("--text_model", data.text_model)
    check_source("--image_model", data.image_model)
    if data.image_dir is not None and not Path(data.image_dir).is_dir():
        raise FileNotFoundError(f"--image_dir {data.image_dir}: no such folder")
    if not 0 <= data.holdout_fraction < 1:
        raise ValueError(f"--holdout_fraction is {data.holdout_fraction}, it must lie between 0 and 1")
    if mixture.train_experts and mixture.gate_data == "crossfit":
        raise ValueError("--train_experts trains the experts along: choose --gate_data holdout or train")
    check_gate(mixture)
    if mixture.train_experts and training.auto_find_batch_size:
        raise ValueError(
            "--auto_find_batch_size is not for --train_experts: give --per_device_train_batch_size 1 or more"
        )
    resumed = training.resume_from_checkpoint
    if resumed and resumed != "latest" and not Path(resumed).is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint {resumed}: no such folder")
    if hub.push_predictions and not hub.push_to_hub:
        raise ValueError("--push_predictions is for --push_to_hub: it adds the predictions to what is uploaded")
    if hub.push_to_hub and hub.hub_model_id is None:
        raise ValueError("--push_to_hub needs --hub_model_id ORG/NAME")
    if hub.hub_model_id is not None:
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(hub.hub_model_id)  # raises a ValueError
    if resumed and resumed != "latest" and training.seeds:
        raise ValueError("with --seeds only --resume_from_checkpoint latest is clear")
    check_output_dir(args)


def check_gate(mixture: MixtureArguments) -> None:
    """Raise ValueError for options of the gate that do not go together."""
    evidence = sorted({"scores", "confidence"} & set(mixture.gate_inputs))
    if "auto" in mixture.gate_inputs and len(mixture.gate_inputs) > 1:
        raise ValueError("--gate_inputs auto compares all choices: give it alone, or name what the gate reads")
    if mixture.train_experts and (evidence or mixture.abstain):
        told = f"--gate_inputs {evidence[0]}" if evidence else "--abstain"
        raise ValueError(f"{told} is fitted to experts as they are, --train_experts changes them: choose one of them")
    if mixture.gate_data == "dev" and not evidence and "auto" not in mixture.gate_inputs:
        raise ValueError(
            "the gate of text and image is chosen on the dev posts, so that it can't learn from them: give "
            "--gate_inputs auto, or other --gate_data"
        )
    if mixture.shuffle_evidence and (mixture.train_experts or not evidence and "auto" not in mixture.gate_inputs):
        raise ValueError("--shuffle_evidence is for a gate of evidence: --gate_inputs auto, scores or confidence")
    if mixture.gate_inputs == ["image"] and not mixture.gate_images:
        raise ValueError("--gate_inputs image needs the images that --no_gate_images leaves out")
    if mixture.shuffle_evidence and mixture.gate == "word":
        raise ValueError("--shuffle_evidence gives a post another one's evidence, which has other words: --gate post")
