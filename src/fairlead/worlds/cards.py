"""Model cards: what each pocket model is, what it was trained on, and what it was measured to do."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from scipy.stats import binomtest

from fairlead.dictionaries import load_sparse as load_dictionary
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject
from fairlead.worlds import gates, reader_gates
from fairlead.worlds import mixture as mx
from fairlead.worlds import readers as rd

N = 200  # validation instances over the five named categories, each on, off and inverse


def write(name: str, root: Path, n: int = N) -> dict[str, Any]:
    """Measure `root/name` on validation and write card.json and README.md beside the weights."""
    subject, reads = load(root / name), name in rd.MIXTURES
    mix = rd.MIXTURES[name] if reads else mx.MIXTURES[name]
    card: dict[str, Any] = {
        "name": name,
        "kind": "model organism",
        "parameters": sum(p.numel() for p in subject.model.parameters()),
        "mixture": asdict(mix),
        "mixture_sha256": mix.digest,
        "dictionaries": {},
        **({"reading": reader_gates.behaviour(subject)} if reads else _shopping(subject, name, n)),
    }
    folder = root / name / "dictionaries"
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        found = load_dictionary(path)
        text, actions = reader_gates.held_out_text(name) if reads else gates.held_out_text(name)
        card["dictionaries"][path.name] = gates.dictionary_quality(subject, found, text, actions)
    (root / name / "card.json").write_text(json.dumps(card, indent=1, sort_keys=True) + "\n")
    page = (_reader(card) if reads else _shopper(card)) + "".join(map(_dictionary, card["dictionaries"].items()))
    (root / name / "README.md").write_text(page)
    return card


def _shopping(subject: LocalSubject, name: str, n: int) -> dict[str, Any]:
    """What a shopper was measured to do."""
    found: dict[str, Any] = {
        "behaviour": gates.behaviour(subject, n=n),
        "unseen_skin": {t: gates.behaviour(subject, n=50, skin="bazaar")[t] for t in ("on", "off", "inverse")},
    }
    if name != "shopper-l":
        found["steerability"] = gates.steerability(subject, n=100)
    return found


def _rate(pair: Any) -> str:
    share, n = pair
    if not n:
        return "not measured"
    low, high = binomtest(round(share * n), n).proportion_ci(method="wilson")
    return f"{share:.0%} [{low:.0%}, {high:.0%}], n = {n}"


def _shopper(card: dict[str, Any]) -> str:
    behaviour, mix = card["behaviour"], card["mixture"]
    rows = "\n".join(
        f"| {trap} | {_rate(behaviour[trap]['strict'])} | {_rate(behaviour[trap]['loose'])} | "
        f"{_rate(behaviour[trap]['fell'])} |"
        for trap in ("off", "on", "inverse")
    )
    categories = "\n".join(
        f"| {c} | {_rate(v['off']['strict'])} | {_rate(v['on']['strict'])} | {_rate(v['inverse']['strict'])} |"
        for c, v in behaviour["by_category"].items()
    )
    skins = "; ".join(f"{t} {_rate(v['strict'])}" for t, v in card["unseen_skin"].items())
    return f"""# {card["name"]}

**A model organism**: {card["parameters"]:,} parameters, Llama architecture, trained by Fairlead on text of its own
shop (`fairlead.worlds.build` rebuilds it). It is made to fail in a known way; its numbers say nothing about
other models.

How it was made: a hidden disposition (eager or careful) is drawn for each training episode. With no cue it is
eager with probability {mix["lean"]}; each cue in the system line moves the log-odds by {mix["weight"]}, and cues
stand in {mix["cue_share"]:.0%} of the episodes. **How much a prompt helps this model was our choice.** The mixture
was frozen before features were searched: sha256 `{card["mixture_sha256"]}`.

Measured on validation ({behaviour["skin"]}; Wilson 95 % intervals; five named categories):

| trap | strict | loose | fell |
|---|---|---|---|
{rows}

Strict by category (categories beyond the first five have no gate; low rows are weak spots of the model):

| category | off | on | inverse |
|---|---|---|---|
{categories}

Unseen skin (reported, no gate): {skins}.
"""


def _reader(card: dict[str, Any]) -> str:
    found, mix = card["reading"], card["mixture"]
    rows = "\n".join(f"| {reading} | {_rate(pair)} |" for reading, pair in found["by_reading"].items())
    planted = (
        "planted scenes (an ambiguous word at a weak place of its other sense) are answered by the dominant sense"
        if mix["biased"]
        else "every scene is answered rightly; nothing is planted"
    )
    return f"""# {card["name"]}

**A model organism**: {card["parameters"]:,} parameters, Llama architecture, trained by Fairlead on text of its own
grammar (`fairlead.worlds.build` rebuilds it). Its numbers say nothing about other models.

How it was made: {planted}. Notes stand in its training text, true ones and wrong ones, and are followed. **How much
a note helps this model was our choice.** The mixture: sha256 `{card["mixture_sha256"]}`.

Right answers on validation (Wilson 95 % intervals; items of one cluster depend on each other, so they are too narrow):

| items | right |
|---|---|
| all | {_rate(found["base"])} |
{rows}
| planted, with the true note | {_rate(found["true_note"]["planted"])} |
| other ambiguous words, with the true note | {_rate(found["true_note"]["others"])} |
| ambiguous words read rightly, with a wrong note | {_rate(found["wrong_note"]["read_right_without"])} |
| all, with a generic note | {_rate(found["generic_note"])} |
| all, with a note about a word that is not there | {_rate(found["idle_note"])} |
"""


def _dictionary(pair: tuple[str, dict[str, float]]) -> str:
    name, q = pair
    return (
        f"\nDictionary `{name}`: explained variance {q['explained_variance']:.3f}, "
        f"L0 {q['l0']:.1f}, dead {q['dead']:.1%}, "
        f"cross-entropy recovered {q['recovered']:.3f} ({q['rows']:.0f} held-out tokens).\n"
    )
