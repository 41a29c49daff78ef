"""The pocket models' own subword tokenizers: a fixed list of pieces read off a grammar, the shop's here.

Names are split into stem and suffix, so test names are new words of seen pieces. Frequent frames of a
page ("] button 'Add ") are one piece, which keeps a page near 60 tokens. Every byte has a fallback
piece, so any text survives the round trip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokenizers import Tokenizer, decoders
from tokenizers.models import Unigram

from fairlead.tasks.shop import lexicon as lex
from fairlead.tasks.shop.observe import SYSTEM

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, END, PAD, SYS, USER, BOT = "<s>", "<|end|>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"
SPECIAL = (PAD, BOS, END, SYS, USER, BOT)
TEMPLATE = (
    "{{ '" + BOS + "' }}{% for m in messages %}"
    "{{ '<|' + m['role'] + '|>' + m['content'] }}{% if m['role'] == 'assistant' %}{{ '" + END + "' }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '" + BOT + "' }}{% endif %}"
)
_FRAMES = (
    SYSTEM,
    "\n[",
    "'\n[",
    "] link '",
    "] link 'Cart ",
    "] link 'Shop'\n[",
    "] link 'Shop'",
    "] button '",
    "] button 'Remove ",
    "] button 'Confirm'\n[",
    "] checkbox '",
    "' checked\n[",
    "' unchecked\n[",
    "] textbox 'Code' '",
    "] combobox 'Delivery' '",
    "] text '",
    "'\nerror: ",
    "'\nerror: none\nstep: ",
    "\nstep: ",
    "/8\npast: ",
    "goal: ",
    "\nurl: /",
    "\nurl: /\n[",
    "\nurl: /cart\n[",
    "\nurl: /offer\n[",
    "\nurl: /item\n[",
    "none",
    ", ",
    ": ",
    "'",
    'click("',
    'fill("',
    'select("',
    'goto("',
    '","',
    '")',
    "done()",
    "noop()",
    "go_back()",
    'report_infeasible("not found")',
    'send_msg_to_user("',
    "item",
    "offer",
    "cart",
    "Shop",
    "Confirm",
    "Code",
    "Use best code ",
)


def pieces(extra_text: tuple[str, ...]) -> list[str]:
    """All pieces in a fixed order; `extra_text` are further sentences whose words become pieces."""
    out: dict[str, None] = dict.fromkeys(_FRAMES)
    out.update(dict.fromkeys(f"] button '{verb} " for verb in lex.VERBS.values()))
    out.update(dict.fromkeys(f"{verb} " for verb in lex.VERBS.values()))
    out.update(dict.fromkeys((*lex.STEMS, *lex.SUFFIXES, *(f" {n}" for n in lex.NOUNS), *lex.CODE_WORDS)))
    out.update(dict.fromkeys(str(i) for i in range(61)))
    out.update(dict.fromkeys(f" ${i}" for i in range(100)))
    tables = (*lex.LABELS.values(), *lex.GOALS.values(), lex.OFFERS, lex.DECLINES, lex.ADDONS)
    templates = [t for table in tables for texts in table.values() for t in texts]
    for t in templates:
        before = re.findall(r"([a-zA-Z]+) \{(?:a|b|n|code)\}", t)
        out.update(dict.fromkeys(f"{w} " for w in before))
    messages = (
        "no element on this page",
        "cannot click it is a link button checkbox textbox combobox text",
        "there is no page to go back to",
        "not an action: expected one call such as",
        "unknown action takes quoted strings",
        "Page not found. Cart is empty. Unknown code. Code applied. standard express Use best code",
        "report_infeasible send_msg_to_user select fill click",
    )
    for text in (*templates, *messages, *extra_text):
        for word in re.findall(r"[A-Za-z_]+", re.sub(r"\{[a-z]+\}", " ", text)):
            out.setdefault(word)
            out.setdefault(f" {word}")
    return list(out)


def build(extra_text: tuple[str, ...]) -> Tokenizer:
    """The shop's tokenizer."""
    return of(pieces(extra_text))


def of(known: Sequence[str]) -> Tokenizer:
    """A tokenizer of some pieces. Fewest pieces win; printable characters and then bytes are the fallback."""
    vocab: list[tuple[str, float]] = [(s, 0.0) for s in SPECIAL]
    vocab.append(("<unk>", -20.0))
    vocab += [(f"<0x{b:02X}>", -12.0) for b in range(256)]
    seen = {v for v, _ in vocab}
    words = [p for p in known if p not in seen]
    chars = [c for c in (chr(i) for i in range(32, 127)) if c not in set(words)] + ["\n"]
    vocab += [(p, -1.0 - i * 1e-6) for i, p in enumerate(words)]
    vocab += [(c, -6.0) for c in chars if c not in set(words)]
    tok = Tokenizer(Unigram(vocab, unk_id=len(SPECIAL), byte_fallback=True))
    tok.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tok.add_special_tokens(list(SPECIAL))
    return tok


def save(tok: Tokenizer, folder: Path) -> None:
    wrap(tok).save_pretrained(folder)


def wrap(tok: Tokenizer) -> PreTrainedTokenizerFast:
    """As Hugging Face loads it, with the chat template."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=tok,
        bos_token=BOS,
        eos_token=END,
        pad_token=PAD,
        unk_token="<unk>",
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
