"""Foreign results: what is read, what stays absent, and what is refused with its place."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path

import pytest
import zstandard

from fairlead.core.errors import RecordError
from fairlead.core.records import Run, from_row, to_line
from fairlead.judge import Question, foreign, judge

MAP = foreign.parse_map("arm=policy,item=task,cluster=family,seed=seed,success=ok,strict=strict,stratum.kind=kind")


def rows(arms=("none", "mine"), seeds=(0, 1)):
    return [
        {"policy": arm, "task": f"t{i}", "family": f"f{i // 2}", "seed": seed, "ok": (arm == "mine") or i == 0,
         "kind": "easy" if i < 3 else "hard", **({"strict": i == 1} if arm == "mine" else {})}
        for arm in arms for i in range(6) for seed in seeds
    ]  # fmt: skip


def jsonl(path: Path, found) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def csv_of(path: Path, found) -> Path:
    names = list(dict.fromkeys(k for row in found for k in row))
    lines = [",".join(names), *(",".join(str(row.get(n, "")) for n in names) for row in found)]
    path.write_text("\n".join(lines) + "\n")
    return path


def parquet_of(path: Path, found) -> Path:
    import pyarrow
    from pyarrow import parquet

    names = dict.fromkeys(k for row in found for k in row)
    parquet.write_table(pyarrow.table({n: [row.get(n) for row in found] for n in names}), path)
    return path


@pytest.mark.parametrize("write", [jsonl, csv_of, parquet_of])
def test_a_table_of_any_kind_gives_the_same_records(tmp_path, write):
    kind = {jsonl: "jsonl", csv_of: "csv", parquet_of: "parquet"}[write]
    found = foreign.read([write(tmp_path / f"r.{kind}", rows())], MAP)
    assert len(found) == 24 and {r.arm for r in found} == {"none", "mine"} and {r.seed for r in found} == {0, 1}
    first = found[0]
    assert (first.item, first.cluster, dict(first.strata), first.split) == ("t0", "f0", {"kind": "easy"}, "test")
    assert first.score == {"success": True}  # strict is absent: not measured, and not False
    assert found[-1].score == {"success": True, "strict": False} and first.lock is None
    assert [from_row(json.loads(to_line(r))) for r in found] == list(found)
    verdict = judge(Run.of(found), Question("mine", "success", 0.1, decoding="free"))
    by = {(r.arm, r.measure): r for r in verdict.rows if not r.where}
    assert by["none", "strict"].value is None and by["none", "strict"].not_measured == 12
    assert by["mine", "strict"].value == pytest.approx(1 / 6) and by["mine", "success"].clusters == 3


def test_what_is_not_mapped_has_a_plain_default(tmp_path):
    bare = [{"q": 1, "score": x} for x in (0.25, 0.5, 1)]
    found = foreign.read([jsonl(tmp_path / "one.jsonl", bare)], foreign.parse_map("item=q,score=score"))
    assert [(r.arm, r.seed, r.cluster, r.model, r.decoding) for r in found] == [
        ("imported", i, "1", "imported", "free") for i in range(3)]  # fmt: skip
    assert [r.score["score"] for r in found] == [0.25, 0.5, 1.0]
    files = foreign.read([tmp_path], foreign.parse_map("arm=file,item=q,score=score"))
    assert {r.arm for r in files} == {"one"}


def test_values_costs_and_errors(tmp_path):
    text = "id,ok,n,why,tok,s\n1,True,3,,10,0.5\n2,no,nan,,,\n3,,1e2,crashed,7,1\n"
    (tmp_path / "r.csv").write_text("\ufeff" + text, encoding="utf-8")
    mapping = foreign.parse_map("item=id,ok=ok,n=n,error=why,prompt_tokens=tok,seconds=s")
    one, two, three = foreign.read([tmp_path / "r.csv"], mapping)
    assert one.score == {"ok": True, "n": 3.0} and two.score == {"ok": False}
    assert three.score is None and three.error == "crashed"
    assert (one.cost.prompt_tokens, one.cost.seconds, two.cost.prompt_tokens) == (10, 0.5, 0)


def broken(row, **change):
    return {k: v for k, v in {**row, **change}.items() if v is not ...}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"task": ...}, "r.jsonl:3 has no 'task', which the map names as item"),
        ({"ok": "maybe"}, "r.jsonl:3, ok is no measure"),
        ({"ok": [1]}, "r.jsonl:3, ok is no measure"),
        ({"ok": float("inf")}, "is no measure"),
        ({"seed": "two"}, "seed that is no whole number"),
        ({"seed": 1.5}, "seed that is no whole number"),
        ({"seed": 0, "task": "t0", "kind": "other"}, "is there twice"),
    ],
)
def test_a_bad_row_is_named(tmp_path, change, words):
    found = rows()
    found[2] = broken(found[2], **change)
    with pytest.raises(RecordError, match="r.jsonl"):
        foreign.read([jsonl(tmp_path / "r.jsonl", found)], MAP)
    with pytest.raises(RecordError) as caught:
        foreign.read([tmp_path / "r.jsonl"], MAP)
    assert words in str(caught.value)


def test_columns_that_are_nowhere_and_maps_that_cannot_be_read(tmp_path):
    file = jsonl(tmp_path / "r.jsonl", rows())
    with pytest.raises(RecordError, match="no row has 'polcy', which the map names as arm") as caught:
        foreign.read([file], foreign.parse_map("arm=polcy,item=task,success=ok"))
    assert "policy" in str(caught.value)
    with pytest.raises(RecordError, match="no row has 'okay'"):
        foreign.read([file], foreign.parse_map("item=task,success=okay"))
    with pytest.raises(RecordError, match="which column is item and a measure"):
        foreign.read([file])
    with pytest.raises(RecordError, match="which column is a measure"):
        foreign.read([file], foreign.parse_map("item=task"))
    for text in ("item", "item=", "=x", "a=b,a=c"):
        with pytest.raises(RecordError):
            foreign.parse_map(text)
    with pytest.raises(RecordError, match="one of"):
        foreign.renamed(foreign.read([file], MAP), {"baseline": "none"})
    with pytest.raises(RecordError, match="there is such an arm"):
        foreign.renamed(foreign.read([file], MAP), {"mine": "none"})


def test_the_same_row_twice(tmp_path):
    bare = foreign.parse_map("item=task,success=ok")
    twice = [*rows(seeds=(0,)), rows()[0]]
    with pytest.raises(RecordError, match="r.jsonl:13 is the same row as r.jsonl:1"):
        foreign.read([jsonl(tmp_path / "r.jsonl", twice)], bare)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("r.jsonl", b"", "is empty"),
        ("r.jsonl", b"\n\n", "no rows"),
        ("r.csv", b"a,b\n", "no rows to import"),
        ("r.jsonl", b'{"task": 1, "ok": 1}\n{"a": \n', "r.jsonl:2 is not JSON"),
        ("r.jsonl", b"[1]\n", "is no row"),
        ("r.jsonl", b"[" * 100_000 + b"\n", "is not JSON"),
        ("r.jsonl", '{"task": "é"}\n'.encode("latin-1"), "not UTF-8"),
        ("r.csv", "task,ok\n1,1\n".encode("utf-16"), "not UTF-8"),
        ("r.csv", b"a,a\n1,2\n", "no usable head"),
        ("r.csv", b"a,b\n1,2,3\n", "expected: 2 cells"),
        ("r.csv", b'a,b\n"1,2\n', "not CSV"),
        ("r.parquet", b"PAR1 no", "is not Parquet"),
        ("r.eval", b"PK no", "is no inspect_ai log"),
        ("r.xlsx", b"x", "no known kind"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecordError, match=words):
        foreign.read([tmp_path / name], foreign.parse_map("item=task,ok=ok"))


def test_missing_files_huge_files_and_long_lines(tmp_path, monkeypatch):
    with pytest.raises(RecordError, match="no file"):
        foreign.read([tmp_path / "none.jsonl"])
    with pytest.raises(RecordError, match="no results in"):
        foreign.read([tmp_path])
    file = jsonl(tmp_path / "r.jsonl", rows())
    monkeypatch.setattr(foreign, "MOST_ROWS", 5)
    with pytest.raises(RecordError, match="too many rows"):
        foreign.read([file], MAP)
    monkeypatch.setattr(foreign, "LONGEST", 20)
    with pytest.raises(RecordError, match="line 1 is too long"):
        foreign.read([file], MAP)
    monkeypatch.setattr(foreign, "MOST_BYTES", 10)
    with pytest.raises(RecordError, match="too large"):
        foreign.read([file], MAP)


def test_without_pyarrow_and_zstandard_it_says_what_to_install(tmp_path, monkeypatch):
    parquet, log = parquet_of(tmp_path / "r.parquet", rows()), eval_log(tmp_path / "r.eval")
    for name in ("pyarrow", "pyarrow.parquet", "zstandard"):
        monkeypatch.setitem(sys.modules, name, None)
    for file in (parquet, log):
        with pytest.raises(RecordError, match=r"fairlead\[imports\]"):
            foreign.read([file], MAP if file is parquet else None)


# ---- inspect_ai: the layout of 0.3.285, members compressed with Zstandard as it writes them

EVAL = {"task": "sums", "model": "mockllm/model", "config": {"epochs": 2}}
HEADER = {"version": 2, "status": "success", "eval": EVAL}


def sample(i, epoch, value, error=None):
    scores = {} if error else {"match": {"value": value, "answer": "2", "explanation": "2", "history": []}}
    found = {
        "id": f"s{i}", "epoch": epoch, "input": "1+1=", "target": "2", "scores": scores,
        "metadata": {"family": "small" if i < 2 else "big"}, "total_time": 1.5, "working_time": 0.4,
        "model_usage": {"mockllm/model": {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}},
        "uuid": f"u{i}{epoch}",
    }  # fmt: skip
    return {**found, "error": {"message": error, "traceback": "..."}} if error else found


SAMPLES = [sample(0, 1, "C"), sample(1, 1, "I"), sample(2, 1, "C"), sample(0, 2, "I"), sample(1, 2, "N"),
           sample(2, 2, "", "ConnectionError('no')")]  # fmt: skip


def eval_log(path: Path, members=None, *, method=93) -> Path:
    """A zip whose members are compressed by `method`; Python writes no 93, so the entries are patched."""
    members = members or {"_journal/start.json": HEADER, "summaries.json": SAMPLES, "header.json": HEADER}
    packed = {}
    for name, value in members.items():
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        packed[name] = (data, zstandard.compress(data) if method == 93 else data)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED if method == 8 else zipfile.ZIP_STORED) as log:
        for name, (_, body) in packed.items():
            log.writestr(name, body)
        infos = list(log.infolist())
    if method == 93:
        raw = bytearray(path.read_bytes())
        for info in infos:
            size = len(packed[info.filename][0]).to_bytes(4, "little")
            at = info.header_offset
            raw[at + 8 : at + 10] = (93).to_bytes(2, "little")
            raw[at + 22 : at + 26] = size
            entry = raw.rindex(b"PK\x01\x02", 0, raw.rindex(info.filename.encode()))
            raw[entry + 10 : entry + 12] = (93).to_bytes(2, "little")
            raw[entry + 24 : entry + 28] = size
        path.write_bytes(raw)
    return path


@pytest.mark.parametrize("method", [93, 8])
@pytest.mark.parametrize("journal", [False, True])
def test_an_inspect_log(tmp_path, method, journal):
    members = {f"samples/{s['id']}_epoch_{s['epoch']}.json": s for s in SAMPLES}
    members |= {"_journal/start.json": HEADER}
    file = eval_log(tmp_path / "mine.eval", members if journal else None, method=method)
    found = foreign.read([file])
    assert len(found) == 6 and {r.arm for r in found} == {"mine"} and {r.model for r in found} == {"mockllm/model"}
    by = {(r.item, r.seed): r for r in found}
    assert by["s0", 1].score == {"match": True} and by["s1", 1].score == by["s1", 2].score == {"match": False}
    assert by["s2", 2].score is None and "ConnectionError" in by["s2", 2].error
    assert (by["s0", 1].cost.prompt_tokens, by["s0", 1].cost.new_tokens, by["s0", 1].cost.seconds) == (7, 2, 1.5)
    mapped = foreign.read([file], foreign.parse_map("cluster=metadata.family,arm=task,right=score.match"))
    assert {r.cluster for r in mapped} == {"small", "big"} and {r.arm for r in mapped} == {"sums"}
    assert mapped[0].score == {"right": True}


def test_partial_credit_and_scores_of_several_parts(tmp_path):
    odd = [sample(0, 1, "P"), sample(1, 1, "C")]
    odd[1]["scores"]["parts"] = {"value": {"form": 1, "content": 0.5}}
    first, second = foreign.read([eval_log(tmp_path / "r.eval", {"header.json": HEADER, "summaries.json": odd})])
    assert first.score == {"match": 0.5} and second.score == {"match": 1.0, "parts.form": True, "parts.content": 0.5}


def test_hostile_logs(tmp_path, monkeypatch):
    bomb = eval_log(tmp_path / "bomb.eval", {"header.json": HEADER, "summaries.json": b" " * 2**24 + b"[]"})
    with pytest.raises(RecordError, match="unpacks to too much"):
        foreign.read([bomb])
    liar = bytearray(eval_log(tmp_path / "liar.eval").read_bytes())
    entry = liar.rindex(b"PK\x01\x02", 0, liar.rindex(b"summaries.json"))
    liar[entry + 24 : entry + 28] = (10).to_bytes(4, "little")  # more comes out than the entry says
    (tmp_path / "liar.eval").write_bytes(liar)
    with pytest.raises(RecordError, match="not as long as it says"):
        foreign.read([tmp_path / "liar.eval"])
    whole = eval_log(tmp_path / "cut.eval").read_bytes()
    for size in range(0, len(whole), 97):
        (tmp_path / "cut.eval").write_bytes(whole[:size])
        with pytest.raises(RecordError):
            foreign.read([tmp_path / "cut.eval"])
    odd = ({"x": 1}, {"header.json": [], "summaries.json": {}}, {"header.json": HEADER, "summaries.json": [3]})
    for members in odd:
        with pytest.raises(RecordError):
            foreign.read([eval_log(tmp_path / "odd.eval", members)])


# ---- lm-eval: the layout of 0.4.13


def lm_line(i, filtered="none", **metrics):
    return {
        "doc_id": i, "doc": {"q": f"{i}+{i}=", "a": i % 2, "family": f"f{i % 2}"}, "target": str(i % 2),
        "arguments": {"gen_args_0": {"arg_0": f"{i}+{i}=", "arg_1": " 0"}}, "resps": [[["-0.1", "False"]]],
        "filtered_resps": [["-0.1", "False"]], "filter": filtered, "metrics": list(metrics),
        "doc_hash": f"{i}" * 64, "prompt_hash": "1" * 64, "target_hash": "2" * 64, **metrics,
    }  # fmt: skip


def test_lm_eval_samples(tmp_path):
    folder = tmp_path / "org__model"
    folder.mkdir()
    lines = [lm_line(i, acc=float(i % 2), acc_norm=1.0) for i in range(4)]
    found = foreign.read([jsonl(folder / "samples_toy_sums_2026-11-21T10-27-17.934802.jsonl", lines)])
    assert [(r.arm, r.item, r.cluster) for r in found[:2]] == [
        ("org__model", "toy_sums/0", "toy_sums/0"), ("org__model", "toy_sums/1", "toy_sums/1")]  # fmt: skip
    assert found[1].score == {"acc": True, "acc_norm": True} and found[0].score["acc"] is False
    grouped = foreign.read([folder], foreign.parse_map("cluster=doc.family"))
    assert {r.cluster for r in grouped} == {"f0", "f1"}


def test_lm_eval_filters_are_measures_of_one_document(tmp_path):
    lines = [lm_line(i, name, exact_match=float(name == "strict-match"))
             for name in ("strict-match", "flexible-extract") for i in range(2)]  # fmt: skip
    found = foreign.read([jsonl(tmp_path / "samples_toy_2026-11-21T10-27-17.9.jsonl", lines)])
    assert len(found) == 2
    assert found[0].score == {"exact_match,strict-match": True, "exact_match,flexible-extract": False}
    with pytest.raises(RecordError, match="is there twice"):
        foreign.read([jsonl(tmp_path / "samples_toy.jsonl", [lines[0], lines[0]])])
