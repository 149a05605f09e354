"""Serve a page on which models are tried by hand: entities, the knowledge that was read, the experts' weights.

python spaces/more/app.py --model ORG/NAME --relation_model ORG/RELATIONS --knowledge wiki=articles.jsonl
"""

from __future__ import annotations

import argparse
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .foreign import line_objects
from .naming import NamingParser

MAX_EXAMPLES = 6
EXAMPLES = ("Rivera joins Northfield United", "A rainy morning in Lindau, on the shore of Lake Constance")
MISSING = 'the page needs gradio, which is not installed here: pip install "modeling-more[space]"'

Example = tuple[str, Any]  # text, and a picture or None


def build(
    models: Sequence[str | Path],
    relation_model: str | Path | None = None,
    knowledge: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[Example] = (),
    cache_dir: str | Path | None = None,
) -> Any:
    """Return the page as a `gradio.Blocks`, with all models loaded.

    Args:
        models: folders or ids of the Hub, of models for entities: experts or mixtures.
        relation_model: the same of one for relations.
        knowledge: corpora (lists of files, folders, ids of the Hub) by the names that are shown; each may be chosen
            instead of that of the training.
        examples: texts with a picture or None, see `read_examples`.
        cache_dir: the folder of corpora and indices.

    Raises:
        ValueError, OSError: gradio is not installed, or a model or a corpus can't be loaded; the sentence names it.
    """
    make_blocks = _gradio().make_blocks
    from .page_reading import PageReader  # here, as it loads torch, which --help need not wait for

    reader = PageReader.open(models, relation_model, knowledge, cache_dir)
    return make_blocks(reader, examples or [(text, None) for text in EXAMPLES])


def serve(
    models: Sequence[str | Path],
    relation_model: str | Path | None = None,
    knowledge: Mapping[str, Sequence[str]] | None = None,
    examples: Sequence[Example] = (),
    cache_dir: str | Path | None = None,
    host: str | None = None,
    port: int | None = None,
) -> None:
    """Build the page and serve it until the program is ended; see `build`.

    Args:
        host: default: this machine alone; on a Space what its environment says.
        port: default: the first free one from 7860 on.
    """
    page = build(models, relation_model, knowledge, examples, cache_dir)
    _gradio().launch(page, host, port)


def read_examples(file: str | Path) -> list[Example]:
    """Return the examples in a JSONL file, {"text", "image"?}: an image is a file in the folder of the JSONL file.

    Raises:
        ValueError, OSError: a line or a picture can't be read; the sentence names file and line.
    """
    from .knowledge.pictures import named_file
    from .page_reading import check_image

    found: list[Example] = []
    for where, row in line_objects(Path(file)):
        if not isinstance(text := row.get("text"), str) or not text.strip():
            raise ValueError(f'{where}: an example has a "text".')
        picture = None
        if (name := row.get("image")) is not None:
            try:
                picture = check_image(named_file(str(name), Path(file).parent).read_bytes())
            except (ValueError, OSError) as error:
                raise ValueError(f"{where}: the picture {name!r:.80} can't be used: {error}") from None
        found.append((text, picture))
        if len(found) == MAX_EXAMPLES:
            break
    return found


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `main` to a parser; --model is not among them."""
    parser.add_argument("--relation_model", metavar="MODEL", help="a model for relations; default: $RELATION_MODEL")
    parser.add_argument(
        "--knowledge", nargs="+", metavar="NAME=SOURCE", type=named_corpus, default=None,
        help="corpora that may be searched instead of that of the training: a file, a folder or an id of the Hub, "
        "several with commas between them; default: $KNOWLEDGE",
    )  # fmt: skip
    parser.add_argument(
        "--examples", metavar="FILE", help='JSONL {"text", "image"?}, images in its folder; default: $EXAMPLES'
    )
    parser.add_argument("--cache_dir", help="of corpora and indices")
    parser.add_argument("--host", help="address to listen at; default: this machine alone")
    parser.add_argument("--port", type=int, help="default: the first free one from 7860 on")


def serve_options(models: Sequence[str | Path], options: argparse.Namespace) -> None:
    """Serve the page as the options of `add_options` say."""
    named = options.knowledge if options.knowledge is not None else _of_environment("KNOWLEDGE", named_corpus)
    examples = options.examples or os.environ.get("EXAMPLES")
    serve(
        models,
        options.relation_model or os.environ.get("RELATION_MODEL") or None,
        by_name(named),
        read_examples(examples) if examples else (),
        options.cache_dir,
        options.host,
        options.port,
    )


def named_corpus(told: str) -> tuple[str, list[str]]:
    """Return the name and the sources of a corpus, NAME=SOURCE,…; without a name it has that of its first source."""
    name, equals, sources = told.partition("=")
    given = [one for one in (sources if equals else told).split(",") if one]
    if not given or not name.strip():
        raise ValueError(f"{told!r} names no corpus: give NAME=SOURCE")
    return (name if equals else Path(given[0]).name), given


def by_name(named: Sequence[tuple[str, list[str]]]) -> dict[str, list[str]]:
    """Return corpora by their names, or raise ValueError where two have the same."""
    names = [name for name, _ in named]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"--knowledge gives {min(twice)} twice: give each corpus a name of its own, NAME=SOURCE")
    return dict(named)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; what is wrong with its options or models ends it with one sentence."""
    parser = NamingParser(
        "spaces/more/app.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", nargs="+", metavar="MODEL", help="folders or ids of the Hub, for entities; default: $MODELS"
    )
    add_options(parser)
    options = parser.parse_args(argv)
    models = options.model or _of_environment("MODELS", str)
    if not models:
        parser.error("name a model: --model FOLDER_OR_ID, or the environment variable MODELS")
    from .training.command_line import one_sentence_errors

    with one_sentence_errors():
        serve_options(models, options)


def _gradio() -> Any:
    try:
        from . import page_blocks
    except ModuleNotFoundError as error:
        if error.name != "gradio":
            raise
        raise ValueError(MISSING) from None
    return page_blocks


def _of_environment(name: str, kind: Any) -> list[Any]:
    """Return the values of an environment variable, which stand between blanks as on a command line."""
    return [kind(one) for one in shlex.split(os.environ.get(name, ""))]


if __name__ == "__main__":
    main()
