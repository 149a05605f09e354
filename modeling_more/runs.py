"""What run_ner.py and run_re.py share: from arguments to a trained, scored, saved and published expert."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import shutil
import statistics
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from datasets import Dataset, DatasetDict
from transformers import AutoConfig, AutoProcessor
from transformers.utils import logging as transformers_logging

from .arguments import Arguments, DataArguments, ModelArguments, parse_arguments
from .configuration_mixture import MoReMixtureConfig
from .configuration_more import MoReConfig
from .data import Posts, Schema, describe, load_posts, split_holdout
from .formats import KNOWLEDGE_COLUMNS
from .mixture import EXPERT_KNOWLEDGE
from .model_card import write_model_card
from .modeling_more import MoRePreTrainedModel
from .prediction import EncodedPost, encode_posts, predict
from .processing_more import MoReProcessor
from .retrieval import add_knowledge, check_retrieval, knowledge_column
from .training import (
    MAY_CHANGE,
    TrainingResult,
    check_checkpoint,
    make_accelerator,
    train,
    warn_of_slow_cpu,
    write_json,
)

logger = logging.getLogger(__name__)

SAVED = (MoReConfig.model_type, MoReMixtureConfig.model_type)
Prediction = Any  # what a task predicts for a post: tags with span scores, or probabilities of relations


class Task(ABC):
    """What tells a task from the other: its data, its model and its scores."""

    script: str
    pipeline_tag: str
    schema: Schema
    model_class: type[MoRePreTrainedModel]
    mixture_class: Any
    markers = False
    #: scores that are logged at the end, besides dev_f1 and test_f1
    shown: tuple[str, ...] = ()

    @abstractmethod
    def labels(self, types: Sequence[str], data: DataArguments) -> list[str]:
        """The model's labels, in their order."""

    @abstractmethod
    def model_options(
        self, args: ModelArguments, data: DataArguments, posts: Posts, labels: list[str]
    ) -> dict[str, Any]:
        """Fields of the configuration besides those that both tasks have; `posts` are those of the training split."""

    @abstractmethod
    def read_posts(self, path: str, splitter: str, column: str) -> Posts:
        """Posts without labels, to predict on; knowledge that belongs to no column by name goes to `column`."""

    @abstractmethod
    def predict(
        self, model: torch.nn.Module, encoded: Sequence[EncodedPost], processor: MoReProcessor,
        accelerator: Accelerator, batch_size: int, description: str,
    ) -> list[Prediction]:  # fmt: skip
        """A prediction for every encoded post, in their order."""

    @abstractmethod
    def score(self, model: Any, found: Sequence[Prediction], posts: Posts, data: DataArguments) -> dict[str, Any]:
        """Scores of these predictions; `f1` chooses the epoch."""

    @abstractmethod
    def counts(self, model: Any, found: Sequence[Prediction], posts: Posts, data: DataArguments) -> Any:
        """int [posts, 3]: what is right, predicted, and in the reference, for the bootstrap."""

    @abstractmethod
    def record(self, model: Any, found: Prediction, post: dict[str, Any]) -> dict[str, Any]:
        """The row of a labelled post in the predictions file."""


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
    for chatty in ("httpx", "accelerate"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    transformers_logging.set_verbosity_error()
    warn_of_slow_cpu(accelerator)
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
        if data.dataset or data.train_file or data.validation_file or data.test_file:
            with accelerator.main_process_first():
                if mixed:
                    splits, types, report = load_mixture_posts(task, args, load_named, names)
                else:
                    splits, types, report = load_posts(data, task.schema, load_named, names)
            splits = {name: _limited(name, posts, data) for name, posts in splits.items()}
            logger.info("rows: %s; labels: %s", describe(splits), ", ".join(types))
            for split in ("train", "validation"):
                if run.do_train and split not in splits:
                    raise ValueError(f"training needs a {split} split; there is {describe(splits)}")
        to_predict = _posts_to_predict(task, args, bool(splits), accelerator) if run.do_predict else []

    output = Path(training.output_dir)
    if not splits:
        with one_sentence_errors():
            processor = _load_processor(task, model_args, accelerator)
            expert = _load_expert(task, model_args, accelerator)
        _write_predictions(output, expert, processor, to_predict, training, accelerator)
        return {}

    seeds = training.seeds or [training.seed]
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
            results = _over_seeds(all_results, seeds)
            _adopt_best(output, all_results)
            write_json(output / "all_results.json", results)
            write_json(output / "arguments.json", _options(args))
            _write_card(task, args, output, results, command)
        _log_scores(results, task.shown)
        if run.push_to_hub:
            push(output, str(run.hub_model_id), run.hub_private)
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
        model, processor = _load_model(task, args, types, splits.get("train", []), accelerator)
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
        if accelerator.is_main_process:
            write_json(output / "holdout_ids.json", [post["id"] for post in held_out])
        results |= {"train_posts": len(posts), "held_out_posts": len(held_out)}
        dev = splits["validation"]
        model, trained = _train(task, args, accelerator, model, processor, posts, dev, results, made_of)
        results |= {"best_epoch": trained.best_epoch, "history": trained.history}
    else:
        model.to(accelerator.device)

    for split, name in (("validation", "dev"), ("test", "test")):
        if split in splits:
            found = _score(task, args, model, processor, splits[split], name, accelerator, results)
            if accelerator.is_main_process:
                rows = [task.record(model, one, post) for post, one in zip(splits[split], found, strict=True)]
                write_jsonl(output / "predictions" / f"{name}.jsonl", rows)
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
    """Write model, processor, scores, options and card, and the predictions that were asked for."""
    training = args[2]
    output = Path(training.output_dir)
    if to_predict:
        _write_predictions(output, model, processor, to_predict, training, accelerator)
    if accelerator.is_main_process:
        model.save_pretrained(output)
        processor.save_pretrained(output)
        write_json(output / "all_results.json", results)
        write_json(output / "arguments.json", _options(args))
        _write_card(task, args, output, results, command)
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
        options = _options(args).items()
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
    """Score a split with its knowledge, and without where the expert reads any; returns the predictions."""
    data, _, training, *_ = args
    views = {"": True} | ({"no_knowledge_": False} if processor.knowledge_column else {})
    found = {}
    for prefix, use_knowledge in views.items():
        encoded = encode_posts(posts, processor, use_knowledge=use_knowledge)
        found[prefix] = task.predict(
            model, encoded, processor, accelerator, training.per_device_eval_batch_size, f"score {name}"
        )
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


def push(folder: Path, repository: str, private: bool) -> None:
    """Upload everything but checkpoints and logs; a failure loses nothing and says how to try again."""
    from huggingface_hub import HfApi

    left_out = ["checkpoints/*", "logs/*", "seed-*/*", "crossfit/*"]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        url = api.upload_folder(
            repo_id=repository, folder_path=folder, ignore_patterns=left_out, commit_message="Upload a MoRe expert"
        )
    except Exception as error:  # of the Hub, of its HTTP library, of the system: the run's files matter more
        logger.debug("upload failed", exc_info=True)
        again = f"hf upload {repository} {shlex.quote(str(folder))} . " + " ".join(
            f"--exclude '{p}'" for p in left_out
        )
        again += " --private" * private
        reason = f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"
        raise SystemExit(
            f"error: the upload to {repository} failed ({reason}). "
            f"Nothing is lost: all files are in {folder}. To push again: {again}"
        ) from None
    logger.info("uploaded to %s", url)


def _options(args: Arguments) -> dict[str, Any]:
    """Every option of a run, as an options file holds them."""
    return {key: value for part in args for key, value in asdict(part).items()}


def _write_card(task: Task, args: Arguments, output: Path, results: dict[str, Any], command: str) -> None:
    runs = results.get("runs", [results])
    best = max(runs, key=_dev_score)
    history = [{**row, "seed": one["seed"]} for one in runs for row in one.get("history", [])]
    more = {}
    if "experts" in best:  # over several seeds: the weights and gains of the one whose model this is
        from .mixture_report import card_parts

        more = card_parts(best, task.pipeline_tag, args[3].hub_model_id or output.resolve().name)
    write_model_card(output, results, _options(args), command, history, task=task.pipeline_tag, **more)


def _dev_score(result: dict[str, Any]) -> float:
    return float(result.get("dev_f1", result.get("test_f1", 0.0)))


def _adopt_best(output: Path, results: list[dict[str, Any]]) -> None:
    """The files of the seed with the best dev score also stand in the output folder itself, ready to load."""
    best = max(results, key=_dev_score)
    shutil.copytree(
        output / f"seed-{best['seed']}",
        output,
        dirs_exist_ok=True,
        ignore=shutil.ignore_patterns("checkpoints", "logs", "crossfit"),
    )


def _check(args: Arguments) -> None:
    data, _, training, run, mixture = args
    given = data.dataset or data.train_file or data.validation_file or data.test_file
    if not given and not run.do_predict:
        raise ValueError("give --dataset NAME, or --train_file and --validation_file, or --do_predict (see --help)")
    if run.do_predict and data.predict_file is None:
        raise ValueError("--do_predict needs --predict_file")
    check_retrieval(data)
    if data.retrieval == "moe" and given and not run.do_train:
        raise ValueError(
            "--retrieval moe trains a gate: drop --no_do_train, or give --predict_file without other posts"
        )
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
    if run.push_to_hub and run.hub_model_id is None:
        raise ValueError("--push_to_hub needs --hub_model_id ORG/NAME")
    if training.resume_from_checkpoint and training.resume_from_checkpoint != "latest" and training.seeds:
        raise ValueError("with --seeds only --resume_from_checkpoint latest is clear")


def _load_model(
    task: Task, arguments: Arguments, types: list[str], posts: Posts, accelerator: Accelerator
) -> tuple[MoRePreTrainedModel, MoReProcessor]:
    """A saved expert as it is, or (to be trained) a fresh head on an encoder."""
    data, args, _, run, _ = arguments
    source = {"revision": args.model_revision}
    labels = task.labels(types, data)
    kind = _kind(args)
    if kind == MoReMixtureConfig.model_type:
        raise ValueError(f"{args.model_name_or_path} is a mixture: here it can only predict, see --predict_file")
    if kind == MoReConfig.model_type or not run.do_train:
        processor = _load_processor(task, args, accelerator)
        expert = _load_expert(task, args, accelerator)
        unknown = sorted(set(labels) - set(expert.config.label2id))
        if unknown:
            raise ValueError(f"{args.model_name_or_path} does not know the labels {', '.join(unknown)} of the data")
        if processor.knowledge_column != knowledge_column(data.retrieval):
            logger.warning(
                "%s reads %s, --retrieval %s gives %s: it reads the words alone",
                args.model_name_or_path,
                processor.knowledge_column or "no knowledge",
                data.retrieval,
                knowledge_column(data.retrieval) or "none",
            )
        return expert, processor
    options = {"attn_implementation": args.attn_implementation} if args.attn_implementation else {}
    with accelerator.main_process_first():
        processor = MoReProcessor.from_encoder_pretrained(
            args.model_name_or_path,
            tokenizer_options=source,
            knowledge_column=knowledge_column(data.retrieval),
            top_k=data.top_k,
            knowledge_words=data.knowledge_words,
            max_length=data.max_length,
            overflow=data.overflow,
            splitter=data.splitter,
            markers=task.markers,
        )
        model = task.model_class.from_encoder_pretrained(
            args.model_name_or_path,
            encoder_options={**source, **options},
            num_tokens=len(processor.tokenizer) if task.markers else 0,
            id2label=dict(enumerate(labels)),
            # one view is all there is without knowledge
            two_views="off" if data.retrieval == "none" else args.two_views,
            kl_temperature=args.kl_temperature,
            nll_weight=args.nll_weight,
            head_dropout=args.head_dropout,
            **task.model_options(args, data, posts, labels),
        )
    return model, processor


def _kind(args: ModelArguments) -> str:
    """The model type: that of an expert, of a mixture, or of an encoder."""
    return str(AutoConfig.from_pretrained(args.model_name_or_path, revision=args.model_revision).model_type)


def _load_processor(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoReProcessor:
    """The processor of a saved expert or mixture.

    Raises:
        ValueError: it is neither, or one of the other task.
    """
    name, revision = args.model_name_or_path, args.model_revision
    if (kind := _kind(args)) not in SAVED:
        raise ValueError(
            f"{name} is a plain encoder ({kind}): to score or predict without training give --model_name_or_path "
            "the output folder, or the Hub id, of a trained expert"
        )
    with accelerator.main_process_first():
        processor: MoReProcessor = AutoProcessor.from_pretrained(name, revision=revision)
    if processor.markers != task.markers:
        other = "relations: use run_re.py" if processor.markers else "entities: use run_ner.py"
        raise ValueError(f"{name} is an expert for {other}")
    return processor


def _load_expert(task: Task, args: ModelArguments, accelerator: Accelerator) -> MoRePreTrainedModel:
    name, revision = args.model_name_or_path, args.model_revision
    model_class = task.mixture_class if _kind(args) == MoReMixtureConfig.model_type else task.model_class
    with accelerator.main_process_first():
        model: MoRePreTrainedModel = model_class.from_pretrained(name, revision=revision, dtype=torch.float32)
    return model.to(accelerator.device)


def _posts_to_predict(task: Task, args: Arguments, training: bool, accelerator: Accelerator) -> Posts:
    """The posts of `--predict_file`, split into words as the expert's training posts were, with their knowledge."""
    data, model, _, _, mixture = args
    splitter, column = data.splitter, knowledge_column(data.retrieval)  # of an expert that this run trains
    processor: Any = None
    if training and data.retrieval == "moe":
        processor = AutoProcessor.from_pretrained(mixture.experts[0])
    elif not training or _kind(model) in SAVED:
        processor = _load_processor(task, model, accelerator)
    if processor is not None:
        splitter = processor.splitter
        read = {one.knowledge_column for one in getattr(processor, "processors", [processor])} - {None}
        column = read.pop() if len(read) == 1 else None
    posts = task.read_posts(str(data.predict_file), splitter, column or KNOWLEDGE_COLUMNS[0])
    if data.retrieval == "moe":
        from .mixture_runs import add_expert_knowledge  # which imports this module

        add_expert_knowledge(posts, data, mixture.experts)
    elif data.knowledge:
        for post, entries in zip(posts, retrieved(data, posts), strict=True):
            post[str(knowledge_column(data.retrieval))] = entries
    if data.image_dir is not None:
        from .knowledge.pictures import find_image

        for post in posts:
            if post["image_id"] and (file := find_image(data.image_dir, post["image_id"])):
                post["image"] = file
        if lacking := sum("image" not in post for post in posts):
            logger.warning("%d of %d posts have no image in %s", lacking, len(posts), data.image_dir)
    return posts


def retrieved(data: DataArguments, posts: Posts) -> list[Any]:
    """The knowledge of posts without labels, as `--retrieval` and its options say."""
    rows = Dataset.from_list([{key: post[key] for key in ("id", "image_id", "tokens")} for post in posts])
    attached, _ = add_knowledge(data, {"predict": rows})
    return list(attached["predict"][str(knowledge_column(data.retrieval))])


def _write_predictions(
    output: Path, model: Any, processor: MoReProcessor, posts: Posts, training: Any, accelerator: Accelerator
) -> None:
    read = getattr(processor, "processors", [processor])
    given = len(posts[0].get(EXPERT_KNOWLEDGE) or read)
    if given != len(read):
        raise SystemExit(f"error: --experts names {given} experts, the mixture has {len(read)}")
    columns = {one.knowledge_column for one in read} - {None}
    lacking = sorted(column for column in columns if not any(post.get(column) for post in posts))
    if lacking and not any(EXPERT_KNOWLEDGE in post for post in posts):
        logger.warning("no post has %s: the words alone are read there", ", ".join(lacking))
    found = predict(model, processor, posts, training.per_device_eval_batch_size, accelerator)
    if accelerator.is_main_process:
        path = output / "predictions" / "predict.jsonl"
        write_jsonl(path, found)
        logger.info("%d posts read: %s", len(found), path)


def _limited(split: str, posts: Posts, data: DataArguments) -> Posts:
    limit = data.max_train_samples if split == "train" else data.max_eval_samples
    return posts[:limit]


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


def _over_seeds(results: list[dict[str, Any]], seeds: list[int]) -> dict[str, Any]:
    """Mean and sample deviation of every score over the seeds, and each seed's own."""
    merged: dict[str, Any] = {"seeds": seeds}
    for key, value in results[0].items():
        if key.endswith("_per_type"):
            # a type that the reference lacks is there only where a seed predicted it
            types = {type_: scores for row in results for type_, scores in row[key].items()}
            merged[key] = {
                type_: {
                    name: statistics.mean(row[key].get(type_, {}).get(name, 0.0) for row in results) for name in scores
                }
                for type_, scores in types.items()
            }
        if isinstance(value, float) and key.startswith(("dev_", "test_")):
            values = [row[key] for row in results]
            merged[key] = statistics.mean(values)
            merged[f"{key}_std"] = statistics.stdev(values)
    return merged | {"runs": results}


def _log_scores(results: dict[str, Any], shown: Sequence[str]) -> None:
    for key in ("dev_f1", "test_f1", *shown, "test_no_knowledge_f1"):
        if key in results:
            spread = f" ± {results[key + '_std']:.2f}" if key + "_std" in results else ""
            logger.info("%s %.2f%s", key, results[key], spread)


def write_jsonl(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows beside the file, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False, encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    os.replace(file.name, path)
