"""Tables of texts: what is read, what is refused and why, and which part a row falls in."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from fairlead.core.claims import Prediction
from fairlead.core.errors import LoadError, PlanError
from fairlead.tasks.hypotheses import HypothesesTask
from fairlead.tasks.hypotheses.read import LONGEST, Columns, read_table
from fairlead.tasks.hypotheses.splits import PARTS, assign

ONE = Columns(("text",), "label")


def table(path: Path, text: str, columns: Columns = ONE):
    path.write_text(text, encoding="utf-8")
    return read_table(path, columns)


def rows(n: int = 200, seed: int = 0):
    rng = random.Random(seed)
    return [{"text": f"word{rng.randint(0, 10**6)} number {i}", "label": str(rng.randint(0, 1))} for i in range(n)]


@pytest.mark.parametrize("name, text", [
    ("a.csv", 'text,label\n"one, two",1\nthree,0\n'),
    ("a.tsv", "text\tlabel\none, two\t1\nthree\t0\n"),
    ("b.csv", "\ufefftext;label\none, two;1\nthree;0\n"),
    ("a.jsonl", '{"text": "one, two", "label": true}\n\n{"text": "three", "label": false}\n'),
    ("a.json", '{"text": ["one, two", "three"], "label": [1, 0]}'),
])  # fmt: skip
def test_one_table_in_many_formats(tmp_path: Path, name: str, text: str):
    found = table(tmp_path / name, text)
    assert found.kind == "binary"
    assert [(r.texts, r.label) for r in found.rows] == [(("one, two",), True), (("three",), False)]


def test_parquet(tmp_path: Path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"text": ["a b", "c"], "label": [1.5, 2.0]}), tmp_path / "a.parquet")
    with pytest.raises(LoadError, match="cannot be read"):
        table(tmp_path / "not.parquet", "text,label\n")
    assert read_table(tmp_path / "a.parquet", Columns(("text",), "label", kind="numeric")).kind == "numeric"


def test_cells_may_hold_line_breaks_quotes_and_strange_separators(tmp_path: Path):
    text = 'text,label\n"two\nlines, ""quoted"" \u2028 \x85 end",yes\nplain \u2028 text,no\n'
    found = table(tmp_path / "a.csv", text)
    assert found.rows[0].texts[0] == 'two\nlines, "quoted" \u2028 \x85 end'
    assert found.rows[1].texts[0] == "plain \u2028 text" and found.rows[0].label is True


def test_kinds_of_labels():
    def kind(*labels, **more):
        data = [{"text": f"t{i}", "label": v} for i, v in enumerate(labels)]
        return read_table(data, Columns(("text",), "label", **more))

    assert kind("3", 4, "5.5").kind == "numeric"
    assert kind("red", "blue", "green").kind == "multiclass"
    assert [r.label for r in kind("no", "yes").rows] == [False, True]
    assert [r.label for r in kind(0, 1.0).rows] == [False, True]
    found = kind("won", "lost")
    assert found.positive == "label = won" and "--positive" in found.notes[0]
    assert [r.label for r in kind("won", "lost", positive="LOST").rows] == [False, True]
    with pytest.raises(LoadError, match="positive"):
        kind("won", "lost", positive="drawn")
    with pytest.raises(LoadError, match="different values"):
        kind(*(f"free text {i}" for i in range(40)))
    with pytest.raises(LoadError, match="no number"):
        kind("1", "2", "three", kind="numeric")


def test_pairs_in_two_columns_and_by_id():
    two = [{"a": "x", "b": "y", "l": "first"}, {"a": "z", "b": "w", "l": "second"}]
    found = read_table(two, Columns(("a", "b"), "l"))
    assert found.kind == "pairwise" and [r.label for r in found.rows] == [True, False]
    strange = [{**row, "l": f"Headline {i + 1} wins"} for i, row in enumerate(two)]
    with pytest.raises(LoadError, match="which label says"):
        read_table(strange, Columns(("a", "b"), "l"))
    assert read_table(strange, Columns(("a", "b"), "l", positive="Headline 1 wins")).rows[0].label is True

    by_id = [{"t": f"text {i}", "p": i // 2, "l": i % 2, "c": 3 * i} for i in range(40)]
    by_id += [{"t": "alone", "p": 99, "l": 1, "c": 0}, {"t": "a", "p": 98, "l": 1, "c": 0},
              {"t": "b", "p": 98, "l": 1, "c": 0}]  # fmt: skip
    found = read_table(by_id, Columns(("t",), "l", pair="p", covariates=("c",)))
    assert len(found.rows) == 20 and sum(found.dropped.values()) == 3
    for row in found.rows:  # the odd one is higher, and has the larger covariate, whichever side it was put on
        assert row.label is (int(row.texts[0].split()[1]) % 2 == 1)
        assert row.covariates["c"] == (3 if row.label else -3)
    assert 4 <= sum(bool(r.label) for r in found.rows) <= 16  # sides are drawn


def test_covariates_of_names_become_columns():
    data = [{"text": f"t{i}", "label": i % 2, "size": i, "where": "abc"[i % 3]} for i in range(9)]
    found = read_table(data, Columns(("text",), "label", covariates=("size", "where")))
    assert set(found.rows[0].covariates) == {"size", "where = b", "where = c"}
    with pytest.raises(LoadError, match="--group"):
        read_table([{**row, "where": f"w{i}"} for i, row in enumerate(data * 3)], Columns(("text",), "label",
                   covariates=("where",)))  # fmt: skip


@pytest.mark.parametrize("text, said", [
    ("text,lable\na,1\nb,0\n", "did you mean 'lable'"),
    ("text,label\na,1\nb,1\n", "one label only"),
    ("text,label\nsame,1\nSame,0\n", "are the same"),
    ("text,label\n", "no rows"),
    ("", "no rows"),
    ("text,label\na,nan\nb,\n", "one label only"),
    ("text,label\na,1,2\n", "more cells"),
    ("text,text,label\na,b,1\n", "a column twice"),
    ("text,label\na\0b,1\n", "NUL"),
])  # fmt: skip
def test_what_cannot_be_used_says_why(tmp_path: Path, text: str, said: str):
    with pytest.raises(LoadError, match=said):
        table(tmp_path / "a.csv", text)


def test_wrong_encodings_say_where(tmp_path: Path):
    (tmp_path / "a.csv").write_bytes("text,label\nok,1\ncaf\xe9,0\n".encode("latin-1"))
    with pytest.raises(LoadError, match="line 3 is not UTF-8"):
        read_table(tmp_path / "a.csv", ONE)
    (tmp_path / "b.csv").write_bytes("text,label\nok,1\n".encode("utf-16"))
    with pytest.raises(LoadError, match="UTF-16"):
        read_table(tmp_path / "b.csv", ONE)
    with pytest.raises(LoadError, match="cannot be read"):
        read_table(tmp_path / "none.csv", ONE)
    (tmp_path / "c.jsonl").write_text('{"text": "a", "label": 1}\n[1]\n')
    with pytest.raises(LoadError, match="line 2"):
        read_table(tmp_path / "c.jsonl", ONE)


def test_rows_without_text_or_label_are_left_out_and_counted():
    data = [{"text": t, "label": v} for t, v in [
        ("a", 1), ("b", 0), ("  ", 1), (None, 0), (float("nan"), 1), ("c", float("nan")), ("d", "NaN"), ("e", None),
        ("f", "inf"), ("g" * (LONGEST + 5), 0)]]  # fmt: skip
    found = read_table(data, ONE)
    assert found.dropped == {"text is empty": 3, "label is missing or not a finite number": 4}
    assert len(found.rows) == 3 and len(found.rows[-1].texts[0]) == LONGEST
    assert "cut" in found.notes[-1]


def test_a_lone_surrogate_in_json_is_a_character(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text('{"text": "a \\ud800 b", "label": 1}\n{"text": "c", "label": 0}\n')
    read_table(tmp_path / "a.jsonl", ONE).rows[0].texts[0].encode("utf-8")


# ---- splits


def test_parts_are_by_cluster_and_stay_when_rows_are_added():
    data = [{**row, "g": f"g{i % 70}"} for i, row in enumerate(rows(400))]
    columns = Columns(("text",), "label", group="g")
    some, all_ = (assign(read_table(data[:n], columns).rows) for n in (300, 400))
    for group in {p.row.group for p in all_}:
        assert len({p.part for p in all_ if p.row.group == group}) == 1
    before = {p.row.number: p.part for p in some}
    assert all(before[p.row.number] == p.part for p in all_ if p.row.number in before)
    assert {p.part for p in all_} == set(PARTS)


def test_rows_that_share_a_text_or_a_group_share_a_part():
    data = [{"a": f"x{i}", "b": f"x{i + 1}" if i % 10 else f"y{i}", "l": i % 2 + 1} for i in range(300)]
    placed = assign(read_table(data, Columns(("a", "b"), "l")).rows)
    parts: dict[str, set[str]] = {}
    for p in placed:
        for text in p.row.texts:
            parts.setdefault(text, set()).add(p.part)
    assert all(len(found) == 1 for found in parts.values())
    assert len({p.part for p in placed}) > 1


def test_no_text_of_one_split_is_in_another(tmp_path: Path):
    task = _task(tmp_path, [{"text": f"t{i % 90}", "label": i % 2} for i in range(400)])
    texts = [{item.data["text"] for item in task.items(s)} for s in ("train", "validation", "test")]
    assert not texts[0] & texts[1] and not texts[0] & texts[2] and not texts[1] & texts[2]


# ---- the task


def _task(tmp_path: Path, data, **options):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in data))
    return HypothesesTask({"file": str(path), "text": "text", "label": "label", **options})


@pytest.mark.parametrize("n", [1, 10, 30])
def test_too_few_rows_say_how_many_would_do(tmp_path: Path, n: int):
    with pytest.raises(LoadError, match="too few rows|one label only"):
        _task(tmp_path, rows(n))


def test_one_rare_label_is_refused(tmp_path: Path):
    with pytest.raises(LoadError, match="too few rows of one label"):
        _task(tmp_path, [{"text": f"t{i}", "label": int(i < 3)} for i in range(300)])


class _Said:
    def __init__(self, **said):
        self.said = said

    async def predict(self, item):
        return Prediction(**self.said)


async def test_scores_of_each_kind(tmp_path: Path):
    binary = _task(tmp_path, rows(200))
    item = next(i for i in binary.items("test") if i.data["label"])
    outcome = await binary.run(item, _Said(p=0.25, fired=(1.0, 0.0)))
    assert outcome.data == {"label": True, "fired": [1.0, 0.0], "p": 0.25}
    assert binary.score(item, outcome).values == {"correct": False, "log_loss": pytest.approx(1.3863, abs=1e-4)}
    numeric = _task(tmp_path, [{**row, "label": i % 7} for i, row in enumerate(rows(200))])
    item = numeric.items("test")[0]
    assert numeric.score(item, await numeric.run(item, _Said(value=item.data["label"]))).values["explained"] == 1
    names = _task(tmp_path, [{**row, "label": "abc"[i % 3]} for i, row in enumerate(rows(200))])
    item = names.items("test")[0]
    sure = {item.data["label"]: 1.0}
    assert names.score(item, await names.run(item, _Said(classes=sure))).values == {"correct": True, "log_loss": 0.0}
    assert item.data["kind"] == "multiclass" and item.data["part"] == "test"


def test_a_changed_file_is_refused(tmp_path: Path):
    with pytest.raises(LoadError, match="not the file of this plan"):
        _task(tmp_path, rows(200), sha256="0" * 64)
    with pytest.raises(PlanError, match="unknown hypotheses option"):
        _task(tmp_path, rows(200), lable="x")
    with pytest.raises(PlanError, match="needs a table"):
        HypothesesTask({})
