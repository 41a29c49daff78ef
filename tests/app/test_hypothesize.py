"""`fairlead hypothesize`: what is planted is found, on rows that nothing was fitted on; it is saved, read back and run
on new texts; what cannot be used says so; and what users write stays text."""

from __future__ import annotations

import csv
import json
import random
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from tests.lm.endpoint import chat, serving

from fairlead.app import hypothesize as verb
from fairlead.cli import main
from fairlead.core.errors import LoadError
from fairlead.core.records import Run
from fairlead.report import hypotheses as pages

ARMS = ("ngrams", "random", "dense")
WORDS = "river bridge farm market school doctor window garden engine letter mountain kitchen ticket island".split()
HOSTILE = "<script>alert(1)</script>"


def table(n: int, seed: int = 0, *, effect: float = 0.6):
    """Headlines; the label is likelier where one mentions a village (or the vicar who goes with it)."""
    rng, rows = random.Random(seed), []
    for i in range(n):
        has = rng.random() < 0.4
        words = rng.sample(WORDS, 5) + (["village", "vicar"] if has else [])
        rng.shuffle(words)
        rows.append({
            "headline": " ".join(words) + f" {HOSTILE if i % 2 else i % 7}", "place": "ab"[i % 2],
            "clicked": int(rng.random() < 0.2 + effect * has), "editor": f"e{i // 2}",
        })  # fmt: skip
    return rows


def save(path: Path, rows) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory):
    root = tmp_path_factory.mktemp("texts")
    settings = verb.Settings(save(root / "data.csv", table(500)), ("headline",), "clicked", covariates=("place",),
                             group="editor", k=6, arms=ARMS, runs=root / "runs")  # fmt: skip
    phases = []
    told = verb.execute(verb.prepare(settings), progress=lambda *at: phases.append(at), permutations=50)
    assert {phase for phase, _, _ in phases} == {"embedding", "arms", "testing"}
    assert all(0 <= done <= total for _, done, total in phases)
    return told


def test_what_is_planted_is_found_and_holds_on_test(found):
    rules = found["lists"]["texts.labels"]
    best = rules["hypotheses"][0]
    assert best["found"] and ("village" in str(best["predicate"]) or "vicar" in str(best["predicate"]))
    assert abs(best["effect"]["value"] - 0.6) < 0.2 and best["effect"]["lo"] > 0.2 and best["adjusted"] is not None
    assert rules["found"] >= 1 and rules["null_mean"] < 0.5 and rules["permutations"] == 50
    assert best["exemplars"] and best["counter_examples"]
    assert all("village" in " ".join(e["texts"]) or "vicar" in " ".join(e["texts"]) for e in best["exemplars"])
    assert all(bool(e["label"]) for e in best["exemplars"]) and not any(e["label"] for e in best["counter_examples"])


def test_every_figure_comes_from_the_records_of_test(found):
    run = Run.open(found["run"])
    assert {r.split for r in run.records} == {"test"}
    assert {a["arm"] for a in found["arms"]} == {"texts.labels", *(f"texts.{a}" for a in ARMS)}
    assert found["lists"]["texts.labels"]["n"] == found["data"]["parts"]["test"]
    assert sum(found["data"]["parts"].values()) == found["data"]["rows"] == 500
    assert found["exploratory"] or found["verdict"]["status"]


def test_saved_hypotheses_run_on_new_texts(found, tmp_path: Path):
    saved = Path(found["run"]) / "hypotheses.json"
    assert verb.load_saved(saved)["lists"].keys() == found["lists"].keys()
    new = verb.apply(saved, save(tmp_path / "new.csv", table(300, seed=5)), permutations=20)
    assert new["labelled"] and new["hypotheses"][0]["found"] and new["hypotheses"][0]["same_sign"]
    assert new["said"].startswith(f"{found['lists']['texts.labels']['found']} of ") or "of" in new["said"]
    bare = [{"headline": row["headline"], "place": "a", "editor": "x"} for row in table(50, seed=6)]
    unlabelled = verb.apply(saved, save(tmp_path / "bare.csv", bare))
    assert not unlabelled["labelled"] and "effect" not in unlabelled["hypotheses"][0]
    for match in unlabelled["matches"]:
        assert (1 in match["holds"]) == bool({"village", "vicar"} & set(match["text"].split()))


