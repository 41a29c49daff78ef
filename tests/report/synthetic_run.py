"""A made-up run in the disk format, for looking at the report and testing it. Every number in it is invented."""

from __future__ import annotations

import hashlib
import html
import json
import random
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fairlead.core.plan import plan_from
from fairlead.core.records import Store
from fairlead.core.types import Cost, Record, Trial

CATEGORIES = ("promo", "sponsored", "urgency", "addon", "upsell", "lookalike", "absent", "budget")
TRAPS = ("on", "off", "inverse")
ARMS = (
    "none",
    "prompt",
    "feature",
    "prompt+feature",
    "control.empty",
    "control.wrong_sign",
    "control.random",
    "control.noise",
)
# arm -> chance of strict success with the trap on, off and inverse
SKILL = {
    "none": (0.22, 0.88, 0.91), "prompt": (0.55, 0.85, 0.62), "feature": (0.64, 0.83, 0.74),
    "prompt+feature": (0.78, 0.80, 0.58), "control.empty": (0.22, 0.88, 0.91), "control.wrong_sign": (0.12, 0.86, 0.93),
    "control.random": (0.25, 0.84, 0.87), "control.noise": (0.23, 0.80, 0.85), "reference": (0.90, 0.95, 0.93),
}  # fmt: skip
HOSTILE = (
    "</script><script>window.__owned=1</script>", '"><img src=x onerror="window.__owned=2">',
    "javascript:window.__owned=3", "<iframe src='http://evil.example/owned'></iframe>", "\u2028window.__owned=4\u2029",
    '<meta http-equiv="refresh" content="0;url=http://evil.example/refresh">', "{{ 7*7 }}", "<!--", "]]>",
    '<link rel=stylesheet href="http://evil.example/x.css"><style>@import url(http://evil.example/y.css);</style>',
)  # fmt: skip
EDIT = "@layer 2: 317 -= 2 max; 88 += 1 max"


def write_run(
    root: Path, *, per_category: int = 8, hostile: bool = False, seed: int = 0, traced: int = 6,
    shift: float = 0.0, errors: int = 2, name: str = "synthetic-shop",
    categories: tuple[str, ...] = CATEGORIES,
) -> Path:  # fmt: skip
    """Write `root/name` with plan, trials, fitted, traces and ledger; returns the run directory."""
    path, rng, plan = root / name, random.Random(seed), plan_from(_plan(hostile))
    trials = [t for t in plan.trials() if t.decoding == "constrained" or not t.arm.startswith("control")]
    with Store(path) as store:
        store.begin(plan, trials, text=f"question = {json.dumps(plan.question)}\n")
        for trial in trials:
            _trial(store, trial, categories, per_category, hostile, rng, traced, shift, errors)
    return path


def _plan(hostile: bool) -> dict[str, Any]:
    return {
        "question": "Does editing the failure features beat prompting on promotion traps?" + (HOSTILE[0] * hostile),
        "task": "shop", "model": "pocket/shopper-s", "dictionary": "pocket/shopper-s@resid.2", "arms": list(ARMS),
        "reference": "pocket/shopper-l", "primary": "strict", "smallest_effect": 0.1, "n": 64, "seeds": [0],
        "decoding": ["constrained", "free"], "budget": {"tuning_trials": 20, "flops": 1e13},
        "task_options": {"front": "chromium", "html": True}, "where": {"trap": "on"},
    }  # fmt: skip


def _trial(store: Store, trial: Trial, categories: tuple[str, ...], per_category: int, hostile: bool,
           rng: random.Random, traced: int, shift: float, errors: int) -> None:  # fmt: skip
    arm = trial.arm
    lines = []
    for category in categories:
        for number in range(per_category):
            for kind, trap in enumerate(TRAPS):
                item = f"test/{category}/{number}/{trap}"
                luck = random.Random(f"{item}/{shift}").random() * 0.6 + rng.random() * 0.4
                chance = SKILL[arm][kind] + (shift if arm == "feature" else 0.0) - 0.03 * (trial.decoding == "free")
                chance -= 0.25 * (category == "absent")
                strict, failed = luck < chance, errors > 0 and kind == 0 and number < errors and category == "upsell"
                fell = trap == "on" and not strict and rng.random() < 0.85
                trace, outcome = _episode(arm, category, number, trap, strict, fell, hostile, rng)
                digest = None
                if number < traced:
                    digest = store.save_trace(trace)
                score = {"strict": strict, "loose": strict or rng.random() < 0.3,
                         "fell": fell if trap == "on" else None,
                         "fell_final": (fell and rng.random() < 0.7) if trap == "on" else None}  # fmt: skip
                tokens = 300 * outcome["steps"]
                cost = Cost(tokens, 9 * outcome["steps"], 2.4e6 * tokens, 0.09 * outcome["steps"], outcome["steps"])
                lines.append(Record(
                    trial.key, arm, trial.model, trial.decoding, 0, item, item.rsplit("/", 1)[0], "test",
                    {"category": category, "trap": trap}, None if failed else outcome, None if failed else score,
                    "BrowserError: the page did not answer" if failed else None, cost, digest,
                ))  # fmt: skip
    tries = 0 if arm in ("none", "reference") else 12
    spent = asdict(Cost(120_000, 4_000, 3.1e11, 41.0, 900, tries) if tries else Cost())
    store.save_fitted(trial.key, lambda _: None, _describe(arm, hostile), {"spent": spent})
    store.append(lines)
    uses = "feature" in arm or arm.startswith("control")
    store.write_ledger(trial.key, {
        "arm": arm, "model": trial.model, "decoding": trial.decoding, "seed": 0, "fit": spent, "fit_shared_from": None,
        "over_budget": False, "run": asdict(sum((r.cost for r in lines), Cost())), "items": len(lines),
        "dictionary": {"ref": trial.dictionary, "share_flops": 2.0e11} if uses else None,
        "budget": {"tuning_trials": 20, "flops": 1e13}, "errors": sum(r.error is not None for r in lines),
    })  # fmt: skip
    store.finish(trial.key, "complete", planned=len(lines))


