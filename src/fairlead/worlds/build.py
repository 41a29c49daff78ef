"""Rebuild every pocket model and dictionary from nothing: `python -m fairlead.worlds.build`.

Order, shoppers: matching skill → trunk (the whole shop, no default disposition) → temper (cues against bait,
nothing else) → one short fine-tune per frozen mixture. Readers: each from nothing, lessons first. Then dictionaries
and cards. Each stage leaves a checkpoint in `--work`; a stage that is done is not run again, and a stage that was
killed goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from fairlead.core.types import Messages
from fairlead.dictionaries import save as save_dictionary
from fairlead.dictionaries.train import TrainConfig, train
from fairlead.lm.load import load
from fairlead.lm.subject import LocalSubject
from fairlead.worlds import cards, pretrain
from fairlead.worlds import mixture as mx
from fairlead.worlds import readers as rd
from fairlead.worlds import tokenizer as tk

log = logging.getLogger("fairlead.worlds")
SIZE = pretrain.Size()
SKILL = pretrain.Recipe(700, batch=128, hold=1.0, curriculum=((3 / 7, (2,)), (5 / 7, (2, 3)), (1.01, (3, 4))))
TRUNK = pretrain.Recipe(1000, matrix_rate=0.015, vector_rate=4e-3, hold=1.0, seed=1)
TEMPER = pretrain.Recipe(500, matrix_rate=0.015, vector_rate=4e-3, hold=1.0, seed=3)
TUNE = pretrain.Recipe(500, matrix_rate=0.01, vector_rate=2e-3, hold=0.3, seed=2)
TUNE_REFERENCE = replace(TUNE, steps=700)
READER_SIZE = pretrain.Size(width=96, layers=4, heads=4, inner=256)
READER = pretrain.Recipe(
    1800, batch=64, prompt_weight=0.0, half=False, tag_weight=0.5, tag_until=0.5,
    curriculum=((1 / 6, rd.SINGLE), (7 / 18, rd.BARE), (1.01, rd.WHOLE)),
)  # fmt: skip
READER_NOTES = replace(READER, steps=2000, seed=1, hold=0.4, curriculum=((1.01, rd.WHOLE),))
READER_LAST = replace(READER_NOTES, steps=1600, seed=2, hold=0.5, matrix_rate=0.015, vector_rate=4e-3, tag_until=0.9)
READER_POLISH = replace(READER_LAST, steps=1400, seed=3, hold=0.4, tag_weight=1.5, tag_until=1.0)
READER_CLEAR = replace(
    READER_POLISH, steps=1000, seed=4, hold=0.3, matrix_rate=0.008, vector_rate=1.6e-3, tag_weight=4.0
)
READER_STAGES = {
    "skill": READER, "notes": READER_NOTES, "last": READER_LAST, "polish": READER_POLISH, "clear": READER_CLEAR,
}  # fmt: skip
SITE, READER_SITE = "resid.1", "resid.0"
DICTIONARIES = {"shopper-s": (0, 1), "shopper-s2": (0,), "shopper-s3": (0,), "reader-s": (0,), "reader-c": (0,)}
LATENTS, ACTIVE, ROWS = 1024, 24, 400_000
READER_LATENTS, READER_ACTIVE, READER_ROWS, READER_STEPS = 256, 8, 180_000, 4000


def weights_dir() -> Path:
    return Path(__file__).parent / "weights"


def trunk(work: Path, tokenizer: PreTrainedTokenizerFast, device: str) -> LlamaForCausalLM:
    """The model all shoppers start from: it can match, sees both dispositions, and leans neither way."""
    model = pretrain.new_model(tokenizer, SIZE, seed=0).to(device)
    pretrain.train(model, tokenizer, mx.SKILL, SKILL, work / "skill.pt", log.info)
    pretrain.train(model, tokenizer, mx.TRUNK, TRUNK, work / "trunk.pt", log.info)
    return pretrain.train(model, tokenizer, mx.TEMPER, TEMPER, work / "temper.pt", log.info)


def shopper(name: str, work: Path, out: Path, tokenizer: PreTrainedTokenizerFast, device: str) -> None:
    """One mixture: fine-tune from the trunk and write a Hugging Face directory."""
    model = pretrain.new_model(tokenizer, SIZE, seed=0).to(device)
    model.load_state_dict(torch.load(work / "temper.pt", weights_only=True, map_location=device)["model"])
    recipe = TUNE_REFERENCE if name == "shopper-l" else TUNE
    pretrain.train(model, tokenizer, mx.MIXTURES[name], recipe, work / f"{name}.pt", log.info)
    model.save_pretrained(out, safe_serialization=True)
    tk.save(tk.build(mx.cue_text()), out)


def reader(name: str, work: Path, out: Path, device: str) -> None:
    """One reader, as a Hugging Face directory: from nothing, on its own mixture alone."""
    tokenizer = tk.of(rd.pieces())
    model = pretrain.new_model(tk.wrap(tokenizer), READER_SIZE, seed=0).to(device)
    for part, recipe in READER_STAGES.items():
        pretrain.train(model, tk.wrap(tokenizer), rd.MIXTURES[name], recipe, work / f"{name}-{part}.pt", log.info)
    model.save_pretrained(out, safe_serialization=True)
    tk.save(tokenizer, out)


def prompts(name: str, seed: int, n: int) -> list[Messages]:
    """Prompts of the mixture the model was trained on: what its dictionary sees."""
    if name in rd.MIXTURES:
        return [e.messages for e in itertools.islice(rd.MIXTURES[name].examples(seed, rd.WHOLE), n)]
    stream = mx.examples(mx.MIXTURES[name], seed, (3, 4))
    return [e.messages for e in itertools.islice(stream, n)]


def dictionary(name: str, seed: int, root: Path, site: str = "") -> None:
    reads = name in rd.MIXTURES
    site = site or (READER_SITE if reads else SITE)
    latents, active, wanted, steps = (
        (READER_LATENTS, READER_ACTIVE, READER_ROWS, READER_STEPS) if reads else (LATENTS, ACTIVE, ROWS, 3000)
    )
    subject = load(root / name)
    began = time.monotonic()
    rows, have = [], 0
    for first in itertools.count():
        found = subject.activations(prompts(name, 10_000 + first, 64), [site], tokens="all")[site]
        rows += found
        have += sum(len(r) for r in found)
        if have >= wanted:
            break
    config = TrainConfig(latents, kind="batchtopk", k=active, steps=steps, batch=1024, lr=2e-3, seed=seed, site=site,
                         name=f"pocket/{name}@{site}" + (f"#seed{seed}" if seed else ""))  # fmt: skip
    found = train(torch.cat(rows), config, harvest_flops=subject_flops(subject, have))
    folder = root / name / "dictionaries" / (site + (f"-seed{seed}" if seed else ""))
    save_dictionary(found, folder)
    log.info("%s in %.0f s", folder.name, time.monotonic() - began)


def subject_flops(subject: LocalSubject, tokens: int) -> float:
    """Cost of harvesting: forward FLOPs of `tokens` prompt tokens."""
    return 2.0 * sum(p.numel() for p in subject.model.parameters()) * tokens


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--work", type=Path, default=Path("build/worlds"), help="checkpoints of the stages")
    parser.add_argument("--out", type=Path, default=weights_dir(), help="where the finished models go")
    parser.add_argument("--only", nargs="*", default=[*mx.MIXTURES, *rd.MIXTURES], help="names of models to finish")
    parser.add_argument("--stages", nargs="*", default=["models", "dictionaries", "cards"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.work.mkdir(parents=True, exist_ok=True)
    tokenizer = tk.wrap(tk.build(mx.cue_text()))
    if "models" in args.stages:
        if set(args.only) & set(mx.MIXTURES) and not _done(args.work / "temper.pt", TEMPER.steps):
            trunk(args.work, tokenizer, args.device)
        for name in args.only:
            if name in rd.MIXTURES:
                reader(name, args.work, args.out / name, args.device)
            else:
                shopper(name, args.work, args.out / name, tokenizer, args.device)
    if "dictionaries" in args.stages:
        for name in args.only:
            for seed in DICTIONARIES.get(name, ()):
                dictionary(name, seed, args.out)
    if "cards" in args.stages:
        for name in args.only:
            cards.write(name, args.out)


def _done(checkpoint: Path, steps: int) -> bool:
    return checkpoint.exists() and torch.load(checkpoint, weights_only=True)["step"] >= steps


if __name__ == "__main__":
    main()