def test_a_saved_file_that_was_tampered_with_is_refused(found, tmp_path: Path):
    told = json.loads((Path(found["run"]) / "hypotheses.json").read_text())
    told["lists"]["texts.labels"]["hypotheses"][0]["predicate"] = {"kind": "python", "code": "1"}
    (tmp_path / "a.json").write_text(json.dumps(told))
    (tmp_path / "b.json").write_text('{"format": 1}')
    (tmp_path / "c.json").write_text("no JSON")
    for name in ("a.json", "b.json", "c.json", "none.json"):
        with pytest.raises(LoadError):
            verb.load_saved(tmp_path / name)


def test_the_page_is_self_contained_and_texts_stay_text(found):
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert "<script" not in page and "&lt;script&gt;alert(1)" in page
    assert "http://" not in page and "https://" not in page and "src=" not in page
    assert "default-src &#39;none&#39;" in page and "prefers-color-scheme:dark" in page
    assert found["lead"]["sentences"][0] in page.replace("&#39;", "'")
    for name in ("Rules in words", "A list of words and phrases", "Random directions"):
        assert name in page


def test_when_a_simpler_arm_wins_the_report_leads_with_it(found):
    arms = [{**a, "value": {"texts.ngrams": 0.99, "texts.labels": 0.6}.get(a["arm"], a["value"]),
             "behind_hi": -0.1 if a["arm"] == "texts.ngrams" else a["behind_hi"]} for a in found["arms"]]  # fmt: skip
    told = {**found, "arms": arms}
    told["lead"] = pages.lead(told)
    assert told["lead"]["sentences"][0].startswith("Something simpler predicts clicked better")
    assert "larger than chance" in told["lead"]["sentences"][0] and told["lead"]["list"] == "texts.ngrams"
    page = pages.page(told)
    assert page.index("A list of words and phrases: what holds up") < page.index("Rules in words: what holds up")


def test_a_ceiling_never_leads(found):
    arms = [{**a, "value": 0.99 if a["ceiling"] else 0.5} for a in found["arms"]]
    assert "Something simpler" not in pages.lead({**found, "arms": arms})["sentences"][0]


def test_cells_that_look_like_formulas_are_neutralised(found):
    for cell in ("=cmd|' /C calc'!A0", "+1", "-2", "@sum", "\t=1", " =1"):
        assert str(pages.plain_cell(cell)).startswith("'")
    assert pages.plain_cell("fine = yes") == "fine = yes" and pages.plain_cell(-2.5) == -2.5
    text = pages.to_csv([{"=head": '=1+1,"x"', "n": -1.0}])
    assert text.splitlines() == ["'=head,n", "\"'=1+1,\"\"x\"\"\",-1.0"]
    assert len(pages.to_csv(pages.flat(found)).splitlines()) == 1 + len(found["lists"]["texts.labels"]["hypotheses"])


def test_rows_in_memory_and_pairs(tmp_path: Path):
    """From Python, on rows as mappings: of two headlines, the one with the village wins more often."""
    rng, single = random.Random(3), [row["headline"].replace(HOSTILE, "") for row in table(700, seed=8)]
    rows = []
    for a, b in zip(single[::2], single[1::2], strict=True):
        lean = 0.4 * (("village" in a) - ("village" in b))
        rows.append({"a": a, "b": b, "better": "first" if rng.random() < 0.5 + lean else "second"})
    told = verb.hypothesize(rows, ["a", "b"], "better", embedder="tfidf", k=4, arms=["ngrams"], runs=tmp_path)
    assert told["kind"] == "pairwise" and told["measure"] == "AUC"
    best = told["lists"]["texts.ngrams"]["hypotheses"][0]
    assert best["found"] and best["with"] > 0.7
    assert "pairs in which only one has it" in Path(told["page"]).read_text(encoding="utf-8")


