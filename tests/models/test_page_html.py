"""What the page makes of sources, probabilities and words of others."""

import pytest

from modeling_more.page_html import entities_table, evidence_cards, link_of, percent, relation_table, weights_bars

HOSTILE = "<script>alert(1)</script>\"'&"


@pytest.mark.parametrize(
    "source, link",
    [
        ("https://en.wikipedia.org/wiki/Lindau", "https://en.wikipedia.org/wiki/Lindau"),
        ("enwiki:12345", "https://en.wikipedia.org/?curid=12345"),
        ("zh_min_nanwiki:7", "https://zh-min-nan.wikipedia.org/?curid=7"),
        ("simplewiki:7", "https://simple.wikipedia.org/?curid=7"),
        ("enwiki:Lindau", None), ("evil.example/enwiki:7", None), ("demo-00001", None), ("", None), (None, None),
        ("javascript:alert(1)", None), ("https://", None), ("https://[bad", None), ("https://a b.example/", None),
        ("https://example.org/\"onclick=alert(1)", None), ("//example.org", None), ("data:text/html,x", None),
        ("https://example.org/" + "a" * 3000, None), ("https://example.org/\u202e", None), ("../etc/passwd", None),
    ],
)  # fmt: skip
def test_links_are_what_the_source_says(source, link):
    assert link_of({"source": source}) == link


def test_a_picture_is_known_by_the_title_of_its_article():
    assert link_of({"source": "enwiki:1984 (novel)", "image": 3}) == "https://en.wikipedia.org/wiki/1984_%28novel%29"
    assert link_of({"source": "enwiki:A/../?x=1#y", "image": 3}) == "https://en.wikipedia.org/wiki/A/../%3Fx%3D1%23y"


def test_percents_never_claim_certainty():
    told = {1.0: "100 %", 0.9999: "> 99 %", 0.994: "99 %", 0.5: "50 %", 0.004: "< 1 %", 0.0: "0 %"}
    assert {number: percent(number).replace("\xa0", " ") for number in told} == told


def test_everything_from_outside_is_escaped():
    entity = {"type": HOSTILE, "text": HOSTILE, "start": 0, "end": 1, "score": 0.5}
    relation = {
        "relation": HOSTILE,
        "score": 0.5,
        "head_text": HOSTILE,
        "tail_text": HOSTILE,
        "experts": {HOSTILE: HOSTILE},
    }
    entry = {"title": HOSTILE, "sentence": HOSTILE, "score": 1.0, "source": HOSTILE, "image": 0}
    parts = [
        entities_table({"entities": [entity], "experts": {HOSTILE: [entity]}}),
        relation_table({**relation, "experts": {HOSTILE: HOSTILE}}),
        weights_bars({HOSTILE: 0.5}),
        evidence_cards({HOSTILE: [entry], "b": []}, {"b": HOSTILE}, lambda name, row: f"data:{HOSTILE}"),
    ]
    for part in parts:
        assert "<script" not in part and "&lt;script&gt;" in part and '"\'&"' not in part


def test_an_expert_that_found_something_else_has_its_own_row():
    mine = {"type": "PER", "text": "Ada", "start": 0, "end": 1, "score": 0.9}
    other = {"type": "LOC", "text": "Oslo", "start": 3, "end": 4, "score": 0.6}
    table = entities_table({"entities": [mine], "experts": {"text": [mine], "image": [other]}})
    assert "<td>Ada</td><td><b>PER</b> 90" in table
    assert "<td>Oslo</td><td>–</td><td>–</td><td><b>LOC</b> 60" in table
    assert "No entity was found" in entities_table({"entities": []})
