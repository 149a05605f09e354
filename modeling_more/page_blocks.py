"""Lay out the page in Gradio: inputs, what is shown, the queue; no path or address of a client is opened."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.data_classes import ImageData
from PIL import Image
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .foreign import lies_inside, require_regular
from .page_html import STYLE
from .page_reading import AS_TRAINED, MAX_CHARACTERS, MAX_IMAGE_BYTES, PageReader

MAX_WAITING = 32  # posts in the queue; who comes then is asked to try again
MAX_SESSIONS = 200  # visitors of whom Gradio keeps what it showed last, in memory
MAX_BODY = 200_000  # bytes of a request that is no upload
KEPT_SECONDS = 1800  # that uploads stay on the disk
TYPE_COLOURS = ("#2f6db3", "#b3592f", "#3c8c6a", "#7b4fa3", "#a38a1f", "#b0436e", "#4a7d8c", "#6b7280")
CSS = (
    STYLE
    + """
.gradio-container { max-width: 78rem !important; margin: 0 auto !important }
.more-head h1 { margin: .2rem 0 } .more-head p { margin: .2rem 0 }
.more-examples { gap: .4rem !important } .more-examples h4 { margin: 0 }
.more-example { justify-content: flex-start !important; text-align: left; font-weight: 400 }
:is(button, a):focus-visible { outline: 3px solid var(--color-accent); outline-offset: 2px }
"""
)
#: where the screen is narrow, what was found stands below it
SHOW = "() => { if (innerWidth < 700) document.getElementById('marked')?.scrollIntoView({behavior: 'smooth'}) }"
HEAD = (
    '<div class="more-head"><h1>Entities, and what was read to find them</h1><p>Type a post, add its picture if it '
    "has one, and press <b>Read</b> (or Shift+Enter). Knowledge is searched for it, and read beside it.</p></div>"
)


def uploaded_picture(**options: Any) -> gr.Image:
    """Return an image input that gives the bytes of an uploaded file, undecoded, and takes nothing but uploads.

    Gradio would download an address that a client names, and decode a file in any format that Pillow knows. A class of
    its own would be the plain way, but Gradio writes a stub file beside the source of each.
    """
    picture: Any = gr.Image(**options)
    move = picture.async_move_resource_to_block_cache

    async def move_uploads(place: str | Path | None) -> str | None:
        if place is not None and "://" in str(place):
            raise _error("A picture is uploaded, its address isn't opened.")
        moved: str | None = await move(place)
        return moved

    def content(payload: ImageData | None) -> bytes | None:
        if payload is None:
            return None
        try:
            if payload.path and lies_inside(picture.GRADIO_CACHE, payload.path):
                with require_regular(payload.path).open("rb") as file:
                    return file.read(MAX_IMAGE_BYTES + 1)
        except (ValueError, OSError):
            pass
        raise _error("The picture is not here (any more): upload it again.")

    picture.async_move_resource_to_block_cache, picture.preprocess = move_uploads, content
    found: gr.Image = picture
    return found


class BodyLimit:
    """Middleware that ends requests whose body is larger than what the page can need, before it is in memory."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        most = MAX_BODY + (MAX_IMAGE_BYTES if scope["path"].rstrip("/").endswith("/upload") else 0)
        length = dict(scope["headers"]).get(b"content-length", b"0")
        if not length.isdigit() or int(length) > most:
            await self._refuse(send)
            return
        seen = 0

        async def counted() -> Message:
            nonlocal seen
            message = await receive()
            seen += len(message.get("body", b""))
            # a body in chunks tells no length: from here on it reads as a client that is gone
            return {"type": "http.disconnect"} if seen > most else message

        await self.app(scope, counted, send)

    async def _refuse(self, send: Send) -> None:
        headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": 413, "headers": headers})
        await send({"type": "http.response.body", "body": b'{"detail": "The request is too large."}'})


