"""Files of questions: what is read, what is left out and where it stood, how it is split and asked."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fairlead.core import plugins
from fairlead.core.errors import LoadError, PlanError
from fairlead.core.fake import FakeSubject
from fairlead.core.types import SPLITS
from fairlead.study.items import choose
from fairlead.tasks import _tables
from fairlead.tasks.questions import filled
from fairlead.tasks.questions.layouts import LONGEST

ALL = ("train", "validation", "test")


def table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as a file, by its ending: CSV, TSV, JSON lines or JSON."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    else:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return path


def sums(n: int, **more: Any) -> list[dict[str, Any]]:
    return [{"text": f"Ann has {i} pears, {name(i)} gives her 2.", "answer": i + 2, **more} for i in range(n)]


def name(i: int) -> str:
    """A name of its own for every number."""
    return "".join("BCDFGHJKLM"[int(d)] + "aeiouaeiou"[int(d)] for d in str(i))


def task(file: Path, plugin: str = "questions", **options: Any) -> Any:
    return plugins.get("tasks", plugin)({"file": str(file), **options})


def everything(found: Any) -> list[Any]:
    return [item for split in ALL for item in found.items(split)]


# ---- reading


@pytest.mark.parametrize("ending", ["csv", "tsv", "json", "jsonl"])
def test_every_format_gives_the_same_items(tmp_path: Path, ending: str):
    rows = sums(30)
    found = task(table(tmp_path / f"q.{ending}", rows))
    other = task(table(tmp_path / "other.csv", rows))
    strip = [(i.id, i.split, i.cluster, i.data["answer"]) for i in everything(found)]
    assert strip == [(i.id, i.split, i.cluster, i.data["answer"]) for i in everything(other)] and len(strip) == 30
    assert found.table.match == "number" and found.notes == ()


def test_parquet_is_read(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.Table.from_pylist(sums(6)), tmp_path / "q.parquet")
    assert len(everything(task(tmp_path / "q.parquet"))) == 6


def test_what_cannot_be_asked_is_counted_with_its_line(tmp_path: Path):
    file = tmp_path / "q.csv"
    long = "x" * (LONGEST + 1)
    file.write_text(f'text,answer\n"two\nlines",1\n,2\nthree,\n\nfour,4\n"two\nlines",1\n{long},5\n', encoding="utf-8")
    found = task(file)
    assert [i.data["line"] for i in sorted(everything(found), key=lambda i: i.data["line"])] == [2, 7]
    assert found.notes == (
        "1 left out: text is empty (line 4)",
        "1 left out: the answer is empty (line 5)",
        "1 left out: it repeats a row above (line 8)",
        f"1 left out: text is longer than {LONGEST:,} characters (line 10)",
    )


def test_columns_are_named_or_found(tmp_path: Path):
    rows = [{"sentence": f"It is {name(i)}.", "gold": "red", "ask": "Which?", "more": f"m{i}"} for i in range(4)]
    found = task(table(tmp_path / "q.csv", rows), question="ask", cluster="more", paraphrase="more")
    item = everything(found)[0]
    assert item.data["question"] == "Which?" and item.data["answer"] == "red" and item.data["paraphrase"][0] == "m"
    assert found.table.match == "exact" and found.prompt == "{text}\n{question}"
    alone = task(table(tmp_path / "alone.csv", [{"question": "How many?", "answer": "3 or so"}]))
    assert everything(alone)[0].data["text"] == "How many?"


def test_choices_are_lists_or_bars_and_answers_letters(tmp_path: Path):
    rows = [
        {"text": "Sky?", "answer": "blue", "choices": "red | blue"},
        {"text": "Grass?", "answer": "B", "choices": '["red", "green"]'},
        {"text": "Sea?", "answer": "black", "choices": "red|blue"},
        {"text": "Sun?", "answer": "red", "choices": "red"},
        {"text": "Moon?", "answer": "red", "choices": "[1"},
    ]
    found = task(table(tmp_path / "q.csv", rows))
    assert {i.data["text"]: i.data["answer"] for i in everything(found)} == {"Sky?": "blue", "Grass?": "green"}
    assert found.table.match == "choice" and found.chosen_only and found.has_choices
    assert [reason for reason in found.table.left_out] == [
        "the answer is none of the choices", "the choices are not 2 to 100 different texts", "the choices are no list",
    ]  # fmt: skip
    assert (
        "\n- red\n- blue"
        in found.question(next(i for i in everything(found) if i.data["text"] == "Sky?")).messages[0].content
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no rows"), ("text,answer\n", "no rows"), ("text,text,answer\n1,2,3\n", "column twice"),
        ("text,label2\na,b\n", "no column for the answer"), ("a,answer\nx,y\n", "no column for the text"),
        ("text,answer\n,\n x,\n", "no row that can be asked"), ("text,answer\nx,y,z\n", "more cells"),
        ("text,answer\nx\0,1\n", "NUL"),
    ],
)  # fmt: skip
def test_bad_files_say_what_is_wrong(tmp_path: Path, text: str, says: str):
    (tmp_path / "q.csv").write_text(text, encoding="utf-8")
    with pytest.raises(LoadError, match=says):
        task(tmp_path / "q.csv")


def test_other_bad_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(LoadError, match="cannot be read"):
        task(tmp_path / "none.csv")
    (tmp_path / "latin.csv").write_bytes("text,answer\ncaf\xe9,1\n".encode("latin-1"))
    with pytest.raises(LoadError, match="line 2 is not UTF-8"):
        task(tmp_path / "latin.csv")
    file = table(tmp_path / "q.csv", sums(5))
    with pytest.raises(LoadError, match="not the file of this plan"):
        task(file, sha256="0" * 64)
    monkeypatch.setattr(_tables, "MOST", 3)
    with pytest.raises(LoadError, match="too many rows"):
        task(file)
    monkeypatch.setattr(_tables, "BYTES", 3)
    with pytest.raises(LoadError, match="too large"):
        task(file)


# ---- splits


def test_clusters_lie_in_one_split_and_stay_there(tmp_path: Path):
    rows = [{"text": f"{name(i)}?", "answer": i, "cluster": f"c{i // 3}"} for i in range(300)]
    found = task(table(tmp_path / "q.csv", rows))
    where = {}
    for item in everything(found):
        assert where.setdefault(item.cluster, item.split) == item.split and int(item.cluster, 16) >= 0
    assert len(where) == 100 and set(where.values()) == set(ALL) < set(SPLITS)
    share = Counter(where.values())
    assert 25 <= share["train"] <= 55 and 8 <= share["validation"] <= 34 and 25 <= share["test"] <= 55
    fewer = task(table(tmp_path / "fewer.csv", rows[30:]))
    assert {i.id: i.split for i in everything(fewer)}.items() <= {i.id: i.split for i in everything(found)}.items()
    assert len({i.cluster for i in choose(found.items("test"), 5, {}, "test")}) == 5


def test_one_text_is_one_cluster(tmp_path: Path):
    rows = [{"text": "  The SAME text", "answer": i, "cluster": f"c{i}"} for i in range(4)]
    found = task(table(tmp_path / "q.csv", [*rows, {"text": "the same  text", "answer": 9, "cluster": "c9"}]))
    assert len({i.cluster for i in everything(found)}) == 1 and len(everything(found)) == 5


def test_a_cluster_that_is_most_of_the_file_is_said(tmp_path: Path):
    rows = [{"text": f"{name(i)}?", "answer": i, "cluster": "all" if i < 20 else f"c{i}"} for i in range(30)]
    assert task(table(tmp_path / "q.csv", rows)).notes == (
        "one cluster holds 20 of 30 questions: they share texts, or what `cluster` names",
    )


def test_a_split_column_decides(tmp_path: Path):
    words = ["discover", "dev", "test", "Train"]
    rows = [{"text": f"{name(i)}?", "answer": i, "split": words[i % 4]} for i in range(8)]
    found = task(table(tmp_path / "q.csv", rows))
    assert [len(found.items(split)) for split in ALL] == [4, 2, 2]
    rows[0]["split"] = "tset"
    with pytest.raises(LoadError, match="line 2: there is no such split"):
        task(table(tmp_path / "q.csv", rows))
    rows[0] = {"text": f"{name(2)}?", "answer": 7, "split": "train"}
    with pytest.raises(LoadError, match="lines 2 and 4 belong together"):
        task(table(tmp_path / "q.csv", rows))


def test_the_manifest_is_of_what_is_asked(tmp_path: Path):
    one, two = task(table(tmp_path / "a.csv", sums(9))), task(table(tmp_path / "b.json", sums(9)))
    ids = [[i.id for i in t.items("test")] for t in (one, two)]
    assert ids[0] == ids[1] and one.manifest("test") != one.manifest("train")
    assert one.manifest("test") != task(tmp_path / "a.csv", prompt="Q: {text}").manifest("test")
    again = task(table(tmp_path / "c.csv", sums(9)))
    assert again.manifest("test") == one.manifest("test")


# ---- prompts and options


def test_a_template_is_filled_once():
    parts = {"text": "{question} {{", "question": "Q", "choices": ("a", "b")}
    assert filled("{text}|{question}|{choices}|\\boxed{{}}", parts) == "{question} {{|Q|- a\n- b|\\boxed{}"


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("Answer.", "does not hold the text"), ("{text} {question}", r"expected: \{text\}\n"),
        ("{text} {choices}", "placeholder"), ("{text} {txet}", "{txet}"), ("{{text}}", "does not hold the text"),
    ],
)  # fmt: skip
def test_placeholders_that_there_are_not(tmp_path: Path, prompt: str, says: str):
    with pytest.raises(PlanError, match=says):
        task(table(tmp_path / "q.csv", sums(4)), prompt=prompt)


@pytest.mark.parametrize(
    "options",
    [
        {"fiel": "x"}, {"layout": "gsm"}, {"match": "regex"}, {"match": "choice"}, {"shares": [1, 2]},
        {"shares": [0, 0, 0]}, {"max_tokens": -1}, {"max_tokens": 99_999}, {"decoding": "greedy"}, {"prompt": 3},
        {"layout": "svamp", "text": "text"},
    ],
)  # fmt: skip
def test_bad_options_are_plan_errors(tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(PlanError):
        task(table(tmp_path / "q.csv", sums(4)), **options)
    with pytest.raises(PlanError, match="needs a file"):
        plugins.get("tasks", "questions")({})


def test_a_column_that_is_not_there_names_the_nearest(tmp_path: Path):
    with pytest.raises(LoadError, match="did you mean 'answer'"):
        task(table(tmp_path / "q.csv", sums(4)), answer="anwser")


async def test_a_question_is_asked_and_scored(tmp_path: Path):
    found = task(table(tmp_path / "q.csv", sums(40)), prompt="Say it. {text}", max_tokens=7)
    item = found.items("test")[0]
    right = await found.run(item, FakeSubject(lambda m, legal, _s: f"So {item.data['answer']}."))
    assert found.score(item, right).values["strict"] is True and right.decisions[0].messages[0].content[:7] == "Say it."
    wrong = await found.run(item, FakeSubject(lambda *_: "none"))
    assert found.score(item, wrong).values == {
        "strict": False, "loose": False, "answered": False, "annotated": False, "leaked": None,
    }  # fmt: skip
    assert item.data["answer"] in right.decisions[0].legal and len(right.decisions[0].legal) == 5
    assert not found.has_choices and not found.chosen_only
