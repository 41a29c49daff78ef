"""Messages to tokens through the checkpoint's own chat template, and which token was said by whom.

What a message says is text. A page may hold "<|assistant|>", as an attacker wrote it; tokenised as it stands
that would open a turn. So the checkpoint's special tokens, and the marks among its other added tokens (<think>,
[INST]; not HTML's own tags), are spelled with a space inside a message or an action, "< |assistant|>": only the
template makes such tokens, and text without them is left as it is.

A checkpoint without a template (GPT-2, Pythia) gets a plain one: "User:", a new line, what was said, an empty
line. A template that refuses a system turn (Gemma 2) gets its words at the head of the first user turn. A
template that asks for the date is told DATE, so that a prompt is the same on any day, and one that can leave
thinking out (Qwen3) does: what follows the prompt is the action.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fairlead.core.errors import FairleadError, LoadError
from fairlead.core.types import Message, Messages
from fairlead.lm.hooks import ROLES

Ids = npt.NDArray[np.int64]
K = TypeVar("K")
V = TypeVar("V")
KEPT = 4096
DATE = "26 Jul 2024"
_FIXED = {"enable_thinking": False, "date_string": DATE}  # given to every template; most ask for neither
_CLOCK = (
    "{%- macro strftime_now(format) -%}{%- if format == '%Y-%m-%d' -%}2024-07-26{%- else -%}"
    + DATE
    + "{%- endif -%}{%- endmacro -%}"
)  # put before a template that reads the clock: a macro hides the global of the same name
_HTML = re.compile(
    r"</?(table|caption|thead|tbody|tfoot|tr|th|td|h[1-6]|blockquote|strong|em|b|i|u|s|sub|sup|code|p|br|a|ul|ol|li)>"
)
_MARK = re.compile(r"[<\[].+[>\]]", re.DOTALL)


@dataclass(frozen=True, eq=False)
class Prompt:
    """A rendered prompt: the text, its token ids [P], and where each token lies in the text [P, 2]."""

    messages: Messages
    text: str
    ids: Ids
    offsets: Ids


class Chat:
    """One checkpoint's tokenizer and template. Renderings and token ids are kept, the latest KEPT of each."""

    def __init__(self, tokenizer: Any, ends: Sequence[int] = ()) -> None:
        """`ends` are ids that end a turn beside the template's own and the tokenizer's EOS."""
        if not getattr(tokenizer, "is_fast", False):
            raise LoadError("this tokenizer has no tokenizer.json", do="save a fast tokenizer with the checkpoint")
        self.tokenizer = tokenizer
        self._encode = tokenizer.backend_tokenizer.encode
        self._special = _pattern(tokenizer)
        self._lock = threading.RLock()
        self._prompts: OrderedDict[Messages, Prompt] = OrderedDict()
        self._roles: OrderedDict[Messages, Ids | None] = OrderedDict()
        self._texts: OrderedDict[str, tuple[int, ...]] = OrderedDict()
        self.front = self._find_front()
        template = tokenizer.chat_template
        template = template.get("default", "") if isinstance(template, dict) else template or ""
        self.templated = bool(template)
        self._template = f"{_CLOCK}{template}" if "strftime_now" in template else None  # None: the tokenizer's own
        self._folds = self.templated and not self._takes_system()
        self.end_ids = self._find_ends(ends)

    def prompt(self, messages: Messages) -> Prompt:
        """Renders and tokenises, with no special token but the template's own: there is never a second BOS, and
        none that a message spelled.

        The assistant's turn is opened at the end, unless the last message is the assistant's: then the
        text is a finished transcript.
        """
        return self._kept(self._prompts, messages, self._prompt)

    def roles(self, messages: Messages) -> Ids | None:
        """Role id of every prompt token [P], as in hooks.ROLES; 0 for the template's own tokens.
        None when the template rewrites its messages, so that no token can be traced to one."""
        return self._kept(self._roles, messages, self._find_roles)

    def action(self, text: str) -> tuple[int, ...]:
        """The token ids of a continuation, tokenised by itself, without the token that ends the turn."""
        return self._kept(
            self._texts, text, lambda t: tuple(self._encode(self.plain(t), add_special_tokens=False).ids)
        )

    def raw(self, text: str) -> tuple[int, ...]:
        """The token ids of a text that is no chat: what the tokenizer puts in front of every text (a BOS, or
        nothing), then the text, in which no special token can be spelled."""
        return (*self.front, *self.action(text))

    def plain(self, text: str) -> str:
        """`text` with every special token of this checkpoint broken by a space after its first character."""
        while self._special is not None and self._special.search(text):
            text = self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}" if found[0][1:] else "\ufffd", text)
        return text

    @property
    def end_id(self) -> int | None:
        """The token that ends the assistant's turn, or None."""
        return self.end_ids[0] if self.end_ids else None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated tokens, special tokens left out."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _kept(self, store: OrderedDict[K, V], key: K, make: Callable[[K], V]) -> V:
        with self._lock:
            if key in store:
                store.move_to_end(key)
                return store[key]
            value = store[key] = make(key)
            if len(store) > KEPT:
                store.popitem(last=False)
            return value

    def _prompt(self, messages: Messages) -> Prompt:
        if not messages:
            raise FairleadError("a prompt of no messages", expected="at least one Message")
        text = self._render(self._plain_messages(messages), messages[-1].role != "assistant")
        encoded = self._encode(text, add_special_tokens=False)
        if not encoded.ids:
            raise FairleadError("a prompt of no tokens", expected="a template that renders some text")
        return Prompt(messages, text, np.array(encoded.ids, dtype=np.int64), np.array(encoded.offsets, dtype=np.int64))

    def _plain_messages(self, messages: Messages) -> Messages:
        return tuple(replace(m, content=self.plain(m.content)) for m in messages)

    def _render(self, messages: Messages, open_turn: bool) -> str:
        if not self.templated:
            return self._render_plainly(messages, open_turn)
        messages = _folded(messages) if self._folds else messages
        turns = [{"role": m.role, "content": m.content} for m in messages]
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self._template, tokenize=False, add_generation_prompt=open_turn, **_FIXED
                )
            )
        except FairleadError:
            raise
        except Exception as error:  # jinja2 errors, raised by the checkpoint's own template
            roles = ", ".join(m.role for m in messages)
            raise FairleadError(f"the chat template refused the messages: {error}", got=f"roles {roles}") from error

    def _render_plainly(self, messages: Messages, open_turn: bool) -> str:
        """Role, colon, new line, words, empty line; the assistant's words end with the EOS, where there is one."""
        front = str(self.tokenizer.decode(list(self.front))) if self.front else ""
        end = self.tokenizer.eos_token or ""
        said = [f"{m.role.capitalize()}:\n{m.content}{end if m.role == 'assistant' else ''}\n\n" for m in messages]
        return front + "".join(said) + ("Assistant:\n" if open_turn else "")

    def _takes_system(self) -> bool:
        self._folds = False
        try:
            return "Zq7" in self._render((Message("system", "Zq7"), Message("user", "x")), True)
        except FairleadError:
            return False

    def _find_ends(self, more: Sequence[int]) -> tuple[int, ...]:
        """Ids that end a turn: what the template puts after the assistant's words, the tokenizer's EOS, then `more`."""
        mark = "Zq7"
        said = self._render((Message("user", "x"), Message("assistant", mark)), False)
        tail = self._encode(said[said.rfind(mark) + len(mark) :], add_special_tokens=False).ids
        ends = [tail[0]] if tail and tail[0] in self.tokenizer.added_tokens_decoder else []
        eos = self.tokenizer.eos_token_id
        return tuple(dict.fromkeys([*ends, *([] if eos is None else [eos]), *more]))

    def _find_front(self) -> tuple[int, ...]:
        """The ids that the tokenizer itself puts before a text."""
        bare = self._encode("a", add_special_tokens=False).ids
        full = self._encode("a", add_special_tokens=True).ids
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
        return tuple(full[:at])

    def _find_roles(self, messages: Messages) -> Ids | None:
        prompt = self.prompt(messages)
        messages = self._plain_messages(messages)
        spans = _spans_once(prompt.text, messages) or self._spans_by_prefix(prompt.text, messages)
        if spans is None:
            return None
        roles = np.zeros(len(prompt.ids), dtype=np.int64)
        start, end = prompt.offsets[:, 0], prompt.offsets[:, 1]
        for message, (a, b) in zip(messages, spans, strict=True):
            roles[(start < b) & (end > a) & (end > start)] = ROLES.get(message.role, 0)
        return roles

    def _spans_by_prefix(self, text: str, messages: Messages) -> list[tuple[int, int]] | None:
        """Renders ever longer beginnings of the chat; each message lies in what its rendering added."""
        spans, done = [], 0
        for count in range(1, len(messages) + 1):
            try:
                part = self._render(messages[:count], False)
            except FairleadError:
                return None
            content = messages[count - 1].content.strip()
            at = part.find(content, done)
            if not text.startswith(part) or at < 0:
                return None
            spans.append((at, at + len(content)))
            done = len(part)
        return spans