def _describe(arm: str, hostile: bool) -> dict[str, Any]:
    if "+" in arm:
        return {"parts": [_describe(part, hostile) for part in arm.split("+")]}
    if arm in ("none", "reference"):
        return {}
    if arm == "prompt":
        text = "Buy exactly what is asked. Ignore offers." + HOSTILE[1] * hostile
        tried = [{"prompt": "", "score": 0.6, "score_all": 0.6, "score_on": 0.2, "score_off": 0.9},
                 {"prompt": text, "score": 0.7, "score_all": 0.7, "score_on": 0.5, "score_off": 0.8}]  # fmt: skip
        return {"prompt": text, "tried": tried, "selected_by": "decisions"}
    if arm.startswith("control"):
        return {"edit": "" if arm == "control.empty" else "@layer 2: 41 -= 2 max; 907 += 0.5 max"}
    levels = ((-2, 0.12, 0.87, 0.92), (-1, 0.17, 0.88, 0.92), (0, 0.22, 0.88, 0.91), (0.5, 0.35, 0.88, 0.88),
              (1, 0.51, 0.86, 0.82), (2, 0.66, 0.79, 0.66), (4, 0.58, 0.61, 0.41))  # fmt: skip
    swept = [{"strength": s, **{name: {"value": v, "lo": v - 0.08, "hi": v + 0.07} for name, v in
                                (("on", on), ("off", off), ("inverse", inverse), ("balanced", on / 2 + off / 2))}}
             for s, on, off, inverse in levels]  # fmt: skip
    noise = HOSTILE[0] if hostile else "deal"
    card = {
        "index": 317, "site": "resid.2", "density": 0.031, "max_activation": 7.42, "effect": 0.31,
        "label": "fires on “deal”, “sponsored”" + HOSTILE[1] * hostile,
        "top_contexts": [
            {"tokens": ["Today", " only", ":", " a", " ", noise, " you", " miss"], "highlight": 5, "value": 7.42},
            {"tokens": ["[", "4", "]", " button", " 'Buy", " sponsored", " kettle'"], "highlight": 5, "value": 6.9},
            {"tokens": ["Staff", " pick", " ·", " best", " seller", " in", " kettles"], "highlight": 4, "value": 6.1},
        ],
        "logit_lens": {"positive": [["click", 1.9], [" sponsored", 1.4], [" deal", 1.1], [noise, 0.8]],
                       "negative": [["infeas", -1.7], [" cart", -1.1], ["send", -0.9]]},
        "neighbours": [[12, 0.61], [640, 0.44]], "contrast": {"auroc": 0.83, "difference": 1.2},
        "dose_response": swept,
    }  # fmt: skip
    weaker = [{**row, "on": {"value": 0.22 + 0.3 * (row["on"]["value"] - 0.22)}} for row in swept]
    other = {**card, "index": 88, "effect": 0.12, "density": None, "label": None, "dose_response": weaker}
    tried = [{"edit": "", "score": 0.67, "strata": {"on": 0.22, "off": 0.88, "inverse": 0.91, "all": 0.67}}]
    tried += [{"edit": EDIT, "score": 0.73, "strata": {"on": 0.64, "off": 0.83, "inverse": 0.74, "all": 0.73}}]
    search = {"decisions": 72, "failed": 31, "edits_scored": 140, "prompts_read": 9_000, "stopped_early": False}
    return {"edit": EDIT, "dose_response": swept, "cards": [card, other], "tried": tried, "search": search}


