"""The published layouts: small files as published, and the real ones where they are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tests.tasks.test_questions import everything, table, task

from fairlead.core.errors import LoadError, PlanError
from fairlead.core.fake import FakeSubject

DATA = Path(__file__).parents[3] / "shared" / "data"
here = pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")

FIGQA = [
    {"startphrase": f"As {w} as a {n}", "ending1": f"It is {w}.", "ending2": f"It is not {w} at all.", "labels": k,
     "valid": 1, "qid": q}
    for q, w in enumerate(("big", "old", "wet", "red")) for k, n in enumerate(("house", "pin"))
]  # fmt: skip
SVAMP = [
    {"ID": "chal-1", "Body": "Each pack costs 76 dollars", "Question": "How much is a pack?",
     "Equation": "( 76.0 - 25.0 )", "Answer": 51.0, "Type": "Subtraction"},
    {"ID": "chal-2", "Body": "Each pack costs 12.5 dollars", "Question": "How much are two?",
     "Equation": "( ( 12.5 * 2.0 ) / 1.0 )", "Answer": 25.0, "Type": "Common-Divison"},
]  # fmt: skip
GSM8K = [{"question": "A robe takes 2 bolts and 1,000 more?", "answer": "It <<1+1=2>>2\nthen <<2+1=3>>3\n#### 1,002"}]
HARD = [{"input": "A robe takes 2287720 bolts?", "code": "def solution(): ...", "target": -9867630.0}]
ARITH = [{"input": "Debby had 32 pieces?", "target": 39}]
MATH = [{"problem": "Find $x$.", "solution": "...", "answer": "\\frac{14}{3}", "subject": "Algebra", "level": 3,
         "unique_id": "test/1"}]  # fmt: skip
MOHX = [
    {"arg1": "cost", "arg2": "", "verb": "absorb", "sentence": " He absorbed the costs .", "verb_idx": 1, "label": 1},
    {"arg1": "sea", "arg2": "", "verb": "absorb", "sentence": " It was what was absorbed .", "verb_idx": 4, "label": 0},
    {"arg1": "", "arg2": "", "verb": "be", "sentence": "It was what was said .", "verb_idx": 3, "label": 0},
]  # fmt: skip
TROFI = [{"verb": "drown", "sentence": "The river drowned him .", "verb_idx": 2, "label": 0}]
ANNOTATED = [
    {"verb": "drown", "sentence": "The noise drowned him .", "human_label": "nonliteral", "cluster_label": "N"}
]
VUA = [
    {"text_idx": "a3m", "sentence_idx": 45, "verb": v, "sentence": "Crossed lines , says he", "verb_idx": i, "label": k}
    for v, i, k in (("cross", 0, 1), ("say", 3, 0))
]  # fmt: skip
ASDIV = """<?xml version="1.0" encoding="UTF-8"?>
<Machine-Reading-Corpus-File><ProblemSet>
<Problem ID="nluds-0001" Grade="2" Source="http://x"><Body>7 red apples and 2 green.</Body>
<Question>How many apples?</Question><Solution-Type>Addition</Solution-Type><Answer>9 (apples)</Answer>
<Formula>7+2=9</Formula></Problem>
<Problem ID="nluds-0002" Grade="3" Source="http://x"><Body>Two sides.</Body><Question>Which ratio?</Question>
<Solution-Type>Ratio</Solution-Type><Answer>3:4</Answer><Formula>3:4</Formula></Problem>
</ProblemSet></Machine-Reading-Corpus-File>"""


@pytest.mark.parametrize(
    ("plugin", "rows", "layout", "ending", "answer", "extra"),
    [
        ("maths", SVAMP, "svamp", "json", "51", {"question": "How much is a pack?", "difficulty": 1.0}),
        ("maths", GSM8K, "gsm8k", "jsonl", "1002", {"difficulty": 2.0}),
        ("maths", HARD, "gsm_hard", "jsonl", "-9867630", {}),
        ("maths", ARITH, "multiarith", "jsonl", "39", {}),
        ("maths", MATH, "math500", "json", "\\frac{14}{3}", {"difficulty": 3.0}),
        ("metaphor", FIGQA, "figqa", "csv", "It is big.", {"paraphrase": "It is big.", "pair": "As big as a pin"}),
        ("metaphor", MOHX, "moh_x", "csv", "metaphorical",
         {"question": 'Is "absorbed" used literally or metaphorically?'}),
        ("metaphor", TROFI, "trofi", "csv", "literal", {"question": 'Is "drowned" used literally or metaphorically?'}),
        ("metaphor", ANNOTATED, "trofi", "csv", "metaphorical", {}),
        ("metaphor", VUA, "vua", "csv", "metaphorical", {"question": 'Is "Crossed" used literally or metaphorically?'}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("own", [True, False])
def test_layouts_are_found_by_their_columns(tmp_path, plugin, rows, layout, ending, answer, extra, own: bool):
    found = task(table(tmp_path / f"file.{ending}", rows), plugin if own else "questions")
    assert found.table.layout.name == layout and found.name == (plugin if own else "questions")
    item = min(everything(found), key=lambda i: i.data["line"])
    assert item.data["answer"] == answer and item.strata["kind"] == layout
    assert {key: item.data.get(key) for key in extra} == extra
    content = found.question(item).messages[0].content
    assert (
        item.data["text"] in content
        and item.data.get("question", "") in content
        and "{" not in content.replace("\\boxed{}", "")
    )


def test_the_word_that_is_asked_about_is_told_from_others_like_it(tmp_path: Path):
    found = {i.data["text"]: i.data for i in everything(task(table(tmp_path / "m.csv", MOHX), "metaphor"))}
    assert found["It was what was said ."]["question"] == 'Is the second "was" used literally or metaphorically?'
    assert found["It was what was absorbed ."]["choices"] == ["literal", "metaphorical"]


def test_verbs_are_clusters_and_a_text_of_two_is_asked_once(tmp_path: Path):
    rows = [{"verb": v, "sentence": s, "verb_idx": 0, "label": 0} for v, s in
            (("eat", "Eat it ."), ("eat", "Eat and run ."), ("run", "Eat and run ."), ("run", "Run ."))]  # fmt: skip
    found = task(table(tmp_path / "t.csv", rows), "metaphor")
    assert found.notes == ("1 left out: its text stands above, in another cluster (line 4)",)
    assert sorted(Counter(i.cluster for i in everything(found)).values()) == [1, 2]


def test_pairs_and_templates_are_clusters(tmp_path: Path):
    found = task(table(tmp_path / "f.csv", FIGQA), "metaphor")
    assert set(Counter(i.cluster for i in everything(found)).values()) == {2}
    maths = task(table(tmp_path / "s.json", SVAMP), "maths")
    assert len({i.cluster for i in everything(maths)}) == 1, "they differ in their numbers only"
    assert {i.strata["type"] for i in everything(maths)} == {"Subtraction", "Common-Division"}


def test_asdiv_is_read_from_its_xml(tmp_path: Path):
    file = tmp_path / "ASDiv.xml"
    file.write_text(ASDIV, encoding="utf-8")
    found = task(file, "maths")
    (item,) = everything(found)
    assert item.data == {
        "text": "7 red apples and 2 green.", "question": "How many apples?", "answer": "9", "difficulty": 2.0,
        "line": 1,
    }  # fmt: skip
    assert item.strata == {"kind": "asdiv", "type": "Addition"}
    assert found.notes == ("1 left out: the answer is no single number (row 2)",)
    for text, says in (
        (ASDIV[:200], "is not XML"),
        ("<!DOCTYPE x>" + ASDIV[39:], "document type"),
        ("<a/>", "no rows"),
    ):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(LoadError, match=says):
            task(file, "maths")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"labels": -1}, "the label is hidden (-1)"), ({"labels": 2}, "the label is neither 0 nor 1"),
        ({"labels": ""}, "the label is neither 0 nor 1"), ({"valid": 0}, "marked as not valid"),
        ({"ending1": "same", "ending2": "same"}, "both endings are the same"),
        ({"startphrase": ""}, "startphrase is empty"),
    ],
)  # fmt: skip
def test_figqa_rows_that_cannot_be_asked(tmp_path: Path, change: dict[str, Any], reason: str):
    found = task(table(tmp_path / "f.csv", [{**FIGQA[0], **change}, *FIGQA[1:]]), "metaphor")
    assert found.notes == (f"1 left out: {reason} (line 2)",)
    assert all("pair" not in i.data for i in everything(found) if i.data["text"] == FIGQA[1]["startphrase"])


def test_a_file_of_hidden_labels_says_so(tmp_path: Path):
    with pytest.raises(LoadError, match="8 left out: the label is hidden"):
        task(table(tmp_path / "f.csv", [{**row, "labels": -1} for row in FIGQA]), "metaphor")


def test_a_wrong_layout_names_the_missing_column(tmp_path: Path):
    rows = [{"startphrase": "a", "ending1": "b", "ending_2": "c", "labels": 0}]
    with pytest.raises(LoadError, match="(?s)no column 'ending2'.*figqa.*'ending_2'"):
        task(table(tmp_path / "f.csv", rows), "metaphor", layout="figqa")
    with pytest.raises(LoadError, match="(?s)none of the known layouts.*figqa: startphrase.*'ending_2'"):
        task(table(tmp_path / "f.csv", rows), "metaphor")
    with pytest.raises(PlanError, match="layout"):
        task(table(tmp_path / "f.csv", rows), "metaphor", layout="svamp")
    with pytest.raises(LoadError, match="no column 'human_label'|no column 'verb_idx'"):
        task(table(tmp_path / "f.csv", [{"verb": "a", "sentence": "b", "c": 1}]), "metaphor", layout="trofi")


def test_a_table_of_questions_and_answers_is_no_gsm8k(tmp_path: Path):
    rows = [{"question": "Where?", "answer": "Rome"}, {"question": "When?", "answer": "noon"}]
    assert task(table(tmp_path / "q.csv", rows)).table.layout.name == "table"
    with pytest.raises(LoadError, match="none of the known layouts"):
        task(table(tmp_path / "q.csv", rows), "maths")
    assert task(table(tmp_path / "i.csv", [{"input": "Where?", "target": "Rome"}])).table.layout.name == "table"


@pytest.mark.parametrize("answer", ["none", "", "1 or 2", True, None, [3]])
def test_maths_answers_are_numbers(tmp_path: Path, answer: Any):
    found = task(table(tmp_path / "a.jsonl", [*ARITH, {"input": "x?", "target": answer}]), "maths")
    assert len(everything(found)) == 1 and len(found.notes) == 1 and "(line 2)" in found.notes[0]


# ---- the real files


@here
@pytest.mark.parametrize(("file", "n"), [("dev", 1094), ("train", 1458), ("train_xl", 8008)])
def test_figqa(file: str, n: int):
    found = task(DATA / "fig-qa" / f"{file}.csv", "metaphor")
    items = everything(found)
    assert len(items) == n and len({i.id for i in items}) == n
    assert all(i.data["pair"] and i.data["paraphrase"] == i.data["answer"] in i.data["choices"] for i in items)
    assert Counter(i.strata["label"] for i in items) == {"first": n // 2, "second": n // 2}
    assert max(Counter(i.cluster for i in items).values()) <= 4 and len(found.notes) == (file == "train_xl")


@here
async def test_svamp_and_gsm8k_answer_themselves():
    for file, n in (("svamp/SVAMP.json", 1000), ("gsm8k/test.jsonl", 1319)):
        found = task(DATA / file, "maths")
        items = everything(found)
        assert len(items) == n and found.notes == ()
        assert sum("difficulty" in i.data for i in items) > 0.9 * n
        for item in items[:: n // 100]:
            world = FakeSubject(lambda *_, gold=item.data["answer"]: f"Of 3 and 4: the answer is ${gold}.")
            outcome = await found.run(item, world)
            assert found.score(item, outcome).values["strict"], (item, outcome.data)