def with_system(messages: Messages, extra: str) -> Messages:
    """`messages` with `extra` appended to the system message, on a line of its own; made if there is none."""
    if messages and messages[0].role == "system":
        old = messages[0].content
        return (replace(messages[0], content=f"{old}\n{extra}" if old else extra), *messages[1:])
    return (Message("system", extra), *messages)


def _folded(messages: Messages) -> Messages:
    """The system turn's words at the head of the first user turn, for templates that know no system."""
    if not messages or messages[0].role != "system":
        return messages
    system, rest = messages[0], messages[1:]
    if not rest or rest[0].role != "user":
        return (Message("user", system.content), *rest)
    joined = f"{system.content}\n\n{rest[0].content}" if system.content else rest[0].content
    return (replace(rest[0], content=joined), *rest[1:])


def _pattern(tokenizer: Any) -> re.Pattern[str] | None:
    """Finds the spelling of any special token, and of any added token that is a mark like <think> or [INST] and
    not a tag of HTML; None where the tokenizer has none. Added words, letters and blanks are ordinary text."""
    added = tokenizer.added_tokens_decoder.values()
    spelled = {t.content for t in added if t.special or (_MARK.fullmatch(t.content) and not _HTML.fullmatch(t.content))}
    spelled.update(tokenizer.all_special_tokens)
    longest_first = sorted(filter(None, spelled), key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first))) if longest_first else None


def _spans_once(text: str, messages: Messages) -> list[tuple[int, int]] | None:
    """Where each message lies in the text, if each occurs exactly once and in order."""
    spans, done = [], 0
    for message in messages:
        content = message.content.strip()
        if not content or text.count(content) != 1 or (at := text.find(content)) < done:
            return None
        done = at + len(content)
        spans.append((at, done))
    return spans
