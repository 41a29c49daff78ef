"""What the page says, and that its numbers are those of the Records."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from tests.report.synthetic_run import ARMS, EDIT, write_run

from fairlead.core.errors import RecordError
from fairlead.core.records import Run
from fairlead.judge import stats
from fairlead.report import compare, compare_table, html, measured, render, rows, terminal_table, to_csv, to_json
from fairlead.report.describe import dose_lines, edit_text, sections
from fairlead.report.headline import Rate, tables
from fairlead.report.html import embed
from fairlead.report.numbers import p_value, points, quantity
from fairlead.report.source import read
from fairlead.report.svg import curves, dot, funnel, tag


def words(page: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", page).split())


def test_one_file_and_nothing_from_elsewhere(page: str) -> None:
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", page)
    assert "@import" not in page and "url(" not in page
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy and "default-src &#39;none&#39;" in policy[1] and "sha256-" in policy[1]
    assert "script-src &#39;unsafe-inline&#39;" not in policy[1]


def test_every_arm_strict_first_and_models_called_organisms(page: str) -> None:
    for arm in ARMS:
        assert arm.replace("control.", "").replace("_", " ") in page
    head = re.search(r"<thead>(.*?)</thead>", page, re.S)
    assert head and [m for m in re.findall(r"(strict|loose|fell at end|fell)<", head[1])][0] == "strict"
    assert page.count("model organism") >= page.count("<h3>pocket/")
    assert EDIT in page


def test_rates_are_those_of_the_records(run: Path) -> None:
    wanted = ("feature", "constrained", "on")
    records = [r for r in Run.open(run).records if (r.arm, r.decoding, r.strata["trap"]) == wanted]
    scored = [r.score["strict"] for r in records if r.score is not None]
    found = next(r for r in rows(run) if r["arm"] == "feature" and r["decoding"] == "constrained")
    assert found["strict"] == sum(map(bool, scored)) / len(scored)
    interval = stats.wilson(sum(map(bool, scored)), len(scored))
    assert interval and (found["strict_lo"], found["strict_hi"]) == (interval.low, interval.high)
    assert found["errors"] == sum(r.error is not None for r in records) == 2
    assert found["n"] == len(records) == found["strict_n"] + found["errors"]


def test_not_measured_is_never_zero(run: Path) -> None:
    off = [r for r in read(run).records if r.strata["trap"] == "off"]
    assert measured.rate(off, "fell") == Rate()
    assert measured.rate([], "strict") == Rate()
    none = next(r for r in rows(run) if r["arm"] == "none")
    assert none["delta"] is None and none["delta_p"] is None
    line = next(csv.DictReader(io.StringIO(to_csv(run))))
    assert line["arm"] == "none" and line["delta"] == ""
    assert json.loads(to_json(run))[0]["delta"] is None


def test_few_clusters_and_errors_are_said(run: Path, page: str, tmp_path: Path) -> None:
    assert "2 of 40 items ended in an error" in words(page)
    small = write_run(tmp_path, per_category=2, traced=0, errors=0)
    text = words(render(small).read_text(encoding="utf-8"))
    assert "16 clusters, fewer than 40" in text and "nothing to replay" in text


def test_an_arm_without_success_has_no_price(run: Path) -> None:
    source = read(run)
    failed = [replace(r, score={**r.score, "strict": False}) if r.score and r.arm == "prompt" else r
              for r in source.records]  # fmt: skip
    table = tables(replace(source, run=replace(source.run, records=tuple(failed))))[0]
    row = table.row("prompt")
    assert row is not None and row.tokens_per_success is None and row.rates["strict"].value == 0.0


def test_a_funnel_without_counts_is_not_measured(run: Path) -> None:
    source = read(run)
    blank = [replace(r, outcome={"steps": 3, "funnel": {"emitted": 3}}) if r.outcome else r for r in source.records]
    table = tables(replace(source, run=replace(source.run, records=tuple(blank))))[0]
    row = table.row("none")
    assert row is not None and dict(row.funnel) == {
        "emitted": 1.0, "valid": None, "grounded": None, "executed": None, "effective": None,
    }  # fmt: skip


def test_an_effect_in_free_mode_only_is_called_format(run: Path) -> None:
    source = read(run)
    by_item = {r.item: r for r in source.records if (r.arm, r.decoding) == ("none", "constrained")}
    held = [
        replace(r, score=by_item[r.item].score, error=by_item[r.item].error)
        if (r.arm, r.decoding) == ("feature", "constrained")
        else r
        for r in source.records
    ]
    mute = replace(source, run=replace(source.run, records=tuple(held)))
    text = words(html.page(mute, max_items=1))
    assert "the gain of feature over none exists in free decoding only: it is format" in text
    assert "it is format" not in words(html.page(source, max_items=1))


def test_records_without_a_plan_are_reported(run: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run / "trials", bare / "trials")
    text = words(render(bare).read_text(encoding="utf-8"))
    assert "Records only, nothing was locked" in text


def test_nothing_to_read_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match="run a study first"):
        render(tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_terminal_table_holds_every_arm(run: Path) -> None:
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal_table(run))
    text = console.export_text()
    assert all(arm in text for arm in ARMS) and "model organism" in text and "constrained decoding" in text


def test_comparison_is_paired_where_items_are_shared(run: Path, tmp_path: Path) -> None:
    other = write_run(tmp_path, per_category=5, traced=0, shift=-0.3, name="weaker")
    found = compare(run, other)
    assert found.same_plan and all(p.paired for p in found.pairs) and not found.left
    pair = next(p for p in found.pairs if (p.arm, p.decoding, p.trap) == ("feature", "constrained", "on"))
    assert pair.difference.hi is not None and pair.difference.hi < 0
    smaller = compare(run, write_run(tmp_path, per_category=3, traced=0, name="smaller"))
    assert not any(p.paired for p in smaller.pairs)
    gap = smaller.pairs[0]
    assert gap.difference.value == pytest.approx(gap.second.value - gap.first.value)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(compare_table(run, other))
    assert "prompt+feature" in console.export_text()


def test_numbers_read_well() -> None:
    assert [points(v) for v in (None, 0.001, 0.39, -0.05)] == ["—", "0", "+39", "\u22125"]
    assert [p_value(v) for v in (None, 0.0002, 0.0131, 1.0)] == ["—", "p < .001", "p = .013", "p = 1"]
    assert [quantity(v) for v in (None, 0.0, 3.1e11, 950, 12.5)] == ["—", "0", "310\u2009G", "950", "12.5"]


def test_plots_escape_and_leave_out_what_is_missing() -> None:
    assert "&lt;b&gt;" in tag("text", "<b>", x=1) and "&#34;" in tag("text", "x", x='"')
    assert "circle" not in dot(None, None, None, 0.2) and "not measured" in dot(None, None, None, 0.2)
    assert funnel((("emitted", 1.0), ("valid", None))).count("<rect") == 1
    swept = [{"strength": 0, "strict": 0.2}, {"strength": 1, "strict": [0.5, 0.4, 0.6], "fell": None}]
    lines = dose_lines(swept)
    assert [line.name for line in lines] == ["strict"] and lines[0].points[1].hi == 0.6
    assert curves([], "x") == "" and "dose-response of strict" in curves(lines, "x")


def test_the_edit_is_found_under_any_name() -> None:
    assert edit_text({"edit": "1 = 0"}) == "1 = 0"
    assert edit_text({"edits": ["1 = 0", {"text": "2 += 1"}]}) == "1 = 0; 2 += 1"
    assert edit_text({"edit": ""}) == "" and edit_text({}) is None


def test_a_chained_arm_tells_what_its_parts_chose(run: Path) -> None:
    told = {s.arm: s for s in sections(read(run))}
    assert list(told)[:3] == ["prompt", "feature", "prompt+feature"] and "none" not in told
    both = told["prompt+feature"]
    assert both.edit == EDIT and (both.prompt or "").startswith("Buy exactly") and len(both.tried) == 4
    assert [c["index"] for c in told["feature"].cards] == [317, 88] and not both.cards, "a card is shown once"
    assert told["prompt"].edit is None and told["control.empty"].edit == ""
    assert "latent 317" in told["feature"].plot and not told["feature"].cards[0]["spark"]
    assert told["feature"].cards[1]["spark"]


def test_choosing_nothing_is_said(run: Path) -> None:
    source = read(run)
    where = ("pocket/shopper-s", "constrained", "feature")
    mute = replace(source, described={where: {**source.described[where], "edit": "", "prompt": ""}})
    text = words(html.page(mute, max_items=1))
    assert "doing nothing was not beaten" in text and "no wording of the pool did better" in text


def test_embedded_json_cannot_end_its_script() -> None:
    text = embed({"x": "</script>\u2028<!--&"})
    assert not set("<>&\u2028") & set(text) and json.loads(text) == {"x": "</script>\u2028<!--&"}
