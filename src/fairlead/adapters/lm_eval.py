"""lm-eval's model `fairlead`: any model that loads here, edited or fitted, in any lm-eval task.

    import fairlead.adapters.lm_eval  # registers the name; lm-eval finds models by import, not by entry point
    simple_evaluate("fairlead", model_args={"pretrained": "pocket/shopper-s", "edits": "12 -= 2x"}, tasks=[...])

lm-eval keeps answers in the file that `use_cache` names, under the request alone: another edit would be given the
first one's answers. Here each fingerprint of weights and edits has a table of its own in that file, so no steered run
is answered from an unsteered one, whatever path is given. The results name what answered.

Texts are read as they stand, as lm-eval does; with `apply_chat_template` as a chat, which arms that add a system line
or examples need. What does not fit the context is cut on its left, with a warning, as lm-eval's own models do.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Sequence
from typing import Any

from fairlead.adapters.named import opened, wanted
from fairlead.core.errors import FairleadError
from fairlead.core.extras import need
from fairlead.core.types import Message, Messages
from fairlead.lm.forwards import Row

need("lm_eval", "lm-eval")

from lm_eval.api.model import TemplateLM  # noqa: E402
from lm_eval.api.registry import register_model  # noqa: E402
from lm_eval.models.utils import normalize_gen_kwargs  # noqa: E402
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window  # noqa: E402

TOKENS = 256  # of an answer, where the task sets no limit
RENDERED = 100_000  # chats that are remembered under their text
_NEUTRAL = {"top_p": 1, "top_k": 0, "repetition_penalty": 1, "num_beams": 1}
log = logging.getLogger("lm_eval")


@register_model("fairlead")
class Fairlead(TemplateLM):
    """One model. `pretrained` is its name, the other options are those of fairlead.adapters.named."""

    def __init__(
        self, pretrained: str = "", batch_size: int | str | None = None, max_batch_size: int | None = None,
        device: str | None = None, **options: Any,
    ) -> None:  # fmt: skip
        super().__init__()
        if not pretrained:
            raise FairleadError("which model?", expected="pretrained=pocket/shopper-s, a directory or a hub name")
        self._served = opened(wanted(pretrained, {**options, "device": device}))
        self.subject = self._served.subject
        self.name, self.fingerprint = self._served.name, self._served.fingerprint
        rows = max_batch_size if str(batch_size).startswith("auto") else batch_size
        self.subject.max_batch = int(rows) if rows else self.subject.max_batch
        self.chat, self.max_length = self.subject.checkpoint.chat, self.subject.checkpoint.shape.context
        self._chats: OrderedDict[str, Messages] = OrderedDict()

    # ---- what lm-eval asks a model about

    @property
    def tokenizer(self) -> Any:
        return self.chat.tokenizer

    @property
    def tokenizer_name(self) -> str:
        return str(self.name.replace("/", "__"))

    @property
    def eot_token_id(self) -> int:
        return int(self.prefix_token_id if self.chat.end_id is None else self.chat.end_id)

    @property
    def prefix_token_id(self) -> int:
        """What stands before a text of which every token is to be scored: its BOS, or what ends a turn."""
        first = [*self.chat.front, *self.chat.end_ids]
        if not first:
            raise FairleadError("this tokenizer has no token that begins or ends a text")
        return first[0]

    def get_model_info(self) -> dict[str, str]:
        """Stands in the results: which weights answered, and what was done to them."""
        return {"fairlead_model": self.name, "fairlead_fingerprint": self.fingerprint}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Token ids; a BOS stands in front where the tokenizer puts one, unless told otherwise."""
        return list(self.chat.action(string) if add_special_tokens is False else self.chat.raw(string))

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The rendered chat. It is remembered, so that what comes back as a text is asked as the chat it was."""
        messages = tuple(Message(turn["role"], turn["content"]) for turn in chat_history)
        if not add_generation_prompt:
            raise FairleadError("an assistant's turn cannot be begun for the model here", do="leave gen_prefix out")
        text = self.chat.prompt(messages).text
        self._chats[text] = messages
        if len(self._chats) > RENDERED:
            self._chats.popitem(last=False)
        return text

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Called by lm-eval's cache with its database: from here on it reads and writes this fingerprint's table."""
        if (base := cache_hook.dbdict) is not None:
            base.tablename = f"fairlead_{self.fingerprint}"
            base.conn.execute(f'CREATE TABLE IF NOT EXISTS "{base.tablename}" (key TEXT PRIMARY KEY, value BLOB)')
            base.commit()
        super().set_cache_hook(cache_hook)

    # ---- answers

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        from fairlead.lm import raw

        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        longest_first = sorted(range(len(requests)), key=lambda i: -len(requests[i][1]) - len(requests[i][2]))
        with self._served.world(0.0, 0) as world:
            subject = _local(world)
            for start in range(0, len(requests), subject.max_batch):
                here = longest_first[start : start + subject.max_batch]
                pairs = [self._pair(subject, *requests[i]) for i in here]
                answers = raw.follow(subject, [row for row, _ in pairs], [ids for _, ids in pairs])
                for i, answer in zip(here, answers, strict=True):
                    found[i] = answer
                    if requests[i][0] != ("", ""):
                        self.cache_hook.add_partial("loglikelihood", requests[i][0], answer)
        return found

    def _pair(
        self, subject: Any, texts: tuple[str, str], before: list[int], after: list[int]
    ) -> tuple[Row, Sequence[int]]:
        """A row and the ids to follow it: the chat that the text was rendered from, or the text."""
        from fairlead.lm import raw

        if texts[0] in self._chats:
            return raw.chat_row(subject, self._chats[texts[0]]), self.chat.action(texts[1])
        kept = self.max_length - len(after)
        if kept < 1:
            raise FairleadError("a continuation longer than the context", expected=f"at most {self.max_length - 1}",
                                got=f"{len(after)} tokens")  # fmt: skip
        if kept < len(before):
            log.warning("fairlead: %d tokens on the left of a text do not fit the context", len(before) - kept)
        return raw.text_row(subject, before[-kept:]), after

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:  # noqa: ARG002
        """log p of whole texts, in windows of the context's length, each token with as much before it as fits."""
        found = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                self.tok_encode(text, add_special_tokens=False), self.prefix_token_id, self.max_length - 1, 1
            )
            pairs = [make_disjoint_window(window) for window in windows]
            total = sum(p for p, _ in self._loglikelihood_tokens([(("", ""), *pair) for pair in pairs]))
            self.cache_hook.add_partial("loglikelihood_rolling", (text,), total)
            found.append(total)
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:  # noqa: ARG002
        """One answer each: greedy, or with `do_sample` drawn; repeats of one request are drawn anew."""
        asked: Counter[str] = Counter()
        found = []
        for context, given in (request.args for request in requests):
            settings = dict(normalize_gen_kwargs(given, TOKENS))
            _refuse_unread(settings)
            warm = float(settings.get("temperature", 1.0)) if settings["do_sample"] else 0.0
            text = self._say(context, int(settings["max_gen_toks"]), warm, asked[context])
            asked[context] += 1
            places = [at for stop in settings["until"] if stop and (at := text.find(stop)) >= 0]
            text = text[: min(places)] if places else text
            self.cache_hook.add_partial("generate_until", (context, given), text)
            found.append(text)
        return found

    def _say(self, context: str, limit: int, temperature: float, seed: int) -> str:
        from fairlead.lm import raw

        limit = min(limit, self.max_length - 1)
        with self._served.world(temperature, seed) as world:
            if context in self._chats:
                room = self.max_length - len(self.subject.tokens(self._chats[context]).ids)
                return str(asyncio.run(world.generate(self._chats[context], max_tokens=min(limit, max(1, room)))).text)
            ids = self.tok_encode(context) or [self.prefix_token_id]
            kept = self.max_length - limit
            if kept < len(ids):
                log.warning("fairlead: %d tokens on the left of a text do not fit the context", len(ids) - kept)
            subject = _local(world)
            return raw.continued(subject, [raw.text_row(subject, ids[-kept:])], [limit])[0]


def _local(world: Any) -> Any:
    from fairlead.lm.subject import LocalSubject

    if not isinstance(world, LocalSubject):
        raise FairleadError("this arm answers chats and has no likelihoods of texts",
                            do="use tasks that generate, with apply_chat_template")  # fmt: skip
    return world


def _refuse_unread(settings: dict[str, Any]) -> None:
    read = {"until", "max_gen_toks", "do_sample", "temperature"}
    wrong = sorted(k for k in set(settings) - read if k not in _NEUTRAL or settings[k] != _NEUTRAL[k])
    if wrong:
        raise FairleadError(f"not supported here: {', '.join(wrong)}", expected=", ".join(sorted(read)))