def make_blocks(
    reader: PageReader, examples: Sequence[tuple[str, Image.Image | None]] = (), title: str = "MoRe"
) -> gr.Blocks:
    """Return the page of a reader, with its queue."""
    colours = _type_colours(reader)
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(KEPT_SECONDS // 3, KEPT_SECONDS)) as page:
        gr.HTML(HEAD, js_on_load=None)
        with gr.Row():
            with gr.Column(scale=2, min_width=300):
                text = gr.Textbox(
                    label="Post", lines=3, max_lines=10, max_length=MAX_CHARACTERS, elem_id="post", autofocus=True,
                    placeholder="Rivera joins Northfield United",
                )  # fmt: skip
                picture = uploaded_picture(
                    label="Picture (may be left out)", sources=["upload", "clipboard"], height=180, buttons=[],
                    elem_id="picture",
                )  # fmt: skip
                button = gr.Button("Read", variant="primary", elem_id="read")
                names = list(reader.models)
                with gr.Row():
                    model = gr.Dropdown(names, value=names[0], label="Model", elem_id="model", min_width=140)
                    corpus = gr.Dropdown(
                        reader.corpora, value=AS_TRAINED, label="Knowledge", elem_id="corpus", min_width=140
                    )
                with gr.Column(elem_classes="more-examples"):
                    gr.HTML("<h4>Examples</h4>", js_on_load=None)
                    for number, example in enumerate(examples):
                        _example_button(number, example, text, picture)
            with gr.Column(scale=3, min_width=300):
                marked = gr.HighlightedText(
                    label="Entities", color_map=colours, elem_id="marked", combine_adjacent=False, show_legend=False
                )
                opinions = gr.HTML(elem_id="opinions", js_on_load=None)
                weights = gr.HTML(elem_id="weights", js_on_load=None)
                chosen: list[Any] = []
                if reader.relations is not None:
                    with gr.Group():
                        with gr.Row():
                            chosen += [
                                gr.Dropdown([], label=label, elem_id=label.lower(), min_width=220)
                                for label in ("Head", "Tail")
                            ]
                        ask = gr.Button("Relation of the two", elem_id="relate")
                    related = gr.HTML(elem_id="relation", js_on_load=None)
        evidence = gr.HTML(elem_id="evidence", js_on_load=None)

        def read(model: str, corpus: str, text: str, image: bytes | None) -> list[Any]:
            with _told():
                shown = reader.read(model, corpus, text, image)
            heading = "<h3>What was read beside the post</h3>"
            found: list[Any] = [shown.marked, shown.opinions, shown.weights, heading + shown.evidence]
            if chosen:
                values = [value for _, value in shown.choices]
                first = (values + [None, None])[:2]
                found += [gr.Dropdown(choices=shown.choices, value=value) for value in first] + [""]
            return found

        inputs, outputs = [model, corpus, text, picture], [marked, opinions, weights, evidence, *chosen]
        outputs += [related] if chosen else []
        shared: Any = {"concurrency_limit": 1, "concurrency_id": "models", "show_progress": "minimal"}
        done = gr.on(
            [button.click, text.submit], read, inputs, outputs, api_name="read", trigger_mode="once", **shared
        )
        done.success(None, js=SHOW)
        if chosen:

            def relate(corpus: str, text: str, image: bytes | None, head: str | None, tail: str | None) -> str:
                with _told():
                    return reader.relate(corpus, text, image, head, tail)

            ask.click(relate, [corpus, text, picture, *chosen], related, api_name="relate", **shared)
    # Gradio makes a table of the calls that it remembers, 10,000 by default, after every call
    os.environ.setdefault("GRADIO_ANALYTICS_MAX_EVENTS", "100")
    page.queue(max_size=MAX_WAITING, default_concurrency_limit=1, api_open=False)
    return page


def launch(page: gr.Blocks, host: str, port: int | None, block: bool = True) -> Any:
    """Serve the page with its limits; files of this machine are not served, and nothing is sent elsewhere."""
    return page.launch(
        server_name=host,
        server_port=port,
        prevent_thread_lock=not block,
        allowed_paths=[],
        max_file_size=MAX_IMAGE_BYTES,
        state_session_capacity=MAX_SESSIONS,
        app_kwargs={"middleware": [Middleware(BodyLimit)]},
        css=CSS,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        footer_links=["api"],
        run_history=False,
        show_error=False,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        enable_monitoring=False,
    )


@contextmanager
def _told() -> Iterator[None]:
    """Show the sentence of an error of the input as a message, in which it is text."""
    try:
        yield
    except ValueError as error:
        raise _error(str(error)) from None


def _error(sentence: str) -> gr.Error:
    return gr.Error(escape(sentence), title="Not read", print_exception=False)


def _example_button(number: int, example: tuple[str, Image.Image | None], text: Any, picture: Any) -> None:
    words, image = example
    shown = words if len(words) <= 70 else f"{words[:69]}…"
    button = gr.Button(shown, size="sm", elem_id=f"example-{number}", elem_classes="more-example")
    button.click(lambda: (words, image), None, [text, picture], api_visibility="private", show_progress="hidden")


def _type_colours(reader: PageReader) -> dict[str, str]:
    """Return a colour for each type of the models, the same for the same type."""
    types: dict[str, None] = {}
    for pipe in reader.models.values():
        labels = pipe.model.config.id2label.values()
        types |= dict.fromkeys(label.partition("-")[2] for label in labels if "-" in label)
    return {name: TYPE_COLOURS[number % len(TYPE_COLOURS)] for number, name in enumerate(types)}
