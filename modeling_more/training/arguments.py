"""This module defines the options of a run as dataclasses, without other libraries, so that `--help` is fast."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

#: how text is searched; a class of the user's own is named FILE.py:CLASS
RETRIEVERS = ("bm25", "dense", "both")
RETRIEVALS = ("none", "text", "image", "moe")
#: the trackers that accelerate knows, and "all" for those that are installed
TRACKERS = [
    *("all", "aim", "tensorboard", "wandb", "trackio", "comet_ml", "mlflow", "clearml", "dvclive", "swanlab"),
]


@dataclass
class DataArguments:
    """A group of options that name the posts and their knowledge."""

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "a set by name (twitter15, twitter17, snap, wikidiverse, demo; of relations mnre, "
            "demo_relations), a folder of Parquet or a Hub id"
        },
    )
    retrieval: str = field(
        default="none",
        metadata={
            "help": "knowledge that is read with the post; moe: a mixture of --experts",
            "choices": list(RETRIEVALS),
        },
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "folder or .zip with the named set's files; default: downloaded"}
    )
    columns: list[int] | None = field(
        default=None,
        metadata={
            "help": "columns of words and of labels in your CoNLL files, from 1, like 1 4; default: the first (the "
            "second behind an index) and the last"
        },
    )
    train_file: str | None = field(
        default=None, metadata={"help": "your own posts: CoNLL, JSONL, CSV, TSV or Parquet"}
    )
    validation_file: str | None = field(default=None, metadata={"help": "likewise, to choose the best epoch"})
    test_file: str | None = field(
        default=None,
        metadata={
            "help": "likewise, scored once at the end; where all labels are hidden (null or -1), predicted only"
        },
    )
    predict_file: str | None = field(
        default=None,
        metadata={
            "help": "posts without labels, for --do_predict: what --train_file reads, labels not needed (text or "
            "tokens, id, image), or text with one post a line"
        },
    )
    knowledge: list[str] = field(
        default_factory=list,
        metadata={
            "help": "corpus to retrieve from: JSONL, JSONL.gz or Parquet files, a saved corpus, or a Hub id; with "
            "--experts: instead of what those that retrieve were trained with"
        },
    )
    top_k: int = field(default=10, metadata={"help": "entries of knowledge retrieved and read"})
    knowledge_words: int | None = field(
        default=None, metadata={"help": "words read of each entry, around its matched sentence; default: all"}
    )
    title_in_key: bool = field(
        default=False, metadata={"help": "search title and sentence instead of the sentence alone"}
    )
    retriever: str = field(
        default="bm25",
        metadata={
            "help": "how text is searched: by words (bm25), by a sentence encoder (dense), by both, or by a class of "
            "your own, FILE.py:CLASS",
        },
    )
    text_model: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "sentence encoder of --retriever dense or both: folder or Hub id"},
    )
    query: str = field(
        default="words",
        metadata={
            "help": "what is searched for: the post's words, its image's caption, or also its predicted entities",
            "choices": ["words", "caption", "entities"],
        },
    )
    captions: str | None = field(
        default=None,
        metadata={"help": "captions of the images, for --query caption: `ID.jpg :caption` lines or JSONL"},
    )
    entities: list[str] = field(
        default_factory=list,
        metadata={"help": "predictions/*.jsonl of runs that did not train on these posts, for --query entities"},
    )
    image_dir: str | None = field(
        default=None, metadata={"help": "folder with the posts' images, named by image id, for --retrieval image"}
    )
    image_model: str = field(
        default="openai/clip-vit-base-patch32", metadata={"help": "image tower of --retrieval image: folder or Hub id"}
    )
    shuffle_knowledge: bool = field(
        default=False, metadata={"help": "control: every post gets another post's knowledge (same split)"}
    )
    max_length: int = field(
        default=512,
        metadata={"help": "sub-tokens of a post with its knowledge; lowered to what encoder and tokenizer read"},
    )
    overflow: str = field(
        default="cut",
        metadata={"help": "knowledge past max_length: cut its end, or skip whole entries", "choices": ["cut", "skip"]},
    )
    none_relation: str = field(
        default="None", metadata={"help": "the class of pairs without a relation, which F1 leaves out (run_re.py)"}
    )
    splitter: str = field(
        default="twitter17",
        metadata={
            "help": "how raw text becomes words (in predict mode: as the expert was trained); of scripts without "
            "blanks (Chinese, Thai …) each letter is a word, but for whitespace, which splits at blanks alone",
            "choices": ["twitter17", "twitter15", "whitespace"],
        },
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "train on the first so many posts"})
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "score on the first so many posts of a split"}
    )
    holdout_fraction: float = field(
        default=0.0, metadata={"help": "share of the training posts kept unseen, for a gate to learn from later"}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "for data, corpora and downloads"})


@dataclass
class ModelArguments:
    """A group of options that choose the encoder or expert, its head and its loss."""

    model_name_or_path: str = field(
        default="FacebookAI/xlm-roberta-large", metadata={"help": "encoder, or a saved expert: folder or Hub id"}
    )
    model_revision: str = field(default="main", metadata={"help": "branch, tag or commit of the model on the Hub"})
    attn_implementation: str | None = field(
        default=None, metadata={"help": "eager, sdpa, flash_attention_2 … (default: the library's choice)"}
    )
    head: str = field(
        default="crf", metadata={"help": "layer over the words of entities", "choices": ["crf", "softmax"]}
    )
    two_views: str = field(
        default="off",
        metadata={"help": "loss that ties the views with and without knowledge", "choices": ["off", "crf_kl", "kl"]},
    )
    kl_temperature: float = field(default=1.0, metadata={"help": "softens both sides of that loss"})
    nll_weight: float = field(default=0.5, metadata={"help": "lambda: weight of the likelihoods; KL weighs the rest"})
    kl_target_transitions: bool = field(
        default=False, metadata={"help": "let the KL's target move the transitions, as the authors' code does"}
    )
    head_dropout: float = field(default=0.0, metadata={"help": "on what the head reads"})
    word_dropout: float = field(default=0.0, metadata={"help": "zero a word's whole representation"})
    class_weights: bool = field(
        default=False, metadata={"help": "weigh relations by the inverse root of their number in training (run_re.py)"}
    )


@dataclass
class TrainingArguments:
    """A group of options for training; the defaults are the paper's, and a data set's recipe sets the rest."""

    output_dir: str = field(
        default="out",
        metadata={"help": "folder for model, processor, scores, predictions, card; default: out, of a model that is "
                  "only scored or predicts a folder named after it, like out-scored-posts"},
    )  # fmt: skip
    seed: int = field(default=42, metadata={"help": "of the head's initialisation, the batches and the dropout"})
    seeds: list[int] = field(
        default_factory=list, metadata={"help": "train once with each of these seeds; reports mean and deviation"}
    )
    num_train_epochs: int = field(default=10, metadata={"help": "epochs"})
    per_device_train_batch_size: int = field(default=4, metadata={"help": "posts of a batch on each device"})
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "posts of a batch when not training"})
    max_tokens_per_batch: int | None = field(
        default=None, metadata={"help": "batches hold at most so many padded sub-tokens, instead of so many posts"}
    )
    group_by_length: bool = field(
        default=False, metadata={"help": "batch posts of like length together: less padding, less random batches"}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "batches of one optimizer step, in which every post weighs the same"}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "of the encoder and the linear layer"})
    crf_learning_rate: float | None = field(
        default=None, metadata={"help": "of the CRF's parameters; default: the learning rate"}
    )
    weight_decay: float = field(default=0.01, metadata={"help": "of AdamW"})
    lr_decay: str = field(
        default="step",
        metadata={"help": "linear decay to 0 after every step, or after every epoch as the authors' recipes do",
                  "choices": ["step", "epoch"]},
    )  # fmt: skip
    warmup_ratio: float = field(default=0.0, metadata={"help": "share of the steps in which the rates rise from 0"})
    max_grad_norm: float = field(default=0.0, metadata={"help": "clip gradients to this norm; 0: no clipping"})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "stop after so many epochs without a better dev score"}
    )
    bf16: bool = field(default=False, metadata={"help": "compute in bfloat16 (weights and CRF stay float32)"})
    do_train: bool = field(default=True, metadata={"help": "train (with --no_do_train: only score the given model)"})
    do_predict: bool = field(
        default=False, metadata={"help": "predict --predict_file; alone, without --dataset, only that"}
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "let a training delete the run that its folder holds"}
    )
    use_cpu: bool = field(default=False, metadata={"help": "stay on the CPU even where a GPU is"})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "less memory for a third more time"})
    resume_from_checkpoint: str | None = field(
        default=None,
        metadata={
            "help": "'latest', or the folder of a checkpoint of the same run; with another --num_train_epochs the "
            "rates are those of the new length from there on"
        },
    )
    save_checkpoints: bool = field(
        default=True, metadata={"help": "write the optimizer's state after each epoch, so that the run can resume"}
    )
    report_to: list[str] = field(
        default_factory=list,
        metadata={"help": "trackers, e.g. tensorboard trackio wandb; logs go to OUTPUT_DIR/logs",
                  "choices": TRACKERS},
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name in ("num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
                     "gradient_accumulation_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"--{name} is {getattr(self, name)}, it must be at least 1")


@dataclass
class MixtureArguments:
    """A group of options that say how experts are mixed (--retrieval moe)."""

    experts: list[str] = field(
        default_factory=list, metadata={"help": "experts to mix: folders of earlier runs, or Hub ids"}
    )
    gate_data: str = field(
        default="holdout",
        metadata={
            "help": "posts the gate learns from: those the experts held out (--holdout_fraction), all training posts "
            "with experts trained anew on the other folds, or all although the experts know them",
            "choices": ["holdout", "crossfit", "train"],
        },
    )
    crossfit_folds: int = field(default=5, metadata={"help": "folds of --gate_data crossfit"})
    gate: str = field(
        default="post", metadata={"help": "one weight per expert and post, or per word", "choices": ["post", "word"]}
    )
    gate_images: bool = field(
        default=True, metadata={"help": "let the gate see the posts' images, where there are any"}
    )
    gate_epochs: int = field(default=40, metadata={"help": "epochs of the gate over the experts' cached outputs"})
    gate_batch_size: int = field(default=32, metadata={"help": "posts of a batch of the gate"})
    gate_learning_rate: float = field(default=1e-3, metadata={"help": "of the gate"})
    image_dropout: float = field(default=0.1, metadata={"help": "share of images hidden from the gate in training"})
    load_balancing: float = field(default=0.0, metadata={"help": "weight of the term that evens out the experts' use"})
    gate_entropy: float = field(default=0.0, metadata={"help": "weight of the gate's entropy in the loss"})
    decoding: str = field(
        default="viterbi",
        metadata={
            "help": "tags of entities: the best valid sequence, or each word's best (the paper); both are scored",
            "choices": ["viterbi", "word"],
        },
    )
    train_experts: bool = field(
        default=False, metadata={"help": "train the experts along, for --num_train_epochs at --learning_rate"}
    )
    copy_experts: bool = field(
        default=True, metadata={"help": "save the experts with the mixture, instead of their names"}
    )
    cache_expert_outputs: bool = field(default=True, metadata={"help": "keep the experts' outputs for later runs"})


@dataclass
class HubArguments:
    """A group of options that say what is published, and where."""

    push_to_hub: bool = field(default=False, metadata={"help": "upload model, processor, scores and card at the end"})
    push_predictions: bool = field(
        default=False, metadata={"help": "upload the predictions, too: they hold the posts' words"}
    )
    hub_model_id: str | None = field(default=None, metadata={"help": "ORG/NAME to upload to"})
    hub_private: bool = field(
        default=False, metadata={"help": "create that repository private; else as the account or organisation has it"}
    )


@dataclass
class Arguments:
    """A set of all options of a run.

    Attributes:
        data: the posts and their knowledge.
        model: the encoder or expert, its head and loss.
        training: how to train, what else to do, and where to write.
        mixture: how experts are mixed.
        hub: what is published.
    """

    data: DataArguments = field(default_factory=DataArguments)
    model: ModelArguments = field(default_factory=ModelArguments)
    training: TrainingArguments = field(default_factory=TrainingArguments)
    mixture: MixtureArguments = field(default_factory=MixtureArguments)
    hub: HubArguments = field(default_factory=HubArguments)

    @property
    def posts(self) -> str | None:
        """Return the name of the posts that are trained on or scored, or None if the run only predicts."""
        return self.data.dataset or self.data.test_file or self.data.validation_file or self.data.train_file

    @property
    def trains(self) -> bool:
        """Return whether the run trains, rather than just scores a given model or predicts."""
        return self.training.do_train and self.posts is not None

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the runs; a scoring has only one, since its result is the same with every seed."""
        return (self.training.seeds if self.training.do_train else []) or [self.training.seed]

    def each_seed(self) -> Iterator[Arguments]:
        """Yield the options of the run with each seed; several seeds have a folder each."""
        for seed in self.seeds:
            folder = Path(self.training.output_dir)
            folder = folder / f"seed-{seed}" if len(self.seeds) > 1 else folder
            yield replace(self, training=replace(self.training, seed=seed, output_dir=str(folder)))

    def options(self) -> dict[str, Any]:
        """Return all options by name, for an options file; a run repeated from it must not overwrite this one."""
        parts = (asdict(part) for part in vars(self).values())
        return {name: value for part in parts for name, value in part.items()} | {"overwrite_output_dir": False}
