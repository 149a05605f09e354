#!/usr/bin/env python
r"""Relations between marked entities with retrieved knowledge: train, score, predict, publish.

accelerate launch run_re.py --dataset mnre --data_dir MNRE --retrieval none

accelerate launch run_re.py --train_file train.jsonl --validation_file dev.jsonl \
    --retrieval text --knowledge wiki.jsonl

accelerate launch run_re.py --dataset mnre --data_dir MNRE --retrieval moe --experts out/text out/image

python run_re.py --model_name_or_path out --do_predict --predict_file pairs.jsonl --output_dir predicted
"""

# A whole run from top to bottom, to be read and changed: loss, optimizer, schedule and evaluation stand below in the
# order in which they happen. run_ner.py mirrors this file line by line: the repetition is wanted, each is read alone.

from __future__ import annotations

import time
from collections import Counter
from typing import Any

ARGUMENTS_FIRST = True  # the package then imports no library yet: help and mistyped options are answered at once

from modeling_more.training.interruption import end_at_once

if __name__ == "__main__":
    end_at_once()  # at Ctrl-C, until the run begins

from dataset_scripts import NAMES, RELATION_NAMES
from modeling_more.training.arguments import Arguments
from modeling_more.training.command_line import command_of, one_sentence_errors, read_arguments

FOREIGN = (NAMES, "this is entity data, use run_ner.py")

if __name__ == "__main__":
    read_arguments(None, str(__doc__), *FOREIGN)

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

