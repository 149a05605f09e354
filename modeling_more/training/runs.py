"""What run_ner.py and run_re.py share: from arguments to a trained, scored, saved and published expert."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import DatasetDict
from huggingface_hub.utils import validate_repo_id
from transformers.utils import logging as transformers_logging

from ..data.columns import check_columns
from ..data.sources import Posts, describe, is_labelled, load_posts, split_holdout
from ..files import apply_umask, write_json, write_jsonl
from ..modeling_more import MoRePreTrainedModel
from ..naming import check_source
from ..pipelines import encode_posts
from ..processing_more import MoReProcessor
from .arguments import Arguments, parse_arguments
from .loop import MAY_CHANGE, TrainingResult, check_checkpoint, make_accelerator, train, warn_of_slow_cpu
from .models import load_expert, load_model, load_processor
from .output_folders import begin_training, check_output_dir, forget_predictions, posts_of, suffix_beside_record
from .predict_mode import posts_to_predict, write_predictions
from .results import adopt_best, log_scores, options_of, over_seeds, push, write_card
from .retrieval import check_retrieval
from .tasks import Prediction, Task

logger = logging.getLogger(__name__)


def run(
    task: Task,
    argv: list[str] | None,
    description: str,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
    foreign_names: Sequence[str] = (),
) -> dict[str, Any]:
    """Run a script with these arguments (default: the command line's); returns what `all_results.json` holds.

    Args:
        description: of the script, for `--help`.
        load_named, names: the named data sets, see `load_posts`.
        foreign_names: those of the other task.
    """
    args = parse_arguments(argv, description)
    training = args[2]
    if args[0].dataset in foreign_names:
        raise SystemExit(f"error: --dataset {args[0].dataset}: {task.schema.foreign_data}")
    accelerator = make_accelerator(training)
    level = logging.INFO if accelerator.is_main_process else logging.ERROR
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    for chatty in ("httpx", "accelerate", "faiss"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of weights, which are there at once
    warn_of_slow_cpu(accelerator, predict=posts_of(args) is None)
    command = _command(task.script, sys.argv[1:] if argv is None else argv, accelerator)
    try:
        results = _run(task, args, accelerator, command, load_named, names)
        accelerator.end_training()
        return results
    except KeyboardInterrupt:
        raise SystemExit(
            f"\ninterrupted; the last complete epoch is kept: add --resume_from_checkpoint latest to go on "
            f"(in {training.output_dir})"
        ) from None


def _command(script: str, words: Sequence[str], accelerator: Accelerator) -> str:
    """The command that runs this again, but for what a configuration file of accelerate says of sharding."""
    start = ["python", script]
    if "ACCELERATE_MIXED_PRECISION" in os.environ:  # accelerate launch sets it
        several, precision = accelerator.num_processes, accelerator.mixed_precision
        start = ["accelerate", "launch", *(["--num_processes", str(several)] if several > 1 else [])]
        start += ["--mixed_precision", precision] if precision != "no" and "--bf16" not in words else []
        start.append(script)
    return shlex.join([*start, *words])


def _run(
    task: Task,
    args: Arguments,
    accelerator: Accelerator,
    command: str,
    load_named: Callable[..., DatasetDict],
    names: Sequence[str],
) -> dict[str, Any]:
    data, model_args, training, run, mixture = args
    mixed = data.retrieval == "moe"
    if mixed:
        from .mixture_runs import load_mixture_posts, run_mixture_seed  # which imports this module
    splits: dict[str, Posts] = {}
    types: list[str] = []
    report: dict[str, Any] = {}
    with one_sentence_errors():
        _check(args)
        if posts_of(args) is not None:
            with accelerator.main_process_first():
                if mixed:
                    splits, types, report = load_mixture_posts(task, args, load_named, names)
                else:
                    splits, types, report = load_posts(data, task.schema, load_named, names, run.do_train)
            logger.info("rows: %s; labels: %s", describe(splits), ", ".join(types))
            for split, posts in splits.items():
                if not is_labelled(posts, task.schema):
                    logger.warning("the %s posts have no labels: they are predicted, not scored", split)
            for split in ("train", "validation"):
                if run.do_train and split not in splits:
                    raise ValueError(f"training needs a {split} split; there is {describe(splits)}")
            if not {"validation", "test"} & splits.keys():
                raise ValueError(f"there is nothing to score: no validation or test split, but {describe(splits)}")
        to_predict = posts_to_predict(task, args, bool(splits), accelerator) if run.do_predict else []

    output = Path(training.output_dir)
    if not splits:
        with one_sentence_errors():
            processor = load_processor(task, model_args, accelerator)
            expert = load_expert(task, model_args, accelerator)
        write_predictions(output, expert, processor, to_predict, training, accelerator)
        return {}

    # a scoring comes out the same with every seed
    seeds = (training.seeds if run.do_train else []) or [training.seed]
    folders = [output / f"seed-{seed}" for seed in seeds] if len(seeds) > 1 else [output]
    all_results = []
    for seed, folder in zip(seeds, folders, strict=True):
        one = replace(training, seed=seed, output_dir=str(folder))
        one_run = run_mixture_seed if mixed else run_seed
        all_results.append(
            one_run(task, (data, model_args, one, run, mixture), splits, types, report, to_predict, command)
        )
    results = all_results[0]
    if accelerator.is_main_process:
        if len(seeds) > 1:
            results = over_seeds(all_results, seeds)
            adopt_best(output, all_results)
            write_json(output / "all_results.json", results)
            write_json(output / "arguments.json", options_of(args))
            write_card(task, args, output, results, command)
        log_scores(results, task.shown)
        if run.push_to_hub:
            push(output, str(run.hub_model_id), run.hub_private, run.push_predictions)
    accelerator.wait_for_everyone()
    return results


def run_seed(
    task: Task,
    args: Arguments,
    splits: dict[str, Posts],
    types: list[str],
    report: dict[str, Any],
    to_predict: Posts,
    command: str,
) -> dict[str, Any]:
    """Train (unless told not to), score dev and test with and without knowledge, write everything of one seed."""
    data, _, training, run, _ = args
    accelerator = make_accelerator(training)
    output = Path(training.output_dir)
    set_seed(training.seed)
    with one_sentence_errors():
        model, processor = load_model(task, args, types, splits.get("train", []), accelerator)
    results: dict[str, Any] = {
        "seed": training.seed,
        "dataset": data.dataset or data.train_file or data.test_file,
        "retrieval": data.retrieval,
    }
    if report:
        results["retrieval_report"] = report

    if run.do_train:
        posts, held_out = split_holdout(splits["train"], data.holdout_fraction)
        if not posts:
            raise SystemExit(f"error: all {len(held_out)} training posts are held out: lower --holdout_fraction")
        made_of = description(args, posts, splits["validation"])
        with one_sentence_errors():
            check_checkpoint(training, made_of)
        begin_training(args, options_of(args))
        if accelerator.is_main_process:
            write_json(output / "holdout_ids.json", [post["id"] for post in held_out])
        results |= {"train_posts": len(posts), "held_out_posts": len(held_out)}
        dev = splits["validation"]
        model, trained = _train(task, args, accelerator, model, processor, posts, dev, results, made_of)
        results |= {"best_epoch": trained.best_epoch, "history": trained.history}
    else:
        model.to(accelerator.device)

    suffix = suffix_beside_record(args)
    if accelerator.is_main_process and not suffix:
        forget_predictions(output, run.do_train)
    for split, name in (("validation", "dev"), ("test", "test")):
        if split in splits:
            found = _score(task, args, model, processor, splits[split], name, accelerator, results)
            if accelerator.is_main_process:
                rows = [task.record(model, one, post) for post, one in zip(splits[split], found, strict=True)]
                write_jsonl(output / "predictions" / f"{name}{suffix}.jsonl", rows)
    save_run(task, args, accelerator, model, processor, results, to_predict, command)
    return results


def save_run(
    task: Task,
    args: Arguments,
    accelerator: Accelerator,
    model: Any,
    processor: Any,
    results: dict[str, Any],
    to_predict: Posts,
    command: str,
) -> None:
    """Write model, processor, scores, options and card, and the predictions that were asked for.

    Of a model that was only scored its scores alone, unless they are to be published with it; beside the record of a
    training they have a name of their own.
    """
    _, _, training, run, _ = args
    output = Path(training.output_dir)
    suffix = suffix_beside_record(args)
    if to_predict:
        write_predictions(output, model, processor, to_predict, training, accelerator)
    if accelerator.is_main_process and suffix:
        write_json(output / f"scores{suffix}.json", results)
        logger.info("%s keeps its record: scores are in scores%s.json, predictions/*%s.jsonl", output, suffix, suffix)
    elif accelerator.is_main_process:
        if run.do_train or run.push_to_hub:
            model.save_pretrained(output)
            processor.save_pretrained(output)
            apply_umask(output)
        write_json(output / "all_results.json", results)
        write_json(output / "arguments.json", options_of(args))
        write_card(task, args, output, results, command)
        logger.info("written: %s", output)
    accelerator.wait_for_everyone()


def _train(
    task: Task,
    args: Arguments,
    accelerator: Accelerator,
    model: MoRePreTrainedModel,
    processor: MoReProcessor,
    posts: Posts,
    dev: Posts,
    results: dict[str, Any],
    made_of: dict[str, Any],
) -> tuple[MoRePreTrainedModel, TrainingResult]:
    """Train and choose the epoch by dev F1; what was cut of the training posts goes into `results`."""
    data, _, training, *_ = args
    two_views = model.config.two_views != "off" and processor.knowledge_column is not None
    show = accelerator.is_main_process
    encoded = encode_posts(posts, processor, model.config.label2id, two_views, truncate=True, progress=show)
    results |= _what_was_cut(encoded)
    encoded_dev = encode_posts(dev, processor, progress=show)

    def dev_score(candidate: torch.nn.Module) -> float:
        size = training.per_device_eval_batch_size
        found = task.predict(candidate, encoded_dev, processor, accelerator, size, "dev")
        return float(task.score(accelerator.unwrap_model(candidate), found, dev, data)["f1"])

    if training.report_to:
        options = options_of(args).items()
        plain = {key: value if isinstance(value, int | float | str) else str(value) for key, value in options}
        accelerator.init_trackers("more", plain)
    trained = train(accelerator, model, processor, encoded, dev_score, training, made_of=made_of)
    for tracker in accelerator.trackers:  # not end_training(), which also ends the group of processes
        tracker.finish()
    return trained


def description(args: Arguments, *posts: Posts) -> dict[str, Any]:
    """What makes a training run: it may be gone on with only where this is the same."""
    data, model, training, _, mixture = args
    reading = ("retrieval", "top_k", "knowledge_words", "max_length", "overflow", "splitter")
    options = asdict(model) | {name: getattr(data, name) for name in reading}
    options |= {key: value for key, value in asdict(training).items() if key not in MAY_CHANGE}
    if data.retrieval == "moe":
        options |= asdict(mixture)
    # images are tensors, made of the files that the posts name
    rows = [[{**post, "image": None, "has_image": None} for post in split] for split in posts]
    return options | {"posts": hashlib.sha256(json.dumps(rows, default=str).encode()).hexdigest()[:32]}


def _score(
    task: Task,
    args: Arguments,
    model: MoRePreTrainedModel,
    processor: MoReProcessor,
    posts: Posts,
    name: str,
    accelerator: Accelerator,
    results: dict[str, Any],
) -> list[Prediction]:
    """Score a split with its knowledge, and without where the expert reads any; returns the predictions.

    Where its labels are hidden it is predicted alone.
    """
    data, _, training, *_ = args
    scored = is_labelled(posts, task.schema)
    views = {"": True} | ({"no_knowledge_": False} if processor.knowledge_column and scored else {})
    found = {}
    for prefix, use_knowledge in views.items():
        encoded = encode_posts(posts, processor, use_knowledge=use_knowledge)
        found[prefix] = task.predict(
            model, encoded, processor, accelerator, training.per_device_eval_batch_size, f"score {name}"
        )
        if scored:
            scores = task.score(model, found[prefix], posts, data)
            results |= {f"{name}_{prefix}{key}": value for key, value in scores.items()}
        if use_knowledge:
            results[f"{name}_cut_knowledge"] = sum(post["cut_knowledge"] for post in encoded)
    return found[""]


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End the program with one sentence where the input is at fault"""
    try:
        yield
    except (ValueError, OSError) as error:
        logger.debug("input error", exc_info=True)
        raise SystemExit(f"error: {' '.join(str(error).split())}") from None


def _check(args: Arguments) -> None:
    data, _, training, run, mixture = args
    if posts_of(args) is None and not run.do_predict:
        raise ValueError("give --dataset NAME, or --train_file and --validation_file, or --do_predict (see --help)")
    if run.do_predict and data.predict_file is None:
        raise ValueError("--do_predict needs --predict_file")
    if data.columns is not None:
        check_columns(data.columns)
        if not (data.train_file or data.validation_file or data.test_file or data.predict_file):
            raise ValueError("--columns is for files of your own: give --train_file, --predict_file or the like")
    check_retrieval(data)
    for name, values in (
        ("model_name_or_path", [args[1].model_name_or_path]),
        ("experts", mixture.experts),
        ("text_model", [data.text_model]),
        ("image_model", [data.image_model]),
    ):
        for value in values:
            check_source(f"--{name}", value)
    if data.image_dir is not None and not Path(data.image_dir).is_dir():
        raise FileNotFoundError(f"--image_dir {data.image_dir}: no such folder")
    split_holdout([], data.holdout_fraction)  # knows which fractions there are
    if mixture.train_experts and mixture.gate_data == "crossfit":
        raise ValueError("--train_experts trains the experts along: choose --gate_data holdout or train")
    for name in ("max_train_samples", "max_eval_samples"):
        limit = getattr(data, name)
        if limit is not None and limit < 1:
            raise ValueError(f"--{name} is {limit}, it must be at least 1")
    resumed = training.resume_from_checkpoint
    if resumed and resumed != "latest" and not Path(resumed).is_dir():
        raise FileNotFoundError(f"--resume_from_checkpoint {resumed}: no such folder")
    if run.push_predictions and not run.push_to_hub:
        raise ValueError("--push_predictions is for --push_to_hub: it adds the predictions to what is uploaded")
    if run.push_to_hub and run.hub_model_id is None:
        raise ValueError("--push_to_hub needs --hub_model_id ORG/NAME")
    if run.hub_model_id is not None:
        validate_repo_id(run.hub_model_id)  # an HFValidationError is a ValueError
    if training.resume_from_checkpoint and training.resume_from_checkpoint != "latest" and training.seeds:
        raise ValueError("with --seeds only --resume_from_checkpoint latest is clear")
    check_output_dir(args)


def _what_was_cut(posts: Posts) -> dict[str, int]:
    cut = {
        "train_cut_words": sum(post["cut_words"] for post in posts),
        "train_cut_knowledge": sum(post["cut_knowledge"] for post in posts),
    }
    if cut["train_cut_words"]:
        logger.warning(
            "%d words of training posts lie past max_length and are not learned from", cut["train_cut_words"]
        )
    if cut["train_cut_knowledge"]:
        logger.info("%d sub-tokens of knowledge lie past max_length and are not read", cut["train_cut_knowledge"])
    return cut
