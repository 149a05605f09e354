"""Texts of others that try to be HTML, Markdown or YAML on a card, and the card as a reader sees it."""

from huggingface_hub import ModelCard

HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "a|b",
    "a\n\n<b>bold</b>",
    "`<i>x</i>`",
    "![seen](http://example.org/x.png)",
    "[click](javascript:alert(1))",
    "**loud** \\`<u>x</u>",
    "_loud_ __loud__ ~~gone~~ C# ##",
    "a\n```\n<script>alert(2)</script>\n```",
    "a\n---\ntags: [x]",
    "&lt;s&gt;",
)


def rendered(card: str) -> str:
    """The card's text as HTML, by the rules of CommonMark with tables: raw HTML passes, as on the Hub."""
    import markdown_it

    return markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render(ModelCard(card).text)
