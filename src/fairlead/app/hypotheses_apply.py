"""Saved hypotheses, read again and run on new texts. Nothing in the file is executed; predicates are data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.app.embedders import Embedding, load_tfidf, open_embedder
from fairlead.app.features import Ask, annotator
from fairlead.core.errors import LoadError
from fairlead.judge.effects import test_all
from fairlead.report import hypotheses as pages
from fairlead.tasks.hypotheses.read import Columns, Row, read_table
from fairlead.tasks.hypotheses.splits import assign

FORMAT = 1
TFIDF = "embedder.safetensors"  # beside a saved file whose predicates need it
LARGEST = 200_000_000  # bytes of a saved file


def load_saved(path: str | Path) -> dict[str, Any]:
    """What `fairlead hypothesize` saved. LoadError for anything else; every predicate is checked."""
    from fairlead.features.texts import predicates

    path = Path(path)
    try:
        if path.stat().st_size > LARGEST:
            raise LoadError(f"{path} is too large", expected=f"at most {LARGEST:,} bytes")
        saved = json.loads(path.read_text(encoding="utf-8"))
        columns = saved["columns"]
        assert saved["format"] == FORMAT and isinstance(saved["kind"], str)
        assert all(isinstance(t, str) for t in columns["text"]) and isinstance(columns["label"], str)
        for arm in saved["lists"].values():
            for row in arm["hypotheses"]:
                assert isinstance(row["text"], str)
                predicates.from_json(row["predicate"])
        assert saved["claim"] in saved["lists"]
    except OSError as error:
        raise LoadError(f"{path} cannot be read", expected="hypotheses.json", got=error.strerror or "") from error
    except (ValueError, KeyError, TypeError, AssertionError, AttributeError, RecursionError) as error:
        raise LoadError(
            f"{path} holds no saved hypotheses", expected="the hypotheses.json of a run", got=f"{error}"[:200]
        ) from error
    return dict(saved)


def apply(
    saved: Path, data: Path, *, arm: str = "", embedder: str = "", ask: Ask | None = None, permutations: int = 200
) -> dict[str, Any]:
    """Run saved hypotheses on the rows of another table. Where it has the label, each effect is measured there, all
    rows counted; otherwise only where each holds. Returns JSON values."""
    told = load_saved(saved)
    arm = arm or told["claim"]
    if arm not in told["lists"]:
        raise LoadError(f"no hypotheses of {arm!r} in {saved}", expected=", ".join(told["lists"]))
    columns = _columns(told)
    table = read_table(data, columns, labelled=False)
    labelled = bool(table.kind) and any(row.label != "" for row in table.rows)
    kept = told["lists"][arm]["hypotheses"]
    fired = asyncio.run(_fired(told, kept, table.rows, embedder, ask, Path(saved).parent))
    rows = [
        {"hypothesis": h["text"], "predicate": h["predicate"], "holds": int(sum(x != 0 for x in column)),
         "prevalence": sum(x != 0 for x in column) / max(1, len(column)),
         "before": h["effect"], "found_before": h["found"]}
        for h, column in zip(kept, fired, strict=True)
    ]  # fmt: skip
    out: dict[str, Any] = {"rows": len(table.rows), "dropped": dict(table.dropped), "notes": list(table.notes),
                           "kind": told["kind"], "labelled": labelled}  # fmt: skip
    if labelled and table.rows:
        out |= _effects(told, table.rows, fired, rows, permutations)
    out["hypotheses"] = rows
    matrix = list(zip(*fired, strict=True)) if fired else [()] * len(table.rows)
    out["matches"] = [
        {"row": row.number, "text": " | ".join(row.texts), "holds": [i + 1 for i, x in enumerate(at) if x]}
        for row, at in zip(table.rows, matrix, strict=True)
    ]
    return out


def _columns(told: dict[str, Any]) -> Columns:
    given = told["columns"]
    kind = "" if told["kind"] == "pairwise" else told["kind"]
    positive = given["positive"]
    if told["kind"] == "binary":
        positive = told["positive"].partition(" = ")[2]
    return Columns(
        tuple(given["text"]), given["label"], given["pair"], tuple(given["covariates"]), given["group"], positive, kind
    )


async def _fired(
    told: dict[str, Any], kept: Sequence[dict[str, Any]], rows: Sequence[Row], embedder: str, ask: Ask | None,
    beside: Path,
) -> list[list[float]]:
    """[hypotheses][rows]: 1 or 0; of a pair first minus second."""
    from fairlead.features.texts import predicates

    model = _embedder(told, kept, embedder, beside)
    sides = [[row.texts[i] for row in rows] for i in range(len(rows[0].texts) if rows else 1)]
    read = [predicates.Read(side, predicates.Tools(model, None if ask is None else annotator(ask))) for side in sides]
    out = []
    for row in kept:
        found = [await predicates.fires(row["predicate"], side) for side in read]
        values = found[0].astype(float) - (found[1].astype(float) if len(found) > 1 else 0.0)
        out.append([float(x) for x in values])
    return out


def _embedder(told: dict[str, Any], kept: Sequence[dict[str, Any]], ref: str, beside: Path) -> Embedding | None:
    """The embedder that the predicates were made with; None where none of them asks for it."""
    if not any(row["predicate"].get("kind") == "near" for row in kept):
        return None
    made = told["embedder"]
    model = load_tfidf(beside / TFIDF) if made["ref"] == "tfidf" else open_embedder(ref or made["ref"])
    if model.fingerprint != made["fingerprint"]:
        raise LoadError("the embedder is not the one the hypotheses were made with",
                        expected=f"{made['name']} {made['fingerprint'][:16]}", got=model.fingerprint[:16])  # fmt: skip
    return model


def _effects(
    told: dict[str, Any], rows: Sequence[Row], fired: list[list[float]], out: list[dict[str, Any]], permutations: int
) -> dict[str, Any]:
    kind = told["kind"]
    placed = {p.row.number: p.cluster for p in assign(rows)}
    labels = [row.label for row in rows]
    names = list(rows[0].covariates)
    covariates = [[row.covariates[n] for n in names] for row in rows] if names else None
    classes = told["classes"] if kind == "multiclass" else ()
    y = labels if kind == "multiclass" else [float(v) for v in labels]
    by_row = [list(at) for at in zip(*fired, strict=True)]
    tests = test_all(by_row, y, [placed[r.number] for r in rows], covariates=covariates, classes=classes,
                     permutations=permutations)  # fmt: skip
    for row, tested in zip(out, tests.tested, strict=True):
        effect = tested.decides
        before = row["before"]
        row |= {
            "effect": None if effect is None else asdict(effect), "p_holm": tested.p_holm, "q": tested.q,
            "found": tested.found, "note": tested.note,
            "same_sign": None if effect is None or before is None else (effect.value > 0) == (before["value"] > 0),
        }  # fmt: skip
    summary = {k: v for k, v in asdict(tests).items() if k != "tested"}
    return {**summary, "said": pages.lead_of_replication(out)}
