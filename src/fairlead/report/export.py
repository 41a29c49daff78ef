"""The headline table as JSON and CSV, at full precision. An empty cell or null means not measured."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

from fairlead.report.headline import organism, tables
from fairlead.report.source import Source, read


def rows(run: Path | str | Source) -> list[dict[str, Any]]:
    """One flat mapping per arm, model and decoding mode."""
    source = run if isinstance(run, Source) else read(run)
    out = []
    for table in tables(source):
        for row in table.rows:
            flat: dict[str, Any] = {
                "model": table.model, "model_organism": organism(table.model), "decoding": table.decoding,
                "arm": row.arm, "kind": row.kind, "n": row.n, "errors": row.errors, "clusters": row.clusters,
            }  # fmt: skip
            sides = {f"{source.measures[0]}_{trap}": r for trap, r in row.sides.items()}
            for name, rate in {**row.rates, **sides}.items():
                flat |= {name: rate.value, f"{name}_lo": rate.lo, f"{name}_hi": rate.hi, f"{name}_n": rate.n}
            deltas = {
                "delta": row.delta,
                "claim_minus_arm": row.lead,
                **{f"delta_{trap}": d for trap, d in row.side_deltas.items()},
            }
            for name, delta in deltas.items():
                flat |= {name: delta.value, f"{name}_lo": delta.lo, f"{name}_hi": delta.hi, f"{name}_p": delta.p}
            flat |= {"delta_p_holm": row.delta.p_holm, "claim_minus_arm_p_holm": row.lead.p_holm}
            flat |= {"delta_q": row.delta.q, "claim_minus_arm_q": row.lead.q}
            flat |= {f"funnel_{stage}": share for stage, share in row.funnel}
            flat |= {"exploratory": source.run.exploratory, "lock": source.run.lock}
            flat |= {"tokens_per_success": row.tokens_per_success, "flops_per_success": row.flops_per_success}
            out.append(flat)
    return out


def to_json(run: Path | str | Source) -> str:
    return json.dumps(rows(run), indent=1, allow_nan=False)


def to_csv(run: Path | str | Source) -> str:
    found = rows(run)
    names = list(dict.fromkeys(name for row in found for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in found)
    return text.getvalue()
