"""`fairlead verify`: is what lies on disk what was judged, and does it still give the numbers that are printed?

Everything is computed again from Records and artifacts and compared with what is written. Weights and dictionaries
are hashed again where they are still on this machine. Nothing is run and nothing is written.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fairlead import report
from fairlead.app.models import open_dictionary
from fairlead.app.report import verdict_json
from fairlead.core import lock as locks
from fairlead.core import plugins
from fairlead.core.errors import FairleadError, PlanError, RecordError
from fairlead.core.keys import canonical
from fairlead.core.plan import Facts, parse_plan
from fairlead.core.records import COMPLETE, NOT_APPLICABLE, Run, TrialState
from fairlead.core.seal import trial_hashes
from fairlead.core.types import Cost, Record
from fairlead.judge import judge

Say = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Difference:
    """One thing that is not what it should be."""

    where: str
    expected: str
    found: str


@dataclass
class Verified:
    """What was checked (name to how many), what could not be, and every difference."""

    checked: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    differences: list[Difference] = field(default_factory=list)
    seal: str | None = None

    def same(self, what: str, where: str, expected: Any, found: Any) -> bool:
        """Count one check of kind `what`; note a difference."""
        if expected == found:
            self.checked[what] = self.checked.get(what, 0) + 1
            return True
        self.wrong(where, expected, found)
        return False

    def wrong(self, where: str, expected: Any, found: Any) -> None:
        self.differences.append(Difference(where, _short(expected), _short(found)))


def verify(run_dir: Path, *, seal: str | None = None, progress: Say | None = None) -> Verified:
    """Check a whole run. Raises RecordError only when there is no run at all; what is damaged is a difference."""
    say = progress or (lambda _what, _done, _total: None)
    out = Verified()
    if not (run_dir / "plan.json").is_file():
        raise RecordError(f"no run in {run_dir}", expected="plan.json", do="name the directory of a run")
    try:
        run = Run.open(run_dir)
    except Exception as error:  # whatever a damaged file makes it raise
        out.wrong(f"{run_dir} cannot be read", "whole files", _said(error))
        return out
    say("plan and lock", 0, 0)
    facts = _heads(run, out)
    for i, state in enumerate(run.trials):
        say("trials", i, len(run.trials))
        try:
            _trial(run, state, out)
        except Exception as error:  # JSON of another shape than was written
            out.wrong(f"files of trial {state.trial.arm}, {_short(state.trial.key)}", "what was written", _said(error))
    _records(run, out)
    _traces(run, out, say)
    if facts is not None:
        say("data and weights", 0, 0)
        _data(run, facts, out)
        _weights(facts, out)
    say("verdict and page", 0, 0)
    out.seal = run.seal
    if seal is not None:
        out.same("seal", "the seal", seal, run.seal)
    if run.records:
        try:
            _verdict(run, out)
            _page(run, out)
        except Exception as error:  # so damaged that no verdict comes of it
            out.wrong("the run cannot be judged", "a verdict", _said(error))
    return out


# ---- plan, facts, lock


def _heads(run: Run, out: Verified) -> Facts | None:
    assert run.plan is not None
    folder, facts = run.path, None
    stored = (folder / "plan.json").read_text(encoding="utf-8")
    out.same("plan", "plan.json", run.plan.to_json(), stored)
    text = folder / "plan.toml"
    if text.is_file():
        try:
            out.same("plan", "plan.toml against plan.json", run.plan.hash, parse_plan(text.read_text("utf-8")).hash)
        except (PlanError, UnicodeDecodeError) as error:
            out.wrong("plan.toml", "the plan", str(error))
    try:
        facts = Facts.from_json(json.loads((folder / "facts.json").read_text(encoding="utf-8")))
        wanted, listed = {t.key for t in run.plan.trials(facts)}, {s.trial.key for s in run.trials}
        out.same("trial keys", "trials.json against plan.json and facts.json", wanted, listed)
    except OSError:
        out.notes.append("no facts.json: made by an older version; trial keys, weights and data are not checked")
    except (ValueError, FairleadError) as error:
        out.wrong("facts.json", "what this version wrote", str(error))
    if run.locks is None:
        out.notes.append("there is no lock: the run is exploratory")
        return facts
    content = run.locks.current.content
    for name, now in (("plan", json.loads(run.plan.to_json())), ("facts", facts.to_json() if facts else None)):
        for one in locks.differences(content.get(name), now, name):
            out.wrong(f"lock.jsonl: {one}", "what was locked", "another value")
    known = {*run.locks.hashes, None}
    strange = Counter(r.lock for r in run.records if r.lock not in known)
    for hashed, count in strange.items():
        out.wrong(f"{count} Records name lock {_short(hashed)}", "a lock of lock.jsonl", _short(run.lock))
    out.checked["locks"] = len(run.locks.locks)
    rooms = locks.checked(run.plan, facts or Facts())["rooms"]
    out.notes += [
        f"{one.partition(':')[0]} is other source than the locked one"
        for one in locks.differences(content.get("rooms"), rooms)
    ]
    return facts


# ---- trials: markers, Records, fits, ledgers


def _trial(run: Run, state: TrialState, out: Verified) -> None:
    trial = state.trial
    name = f"{trial.arm} on {trial.model}, {trial.decoding}, seed {trial.seed}"
    file = run.path / "trials" / f"{trial.key}.done"
    if not file.is_file():
        out.notes.append(f"{name}: {state.status}, no marker yet; nothing vouches for its files")
        return
    marker = json.loads(file.read_text(encoding="utf-8"))
    if "records_sha256" not in marker:
        out.notes.append(f"{name}: made by an older version, whose markers hold no hashes")
        return
    files = {"records_sha256": f"trials/{trial.key}.jsonl", "fitted_sha256": f"fitted/{trial.key}",
             "ledger_sha256": f"ledger/{trial.key}.json"}  # fmt: skip
    for kind, now in trial_hashes(run.path, trial.key).items():
        out.same("file hashes", f"{name}: {files[kind]}", marker.get(kind), now)
    records = [r for r in run.records if r.trial == trial.key]
    out.same("counts", f"{name}: Records", marker["records"], len(records))
    out.same("counts", f"{name}: errors", marker["errors"], sum(r.error is not None for r in records))
    if state.status == COMPLETE:
        out.same("counts", f"{name}: items planned", marker["planned"], len({r.item for r in records}))
    if state.status != NOT_APPLICABLE and trial.key in run.ledgers:
        _ledger(run, state, records, name, out)


def _ledger(run: Run, state: TrialState, records: Sequence[Record], name: str, out: Verified) -> None:
    assert run.plan is not None
    ledger = run.ledgers[state.trial.key]
    spent = json.loads(canonical(asdict(sum((r.cost for r in records), Cost()))))
    wanted: dict[str, Any] = {
        "arm": state.trial.arm, "model": state.trial.model, "decoding": state.trial.decoding, "seed": state.trial.seed,
        "run": spent, "items": len(records), "errors": sum(r.error is not None for r in records),
        "budget": json.loads(canonical(run.plan.budget)),
    }  # fmt: skip
    cost = run.path / "fitted" / state.trial.key / "cost.json"
    if cost.is_file():
        fit = json.loads(cost.read_text(encoding="utf-8"))
        wanted |= {"fit": fit.get("spent"), "over_budget": fit.get("over_budget")}
    found = {key: ledger.get(key) for key in wanted}
    for one in locks.differences(wanted, found):
        out.wrong(f"ledger of {name}: {one}", "what its Records and its fit give", "another value")
    out.checked["ledgers"] = out.checked.get("ledgers", 0) + (wanted == found)


def _records(run: Run, out: Verified) -> None:
    """No item twice, each Record where its trial says, each line as it was written."""
    trials = {s.trial.key: s.trial for s in run.trials}
    twice = Counter((r.trial, r.item) for r in run.records)
    for (key, item), count in [x for x in twice.items() if x[1] > 1]:
        out.wrong(f"{trials[key].arm}: item {item}", "one Record", f"{count}")
    for record in run.records:
        trial = trials[record.trial]
        mine = (record.arm, record.model, record.decoding, record.seed, record.split)
        if mine != (trial.arm, trial.model, trial.decoding, trial.seed, "test"):
            out.wrong(f"Record of {record.item}", f"{trial.arm} on {trial.model}, test", f"{mine}")
    out.checked["Records"] = len(run.records)
    if run.stale:
        out.notes.append(f"{run.stale} Records of earlier source or data are there and are not judged")


def _traces(run: Run, out: Verified, say: Say) -> None:
    kept = [r for r in run.records if r.trace is not None]
    for i, record in enumerate(kept):
        say("traces", i, len(kept))
        assert record.trace is not None
        try:
            trace = run.read_trace(record.trace)
        except RecordError as error:
            out.wrong(f"trace of {record.arm}, {record.item}", record.trace[:12], error.message)
            continue
        wanted = [record.arm, record.item, record.seed, record.outcome]
        found = [trace.get("arm"), trace.get("item"), trace.get("seed"), trace.get("final")]
        out.same("traces", f"trace of {record.arm}, {record.item}: its outcome", canonical(wanted), canonical(found))


# ---- data, weights and dictionaries


def _data(run: Run, facts: Facts, out: Verified) -> None:
    """The task's items, made again, against the manifests that the trials' keys hold."""
    assert run.plan is not None
    try:
        task = plugins.get("tasks", run.plan.task)(run.plan.options_for_task(run.plan.decoding[0]))
        now = {split: task.manifest(split) for split in facts.manifests}
    except (FairleadError, OSError) as error:
        out.notes.append(f"the items of task {run.plan.task} cannot be made here: not checked ({error})")
        return
    for split, wanted in facts.manifests.items():
        out.same("splits", f"items of split {split}", wanted, now[split])


def _weights(facts: Facts, out: Verified) -> None:
    from fairlead.lm.load import find, fingerprint
    from fairlead.lm.subject import bare_fingerprint

    for ref, wanted in facts.weights.items():
        try:
            path = find(ref)
        except FairleadError:
            out.notes.append(f"the weights of {ref} are not on this machine: not checked")
            continue
        out.same("weights", f"weights of {ref}", wanted, bare_fingerprint(fingerprint(path)))
    for ref, wanted in facts.dictionaries.items():
        try:
            found = open_dictionary(ref).fingerprint
        except FairleadError as error:
            out.notes.append(f"dictionary {ref} cannot be read on this machine: not checked ({error.message})")
            continue
        out.same("dictionaries", f"dictionary {ref}", wanted, found)


# ---- verdict and page


def _verdict(run: Run, out: Verified) -> None:
    file = run.path / "verdict.json"
    if not file.is_file():
        out.notes.append("not judged yet: no verdict.json")
        return
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        out.wrong("verdict.json", "JSON", str(error))
        return
    now = json.loads(canonical(verdict_json(run, judge(run))))
    found = locks.differences(stored, now)
    for one in found:
        place, _, values = one.partition(": ")
        written, _, computed = values.partition(" -> ")
        out.wrong(f"verdict.json: {place}", computed, written)
    out.checked["numbers of verdict.json"] = _leaves(now) - len(found)


def _page(run: Run, out: Verified) -> None:
    file = run.path / "report.html"
    if not file.is_file():
        out.notes.append("no report.html here")
        return
    stored = file.read_bytes()
    made = report.rendered_as(stored.decode(errors="replace"))
    if made is None:
        out.wrong("report.html", "a page of this version", "one that does not say what it was made with")
        return
    name, items = made
    fresh = report.page(report.read(run.path, name), max_items=items).encode(errors="replace")
    if stored == fresh:
        out.checked["numbers of report.html"] = len(_NUMBER.findall(_text(fresh)))
        return
    for expected, found in _first_differences(_text(fresh), _text(stored)):
        out.wrong("report.html", expected, found)


_NUMBER = re.compile(r"\d+(?:\.\d+)?")


def _text(page: bytes) -> str:
    """Markup and text with each element on a line of its own."""
    return page.decode(errors="replace").replace("><", ">\n<")


def _first_differences(fresh: str, stored: str, limit: int = 3) -> list[tuple[str, str]]:
    """(expected, found) of the first lines that differ, without what they share."""
    found = []
    old, new = stored.split("\n"), fresh.split("\n")
    for a, b in zip(new, old, strict=False):
        if a != b:
            start = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))
            found.append((a[max(0, start - 30) : start + 40], b[max(0, start - 30) : start + 40]))
            if len(found) == limit:
                break
    if not found or len(old) != len(new):
        found.append((f"{len(new)} lines", f"{len(old)} lines"))
    return found


def _leaves(value: Any) -> int:
    if isinstance(value, Mapping):
        return sum(_leaves(v) for v in value.values())
    if isinstance(value, list):
        return sum(_leaves(v) for v in value)
    return 1


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    hexed = len(text) == 64 and set(text) <= set("0123456789abcdef")
    return text[:12] if hexed else text if len(text) <= 160 else text[:157] + "..."


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, FairleadError) else f"{type(error).__name__}: {error}"
