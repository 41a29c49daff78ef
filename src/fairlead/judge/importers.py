"""Results of other people's studies, as Records. What a file does not hold stays not measured."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from fairlead.core.errors import RecordError
from fairlead.core.types import Cost, Record

_RUN_ID = re.compile(r"(?P<task>.+)_seed_(?P<seed>\d+)_(?P<policy>.+)")


def inside_the_agent(folder: str | Path) -> tuple[Record, ...]:
    """The rows of kalyvask/inside-the-agent (`artifacts/results/*.jsonl`, MIT): one row is one episode.

    `success` becomes the score `loose`, `strict_success` becomes `strict` where the row has it. A task is a
    cluster; its three seeds are not independent. Tokens were not published, so costs are zero here.
    """
    files = sorted(Path(folder).glob("*.jsonl"))
    if not files:
        raise RecordError("no results to import", expected=f"*.jsonl in {folder}", got="none")
    return tuple(
        _row(json.loads(line), f"{file.name}:{number}")
        for file in files
        for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1)
        if line.strip()
    )


def _row(row: dict[str, Any], where: str) -> Record:
    match = _RUN_ID.fullmatch(str(row.get("run_id", "")))
    if match is None or not isinstance(row.get("success"), bool):
        raise RecordError(f"{where} is no result row", expected="run_id and success", got=repr(row)[:120])
    task, arm = str(row["task_id"]), str(row["policy"])
    if (match["task"], match["policy"]) != (task, arm):
        raise RecordError(f"{where}: run_id and fields disagree", expected=f"{task}, {arm}", got=str(row["run_id"]))
    return Record(
        trial=f"inside-the-agent/{arm}/{match['seed']}",
        arm=arm,
        model="inside-the-agent/8b",
        decoding="free",
        seed=int(match["seed"]),
        item=task,
        cluster=task,
        split="test",
        strata={"category": task.partition("_")[0]},
        outcome={"steps": row.get("steps"), "total_reward": row.get("total_reward")},
        score={"loose": row["success"], "strict": row.get("strict_success")},
        error=None,
        cost=Cost(),
    )