import dataset_scripts
from modeling_more.data.tasks import RELATIONS, relation_labels
from modeling_more.data_collator import MoReDataCollator
from modeling_more.encoding import encode_posts, evaluation_loader
from modeling_more.metrics import RelationF1
from modeling_more.modeling_more import MoReForRelationExtraction
from modeling_more.pipelines import RelationPipeline
from modeling_more.posts import Posts
from modeling_more.processing_more import MoReProcessor
from modeling_more.training import checkpoints, memory, optimization
from modeling_more.training.evaluation import score_splits
from modeling_more.training.mixture_posts import load_mixture_posts
from modeling_more.training.mixture_runs import prepare_mixture, run_mixture
from modeling_more.training.models import SAVED, encoder_options, load_saved, model_kind
from modeling_more.training.output_folders import begin_training, holding
from modeling_more.training.posts import check_splits, hold_out, load_posts
from modeling_more.training.predict_mode import posts_to_predict, predict_alone
from modeling_more.training.results import begin_results, count_cut, finish, save_run
from modeling_more.training.retrieval import knowledge_column, retrieval_of_run
from modeling_more.training.score_mode import score_alone
from modeling_more.training.score_threshold import count_alone
from modeling_more.training.setup import make_accelerator, running, start_trackers, stop_trackers


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Run with these arguments (default: the command line's); return what `all_results.json` holds."""
    args = read_arguments(argv, str(__doc__), *FOREIGN)
    accelerator = make_accelerator(args.training)
    command = command_of(RELATIONS.script, argv, accelerator.num_processes, accelerator.mixed_precision)
    with running(args, accelerator), holding(args, accelerator):
        if args.posts is None:
            return predict_alone(RELATIONS, args, accelerator)
        mixed = args.data.retrieval == "moe"
        with one_sentence_errors():
            with accelerator.main_process_first():
                if mixed:
                    posts, types, report = load_mixture_posts(RELATIONS, args, dataset_scripts.load, RELATION_NAMES)
                else:
                    posts, types, report = load_posts(
                        args.data, RELATIONS, dataset_scripts.load, RELATION_NAMES, args.trains
                    )
            check_splits(posts, types, RELATIONS, args.trains)
            to_predict = posts_to_predict(RELATIONS, args, True, accelerator) if args.training.do_predict else []
        results = []
        for one in args.each_seed():
            if mixed:
                mixture = prepare_mixture(RELATIONS, one, posts, types)
                for fold in mixture.folds():  # experts that --gate_data crossfit wants trained anew
                    train(fold.args, fold.posts, types, {}, [], command)
                results.append(run_mixture(mixture, report, to_predict, command))
            elif args.training.do_train:
                results.append(train(one, posts, types, report, to_predict, command))
            else:
                results.append(score_alone(RELATIONS, one, posts, types, report, to_predict, command))
        return finish(RELATIONS, args, accelerator, results, command)


@memory.fitting_batches
def train(
    args: Arguments, posts: dict[str, Posts], types: list[str], report: dict[str, Any], to_predict: Posts, command: str
) -> dict[str, Any]:
    """Train and score an expert with one seed, and write all that is left of it; return its results.

    Args:
        posts: rows of the splits, with their knowledge.
        types: the relations.
        report: what retrieval did.
        to_predict: posts of `--predict_file`.
        command: the command line, for the card.
    """
    data, training = args.data, args.training
    accelerator = make_accelerator(training)
    set_seed(training.seed)

    # processor and model: an encoder with a fresh head, or a saved expert that learns on
    labels = relation_labels(types, data.none_relation)
    with one_sentence_errors():
        if model_kind(args.model) in SAVED:
            model, processor = load_saved(RELATIONS, args, labels, accelerator)
        else:
            with accelerator.main_process_first():
                processor = MoReProcessor.from_encoder_pretrained(
                    args.model.model_name_or_path,
                    tokenizer_options={"revision": args.model.model_revision},
                    knowledge_column=knowledge_column(data.retrieval),
                    top_k=data.top_k,
                    min_score=data.least_score,
                    knowledge_words=data.knowledge_words,
                    max_length=data.max_length,
                    overflow=data.overflow,
                    splitter=data.splitter,
                    markers=True,
                )
                model = MoReForRelationExtraction.from_encoder_pretrained(
                    args.model.model_name_or_path,
                    encoder_options=encoder_options(args.model),
                    num_tokens=len(processor.tokenizer),
                    id2label=dict(enumerate(labels)),
                    class_weights=weigh_classes(posts["train"], labels) if args.model.class_weights else None,
                    # one view is all there is without knowledge
                    two_views="off" if data.retrieval == "none" else args.model.two_views,
                    kl_temperature=args.model.kl_temperature,
                    nll_weight=args.model.nll_weight,
                    head_dropout=args.model.head_dropout,
                )
    processor.retrieval = retrieval_of_run(data, report) or processor.retrieval
    if training.gradient_checkpointing:
        model.gradient_checkpointing_enable()

    # posts to learn from, and those that a gate will learn from later, as rows of sub-tokens
    learned, held_out, dev = *hold_out(posts["train"], data.holdout_fraction), posts["validation"]
    two_views = model.config.two_views != "off" and processor.knowledge_column is not None
    show = accelerator.is_main_process
    encoded = encode_posts(learned, processor, model.config.label2id, two_views, truncate=True, progress=show)
    encoded_dev = encode_posts(dev, processor, progress=show)

    # the folder of the run, whose checkpoints are of these rows, and batches of them
    made_of = checkpoints.description(args, accelerator, [learned, dev], [encoded, encoded_dev])
    with one_sentence_errors():
        optimization.check_rows(model, encoded)
        checkpoints.check_checkpoint(training, made_of)
    begin_training(args, accelerator)
    results = begin_results(args, report, learned, held_out) | count_cut(encoded)
    results |= count_alone(processor, learned, "train")
    collate = MoReDataCollator(processor)
    sampler = optimization.make_sampler(encoded, training, accelerator.num_processes)
    loader: Any = DataLoader(encoded, batch_sampler=sampler, collate_fn=collate)  # type: ignore[arg-type]
    mean_weight = optimization.mean_class_weight(model.config.class_weights, encoded)
    results |= memory.rehearse(accelerator, model, sampler, encoded, collate, training)
    dev_loader = evaluation_loader(encoded_dev, collate, accelerator, training.per_device_eval_batch_size)

    # optimizer and schedule; fused takes a third of the time of the plain step on a CPU
    fused = accelerator.device.type in ("cpu", "cuda")
    groups = optimization.parameter_groups(model, training)
    optimizer: Any = torch.optim.AdamW(groups, weight_decay=training.weight_decay, fused=fused)
    steps = optimization.steps_of_epochs(sampler, training.num_train_epochs, accelerator)
    schedule = LambdaLR(optimizer, optimization.learning_rate_factor(steps, training))
    # not prepared by accelerate, which would step it once for each process: it steps here, once an optimizer step
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    start_trackers(args, accelerator)
    set_seed(training.seed, device_specific=True)  # from here on each process draws its own dropout
    state = checkpoints.resume(accelerator, training, made_of, model, optimizer, schedule)
    if state.epoch:
        optimization.follow_schedule(schedule, sum(steps[: state.epoch]), training.num_train_epochs)
    metric = RelationF1(keep_in_memory=True)

    for epoch in range(state.epoch, training.num_train_epochs):
        if state.is_out_of_patience(training.early_stopping_patience):
            break
        # the loader counts its own epochs from 0 and would put the sampler back; behind a shard it does not reach it
        loader.set_epoch(epoch)
        sampler.set_epoch(epoch)
        shares = sampler.shares(optimization.batches_per_step(accelerator))
        shares = shares[accelerator.process_index :: accelerator.num_processes]
        taken = optimization.EpochSteps(accelerator, model, optimizer, sampler, state, training, learned)
        began = time.perf_counter()
        model.train()
        bar = tqdm(loader, desc=f"epoch {epoch + 1}/{training.num_train_epochs}", disable=not show)
        for batch, share in zip(bar, shares, strict=True):
            share.check(batch.pop("index"))
            if mean_weight is not None:
                batch["mean_class_weight"] = mean_weight
            with accelerator.accumulate(model):
                output = model(**batch)
                # every post of a step weighs the same; backward divides by the accumulated batches
                accelerator.backward(output.loss * share.scale)
                taken.add(output, share)
                if accelerator.sync_gradients:
                    taken.guard()  # clips; a step whose gradient is NaN or infinite will do nothing
                optimizer.step()
                optimizer.zero_grad()
                if accelerator.sync_gradients:
                    schedule.step()
            if (mean := taken.mean_loss()) is not None:
                bar.set_postfix(loss=f"{mean:.3f}")
        means, seconds = taken.means(), time.perf_counter() - began

        found = predict_dev(accelerator, model, dev_loader)
        relations, gold = [found[number] for number in range(len(dev))], [pair["relation"] for pair in dev]
        scores = metric.compute(predictions=relations, references=gold, none=data.none_relation)
        better = state.add(means, scores["f1"], seconds)
        accelerator.log({**means, "dev_f1": scores["f1"], "seconds": round(seconds, 1)}, step=state.epoch)
        checkpoints.save(accelerator, training, made_of, model, optimizer, schedule, state, better)

    stop_trackers(accelerator)
    model, optimizer, loader = accelerator.free_memory(model, optimizer, loader)
    results |= {"best_epoch": state.best_epoch, "history": state.history} | optimization.skipped_steps(state)

    # the best epoch's model: scores with and without knowledge, predictions, card
    best = checkpoints.load_best(MoReForRelationExtraction, training, accelerator.device)
    pipeline = RelationPipeline(best, processor, accelerator, training.per_device_eval_batch_size)
    results |= score_splits(RELATIONS, args, pipeline, posts)
    save_run(RELATIONS, args, pipeline, results, to_predict, command, held_out)
    return results


def predict_dev(accelerator: Accelerator, model: torch.nn.Module, loader: DataLoader[Any]) -> dict[int, str]:
    """Return the most probable relation of every pair by its number, gathered from all processes."""
    core: Any = accelerator.unwrap_model(model)
    found: dict[int, str] = {}
    model.eval()
    for batch in tqdm(loader, desc="dev", disable=not accelerator.is_main_process, leave=False):
        numbers = batch.pop("index").tolist()
        with torch.no_grad():
            logits = optimization.check_scores(accelerator, model(**batch).logits)
        relations = [core.config.id2label[label] for label in logits.argmax(-1).tolist()]
        rows = list(zip(numbers, relations, strict=True))
        found |= dict(accelerator.gather_for_metrics(rows, use_gather_object=True))
    return found


def weigh_classes(pairs: Posts, labels: list[str]) -> list[float]:
    """Return weights by the inverse root of each relation's number in training, one on average over the pairs."""
    found = Counter(pair["relation"] for pair in pairs)
    weights = [max(found[label], 1) ** -0.5 for label in labels]
    scale = len(pairs) / sum(weight * found[label] for weight, label in zip(weights, labels, strict=True))
    return [weight * scale for weight in weights]


if __name__ == "__main__":
    main()