def test_a_data_frame_and_names_for_labels(tmp_path: Path):
    """What pandas has (`to_dict` of records, numpy cells, NaN), and three names: each effect says of which."""
    rng, rows = random.Random(4), table(420, seed=9)
    for row in rows:
        has = "village" in row["headline"]
        row["desk"] = rng.choices(["home", "world", "sport"], [0.7 if has else 0.15, 0.3, 0.3])[0]
        row["size"] = np.float64(rng.random())
    rows[0]["desk"] = float("nan")

    class Frame:
        def to_dict(self, orient: str):
            assert orient == "records"
            return rows

    told = verb.hypothesize(Frame(), "headline", "desk", embedder="tfidf", k=4, arms=["ngrams"], covariates=["size"],
                            runs=tmp_path)  # fmt: skip
    assert told["kind"] == "multiclass" and told["classes"] == ["home", "sport", "world"]
    assert told["data"]["dropped"] == {"label is missing or not a finite number": 1}
    best = told["lists"]["texts.ngrams"]["hypotheses"][0]
    assert best["found"] and best["effect"]["label"] in ("home", "sport", "world") and best["adjusted"] is not None


def test_pandas_where_it_is_installed(tmp_path: Path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(table(300, seed=1))
    frame["day"] = pandas.Timestamp("2026-01-01")
    frame.loc[3, "clicked"] = None
    told = verb.hypothesize(frame, "headline", "clicked", embedder="tfidf", k=3, arms=["ngrams"], runs=tmp_path)
    assert told["kind"] == "binary" and told["data"]["rows"] == 299


@pytest.mark.parametrize("options", [
    {"dictionary": "residual"}, {"how": "knockoffs", "rate": 0.2}, {"how": "correlation", "rate": 0.05},
])  # fmt: skip
def test_ways_to_look_and_to_choose(found, tmp_path: Path, options):
    path = Path(found["run"]).parent.parent / "data.csv"
    settings = verb.Settings(path, ("headline",), "clicked", covariates=("place",), group="editor", k=3,
                             arms=("random",), options=options, runs=tmp_path / "runs")  # fmt: skip
    told = verb.execute(verb.prepare(settings), permutations=0)
    made = told["made"]
    assert {k: made[k] for k in options if k != "rate"} == {k: v for k, v in options.items() if k != "rate"}
    assert made["rate"] == options.get("rate")
    assert made["selected"] == made["unnamed"] + len(told["lists"]["texts.labels"]["hypotheses"])
    kept_apart = found["made"]["selected_on"] - made["selected_on"]
    assert kept_apart > 100 if options.get("dictionary") == "residual" else kept_apart == 0
    if made["selected"]:
        assert told["lists"]["texts.labels"]["found"] >= 1
    else:  # knockoffs take none where only one pattern is true
        assert "speaks of clicked" in told["lead"]["sentences"][-1]


def test_a_language_model_words_hypotheses_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Each question is asked once, and charged whenever it is needed; the page says who answered, and how much."""
    monkeypatch.setenv("FAIRLEAD_CACHE", str(tmp_path / "cache"))
    path = save(tmp_path / "data.csv", table(240, seed=3))

    def answer(_path: str, body):
        asked = body["messages"][-1]["content"]
        if "in common" in asked:
            return chat("mentions a village")
        return chat("yes" if "village" in asked.partition("Text: ")[2] else "no")

    counts = []
    with serving(answer) as server:
        for runs in ("one", "two"):
            settings = verb.Settings(path, ("headline",), "clicked", k=3, arms=("ngrams",), runs=tmp_path / runs,
                                     ask=verb.Ask("m", server.url))  # fmt: skip
            told = verb.execute(verb.prepare(settings), permutations=0)
            counts.append((len(server.asked), told["asked"]))
    questions = [json.dumps(body, sort_keys=True) for _, body, _ in server.asked]
    assert len(set(questions)) == len(questions) == counts[0][0] == counts[1][0] > 100
    assert counts[0][1] == counts[1][1] and counts[0][1]["answers"] >= len(questions)
    assert counts[0][1]["prompt_tokens"] == 7 * counts[0][1]["answers"]
    assert "m: " in Path(told["page"]).read_text()
    fitted = next(f for f in Run.open(told["run"]).fitted.values() if f["arm"] == "labels")
    assert all("asked" in h["tried"] for h in fitted["hypotheses"]) and fitted["hypotheses"]


def test_no_hypothesis_is_a_result_too(tmp_path: Path):
    """Texts that share no word: nothing can be said in words, and the report says that."""
    rows = [{"t": f"{chr(97 + i % 26) * (3 + i // 26)}", "l": i % 2} for i in range(200)]
    told = verb.hypothesize(rows, "t", "l", embedder="tfidf", k=3, arms=["dense"], runs=tmp_path)
    assert told["lists"]["texts.labels"]["found"] == 0 and told["arms"]
    assert Path(told["page"]).is_file() and told["lead"]["sentences"]


# ---- the command line


def invoke(*words: object):
    return CliRunner().invoke(main, ["hypothesize", *map(str, words)])


def test_the_command_knows_every_way():
    from fairlead import cli_hypothesize as cli
    from fairlead.features.texts import dictionary, select

    assert cli.SELECTORS == select.HOW
    assert {*cli.DICTIONARIES} == {*dictionary.KINDS, "residual"} - {"random"}


@pytest.mark.parametrize("rows, options, said", [
    (table(100), ("--text", "headlin", "--label", "clicked"), "did you mean 'headline'"),
    (table(10), ("--text", "headline", "--label", "clicked"), "too few rows"),
    ([{**r, "clicked": 1} for r in table(100)], ("--text", "headline", "--label", "clicked"), "one label only"),
    ([{**r, "headline": "same"} for r in table(100)], ("--text", "headline", "--label", "clicked"), "are the same"),
    ([{**r, "clicked": "nan"} for r in table(100)], ("--text", "headline", "--label", "clicked"), "one label only"),
    ([{**r, "headline": " "} for r in table(100)], ("--text", "headline", "--label", "clicked"), "no usable row"),
    (table(100), ("--text", "headline"), "--text and --label"),
    (table(100), ("--text", "headline", "--label", "clicked", "--embedder", "nowhere"), "no embedder"),
])  # fmt: skip
def test_bad_input_is_one_clear_message(tmp_path: Path, rows, options, said: str):
    got = invoke(save(tmp_path / "data.csv", rows), *options, "--runs", tmp_path / "runs")
    assert got.exit_code == 2 and said in got.output and "Traceback" not in got.output
    assert not (tmp_path / "runs").exists()


def test_wrong_encoding_on_the_command_line(tmp_path: Path):
    (tmp_path / "data.csv").write_bytes("headline,clicked\ncaf\xe9,1\n".encode("latin-1"))
    got = invoke(tmp_path / "data.csv", "--text", "headline", "--label", "clicked")
    assert got.exit_code == 2 and "line 2 is not UTF-8" in got.output


def test_enormous_empty_and_numeric_rows_degrade_soundly(tmp_path: Path):
    rows = [{**r, "clicked": i % 5 + 3 * ("village" in r["headline"])} for i, r in enumerate(table(260, seed=2))]
    rows[0]["headline"], rows[1]["headline"] = "village " * 40_000, ""
    rows[2]["clicked"] = "nan"
    path = save(tmp_path / "data.csv", rows)
    settings = verb.Settings(path, ("headline",), "clicked", k=4, arms=("ngrams",), runs=tmp_path / "runs")
    told = verb.execute(verb.prepare(settings), permutations=10)
    assert told["kind"] == "numeric" and told["measure"] == "R²" and told["data"]["rows"] == 258
    assert sum(told["data"]["dropped"].values()) == 2 and "cut" in told["data"]["notes"][0]
    assert told["lists"]["texts.ngrams"]["hypotheses"][0]["found"]