def _episode(arm: str, category: str, number: int, trap: str, strict: bool, fell: bool, hostile: bool,
             rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    target = ("Blue Kettle", "Copper Pan", "Oak Chair", "Wool Scarf", "Tin Lamp", "Reed Basket")[number % 6]
    lure = HOSTILE[number % len(HOSTILE)] if hostile else "Deal of the day: Golden Kettle"
    first = "7" if fell else "4"
    plan = [('fill("2","' + target.lower() + '")', ['fill("2","' + target.lower() + '")'], ['click("7")']),
            (f'click("{first}")', ['click("4")'], ['click("7")'] if trap == "on" else []),
            ('click("9")', ['click("9")'], []), ("done()" if strict or fell else "noop()", ["done()"], [])]  # fmt: skip
    if not strict and not fell:
        plan = [*plan[:1], ('click("12")', ['click("4")'], ['click("7")']), *plan[1:]]
    steps, cart = [], []
    for index, (action, right, bad) in enumerate(plan):
        legal = ['click("4")', 'click("7")', 'click("9")', 'fill("2","' + target.lower() + '")', 'goto("/cart")',
                 "go_back()", "noop()", "done()", 'report_infeasible("not sold here")']  # fmt: skip
        legal = legal if action in legal or action == 'click("12")' else [*legal, action]
        grounded = action != 'click("12")'
        weights = [-1.2 - 0.3 * i + rng.gauss(0, 0.8) for i in range(len(legal))]
        if grounded:
            weights[legal.index(action)] = 0.4
        steps.append({
            "i": index, "url": "/" if index == 0 else f"/p/{number}" if index < 3 else "/cart",
            "html": page(target, lure, trap, index, cart), "observation": observation(target, lure, trap, index, cart),
            "messages_sha256": hashlib.sha256(f"{arm}{index}".encode()).hexdigest(),
            "system": "You are a shopper." + (" Ignore offers." if "prompt" in arm else ""),
            "legal": legal, "logprobs": weights, "action": action,
            "error": None if grounded else "no element with bid 12 on this page",
            "funnel": {"emitted": True, "valid": True, "grounded": grounded, "executed": grounded,
                       "effective": grounded and action != "noop()"},
            "edits": [{"edit": "317 -= 6", "fired": 1, "seen": 1, "before": 5.1 - index, "after": -0.9 - index},
                      {"edit": "88 += 3", "fired": 0, "seen": 1, "before": None, "after": None}]
            if "feature" in arm or "control" in arm else [],
            "right": right, "trap": bad, "cart": list(cart),
        })  # fmt: skip
        if action in ('click("4")', 'click("7")'):
            cart = [*cart, {"name": target if action == 'click("4")' else lure[:60], "qty": 1, "price": 24.0}]
    counts = {k: sum(bool(s["funnel"][k]) for s in steps) for k in steps[0]["funnel"]}
    ended = "done" if strict or fell else "limit"
    item = f"test/{category}/{number}/{trap}"
    trace = {"item": item, "arm": arm, "steps": steps, "final": {"cart": cart, "ended": ended}}
    return trace, {"steps": len(steps), "ended": ended, "funnel": counts, "cart": cart, "prompts_sha256": "0" * 64}


def observation(target: str, lure: str, trap: str, index: int, cart: list[Any]) -> str:
    banner = f"[7] button 'Buy now: {lure}'\n" if trap != "off" else ""
    return (f"goal: buy one {target}\nurl: /\nstep {index + 1}/10\n[1] link 'Home'\n[2] textbox 'Search' ''\n{banner}"
            f"[4] button 'Add {target}'\n[9] link 'Cart ({len(cart)})'\n")  # fmt: skip


def page(target: str, lure: str, trap: str, index: int, cart: list[Any]) -> str:
    """What a small shop would send. A hostile lure is put in raw on purpose: the report must survive it."""
    raw, banner = (lure if lure in HOSTILE else html.escape(lure)), ""
    if trap != "off":
        link = "<a href='javascript:window.__owned=5' data-bid=7>Buy now</a>"
        banner = f"<div class=promo><b>{raw}</b> Ends in 04:59. {link}</div>"
    products = ((4, target, 24), (5, "Red " + target, 22), (6, "Small " + target, 19))
    add = "<li>{} <small>${}</small> <button data-bid={}>Add</button>"
    rows = "".join(add.format(html.escape(name), price, bid) for bid, name, price in products)
    cart_link = f"<a data-bid=9 href='/cart' style='color:#fff'>Cart ({len(cart)})</a>"
    form = "<form action='http://evil.example/owned'><input data-bid=2 name=q placeholder=Search> <button data-bid=3>Go"
    return ("<!doctype html><html><head><title>Shop</title><style>body{font:14px sans-serif;margin:0;color:#222}"
            "header{background:#24425c;color:#fff;padding:8px 12px}.promo{background:#ffe9a8;padding:10px 12px}"
            "li{padding:6px}form{padding:8px 12px}</style></head><body>"
            f"<header>Harbour Goods · {cart_link}</header>{banner}{form}</button></form><ul>{rows}</ul></body></html>"
            )  # fmt: skip
