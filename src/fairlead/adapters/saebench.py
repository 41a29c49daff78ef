"""A study as SAEBench result JSON, the shape that every SAEBench evaluation writes, and that shape read back.

The shape is that of `BaseEvalOutput` in adamkarvonen/SAEBench 0.6 (read on 2026-11-28): a head, categories of flat
metrics, details in a list. Its own types (`core`, `scr`, `absorption_first_letter`, ...) are other measurements than
a study's, so a study is a type of its own, `fairlead_study`: one category an arm, the claim's contrasts in another,
the whole headline table as details. What SAEBench would say of software that did not run (its commit, SAE Lens) is
"" or null. A measure that was not taken is left out, as their metrics are numbers; null and NaN are never written.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import fairlead
from fairlead.core.errors import LoadError
from fairlead.core.keys import content_key
from fairlead.report.export import rows
from fairlead.report.source import Source
from fairlead.report.source import read as read_run

TYPE = "fairlead_study"
LATEST = 9_999_999_999_999  # their bound on a time, in milliseconds
_NEEDED = (
    "eval_type_id", "eval_config", "eval_id", "datetime_epoch_millis", "eval_result_metrics", "eval_result_details",
    "sae_bench_commit_hash", "sae_lens_id", "sae_lens_release_id", "sae_lens_version", "sae_cfg_dict",
)  # fmt: skip


def results(run: Path | str | Source, *, millis: int) -> list[dict[str, Any]]:
    """One result for each model and decoding mode of a run. `millis` is the time to state, since 1970."""
    source = run if isinstance(run, Source) else read_run(run)
    table = rows(source)
    places = dict.fromkeys((row["model"], row["decoding"]) for row in table)
    return [_result(source, table, model, decoding, millis) for model, decoding in places]


def check(result: Mapping[str, Any]) -> dict[str, Any]:
    """`result`, if it has the shape that SAEBench's tools read. LoadError says what is off."""
    if not isinstance(result, Mapping):
        raise LoadError("a result of SAEBench's is a JSON object", got=type(result).__name__)
    if missing := [key for key in _NEEDED if key not in result]:
        raise LoadError("this is no result of SAEBench's", expected=", ".join(_NEEDED), got=f"no {', '.join(missing)}")
    when, metrics = result["datetime_epoch_millis"], result["eval_result_metrics"]
    if type(when) is not int or not 0 <= when <= LATEST:
        raise LoadError("datetime_epoch_millis is a time in milliseconds", got=repr(when)[:80])
    if not isinstance(metrics, Mapping) or not all(isinstance(group, Mapping) for group in metrics.values()):
        raise LoadError("eval_result_metrics are categories of metrics", got=type(metrics).__name__)
    for category, group in metrics.items():
        for name, value in group.items():
            if isinstance(value, Mapping):
                raise LoadError(f"metrics are flat: {category}.{name} is an object")
    return dict(result)


def read(file: Path) -> dict[str, Any]:
    """A result from disk, of any SAEBench evaluation, checked."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise LoadError(f"{file} cannot be read", expected="a result of SAEBench's, as JSON", got=str(error)) from error
    return check(found)


def export(run: Path, out: Path, *, millis: int) -> list[Path]:
    """Writes `OUT/fairlead_study/RUN_MODEL_DECODING_eval_results.json`, as SAEBench names its files."""
    source = read_run(run)
    folder, written = out / TYPE, []
    folder.mkdir(parents=True, exist_ok=True)
    for result in results(source, millis=millis):
        config = result["eval_config"]
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", f"{source.run_id}_{config['model_name']}_{config['decoding']}")
        file = folder / f"{name}_eval_results.json"
        file.write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        written.append(file)
    return written


def _result(source: Source, table: list[dict[str, Any]], model: str, decoding: str, millis: int) -> dict[str, Any]:
    mine = [row for row in table if (row["model"], row["decoding"]) == (model, decoding)]
    plan, verdict = source.plan, source.verdict
    dictionary = (plan.dictionary_of(model) if plan else "") or None
    config = {
        "model_name": model, "decoding": decoding, "question": source.question, "claim": source.claim,
        "primary": source.measures[0], "plan": plan.hash if plan else None, "lock": source.run.lock,
        "exploratory": source.run.exploratory,
    }  # fmt: skip
    result = {
        "eval_type_id": TYPE,
        "eval_config": config,
        "eval_id": str(uuid.UUID(content_key([TYPE, config, mine])[:32])),
        "datetime_epoch_millis": millis,
        "eval_result_metrics": {
            **{f"arm_{row['arm']}": _numbers(row) for row in mine},
            "claim": _claim(verdict.contrasts, model, decoding, source),
        },
        "eval_result_details": mine,
        "sae_bench_commit_hash": "",
        "sae_lens_id": dictionary,
        "sae_lens_release_id": None,
        "sae_lens_version": None,
        "sae_cfg_dict": {"name": dictionary} if dictionary else None,
        "eval_result_unstructured": {
            "written_by": f"fairlead {fairlead.__version__}",
            "verdict": verdict.status if plan else None,
            "reasons": list(verdict.reasons) if plan else [],
        },
    }
    return check(result)


def _numbers(row: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(v) for key, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def _claim(contrasts: Any, model: str, decoding: str, source: Source) -> dict[str, float]:
    """The claim against each arm on the primary measure, where the question is asked: estimate, interval, n."""
    out: dict[str, float] = {}
    where = dict(source.verdict.question.where)
    for c in contrasts:
        if (c.model, c.decoding, c.arm, c.measure) != (model, decoding, source.claim, source.measures[0]):
            continue
        if dict(c.where) != where:
            continue
        d, span = c.difference, c.difference.interval
        told = {"difference": d.estimate, "lo": span and span.low, "hi": span and span.high, "p_holm": c.p_holm,
                "pairs": d.pairs, "clusters": d.clusters}  # fmt: skip
        out |= {f"minus_{c.against}_{k}": float(v) for k, v in told.items() if v is not None}
    return out
