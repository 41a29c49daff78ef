"""inspect_ai's model provider `fairlead/MODEL`: any model that loads here, edited or fitted, in any inspect task.

    inspect eval task.py --model fairlead/pocket/shopper-s -M edits="12 -= 2x" -M dictionary=pocket/shopper-s@resid.1
    inspect eval task.py --model fairlead/pocket/shopper-s -M fitted=runs/shop-1a2b3c4d/feature

inspect keeps answers under a model's name, its settings and its messages, and not under its `-M` options: the name that
this provider gives itself holds the fingerprint of weights and edits, so that no steered run is answered from an
unsteered one. Every output says in its metadata what answered and how often each edit fired. Without a temperature
decoding is greedy; with one and no seed a seed is drawn, and stands in the metadata. What cannot be done as asked is
an error of the sample, never passed over.

Only this file knows inspect_ai; the package finds it through the entry point `inspect_ai`, and it loads no model
before one is asked for.
"""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import asdict
from typing import Any

from fairlead.adapters.named import opened, wanted
from fairlead.core.errors import FairleadError
from fairlead.core.extras import need
from fairlead.core.types import Generation, Message, Messages

need("inspect_ai", "inspect")

import anyio.to_thread  # noqa: E402
from inspect_ai.model import (  # noqa: E402
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)

TOKENS = 256  # of an answer, where the task sets no limit and the context has room
_READ = {"max_tokens", "temperature", "seed", "stop_seqs", "extra_body"}
_OUTSIDE = {  # what inspect does itself, or what has nothing to act on here
    "max_retries", "timeout", "attempt_timeout", "stream_idle_timeout", "max_connections", "adaptive_connections",
    "system_message", "cache", "cache_prompt", "batch", "fail_on_refusal", "max_tool_output", "internal_tools",
    "parallel_tool_calls", "reasoning_history",
}  # fmt: skip
_NEUTRAL = {"top_p": 1, "num_choices": 1, "frequency_penalty": 0, "presence_penalty": 0, "logprobs": False}


class Fairlead(ModelAPI):
    """One model. `model_args` are the options of fairlead.adapters.named."""

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig = GenerateConfig(),  # noqa: B008  (their signature)
        **model_args: Any,
    ) -> None:
        self._served = opened(wanted(model_name, model_args))
        super().__init__(self._served.name, base_url, api_key, [], config)

    async def generate(
        self, input: list[ChatMessage], tools: list[Any], tool_choice: Any, config: GenerateConfig  # noqa: ARG002
    ) -> ModelOutput:
        """One answer. Raises FairleadError for what this provider cannot do."""
        if tools:
            raise FairleadError("no tools are called here", do="use a task without tools")
        _refuse_unread(config)
        messages, more = tuple(map(_message, input)), _more(config)
        seed = secrets.randbits(63) if config.temperature and config.seed is None else config.seed or 0
        stops = tuple(config.stop_seqs or ())
        if more["choices"] and stops:
            raise FairleadError("stop sequences have no meaning beside choices")

        def answer() -> tuple[Generation, int]:
            # In a loop of its own: inspect's may be trio's, and inspect patches asyncio.run.
            loop = asyncio.new_event_loop()
            try:
                return loop.run_until_complete(self._answer(messages, config, seed, more))
            finally:
                loop.close()

        said, most = await anyio.to_thread.run_sync(answer)
        places = [at for stop in stops if (at := said.text.find(stop)) >= 0]
        text = said.text[: min(places)] if places else said.text
        full = not places and not more["choices"] and said.new_tokens >= most
        return ModelOutput(
            model=self.model_name,
            choices=[
                ChatCompletionChoice(
                    message=ChatMessageAssistant(content=text, model=self.model_name, source="generate"),
                    stop_reason="max_tokens" if full else "stop",
                )
            ],
            usage=ModelUsage(
                input_tokens=said.prompt_tokens,
                output_tokens=said.new_tokens,
                total_tokens=said.prompt_tokens + said.new_tokens,
            ),
            metadata={"fairlead": self._about(said, more["choices"], seed if config.temperature else None)},
        )

    async def _answer(
        self, messages: Messages, config: GenerateConfig, seed: int, more: dict[str, Any]
    ) -> tuple[Generation, int]:
        """(the answer, how many tokens it might have had)."""
        with self._served.world(config.temperature or 0.0, seed) as world:
            most = self._most(world, messages) if config.max_tokens is None else int(config.max_tokens)
            said: Generation = await world.generate(
                messages, step=more["step"], legal=more["choices"] or None, max_tokens=most
            )
        return said, most

    def _most(self, world: Any, messages: Messages) -> int:
        """The context's room behind the prompt as `world` reads it, up to TOKENS."""
        reader = world if hasattr(world, "tokens") else self._served.subject
        return max(1, min(TOKENS, self._served.subject.checkpoint.shape.context - len(reader.tokens(messages).ids)))

    def _about(self, said: Generation, choices: tuple[str, ...], seed: int | None) -> dict[str, Any]:
        about: dict[str, Any] = {
            "model": self._served.name, "fingerprint": self._served.fingerprint,
            "edits": [asdict(edit) for edit in said.edits],
        }  # fmt: skip
        if seed is not None:
            about["seed"] = seed
        if said.legal_logprobs is not None:
            about["choices"] = dict(zip(choices, said.legal_logprobs, strict=True))
        return about

    def max_connections(self) -> int:
        """One forward at a time runs on a model."""
        return 1

    def collapse_user_messages(self) -> bool:
        """Many chat templates want user and assistant to take turns."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """As for the user's."""
        return True

    async def count_text_tokens(self, text: str) -> int:
        """As this model's tokenizer counts them."""
        return len(self._served.subject.checkpoint.chat.action(text))


@modelapi(name="fairlead")
def fairlead() -> type[ModelAPI]:
    """What `fairlead/...` means to inspect_ai."""
    return Fairlead


def _refuse_unread(config: GenerateConfig) -> None:
    said = config.model_dump(exclude_none=True)
    wrong = sorted(
        key for key in set(said) - _READ - _OUTSIDE if key not in _NEUTRAL or said[key] != _NEUTRAL[key]
    )  # fmt: skip
    if wrong:
        raise FairleadError(f"not supported here: {', '.join(wrong)}", expected=", ".join(sorted(_READ)),
                            do="leave it out of the task's settings")  # fmt: skip


def _more(config: GenerateConfig) -> dict[str, Any]:
    """The part `fairlead` of extra_body: choices, the only legal answers, and step, the agent step of gated edits."""
    body = dict(config.extra_body or {})
    more = body.pop("fairlead", {})
    if body or not isinstance(more, dict) or set(more) - {"choices", "step"}:
        raise FairleadError("unknown extra_body", expected='{"fairlead": {"choices": [...], "step": 0}}',
                            got=repr(config.extra_body)[:80])  # fmt: skip
    choices, step = more.get("choices", []), more.get("step", 0)
    texts = isinstance(choices, list) and all(isinstance(c, str) and c for c in choices)
    if not texts or len(set(choices)) != len(choices) or type(step) is not int or step < 0:
        raise FairleadError("extra_body: choices are different texts, step is a whole number", got=repr(more)[:80])
    return {"choices": tuple(choices), "step": step}


def _message(message: ChatMessage) -> Message:
    parts = message.content
    if not isinstance(parts, str):
        if other := sorted({part.type for part in parts} - {"text"}):
            raise FairleadError("a message holds something else than text", got=", ".join(other))
        parts = "".join(part.text for part in parts)
    if message.role not in ("system", "user", "assistant"):
        raise FairleadError("a message of a role that is not read here", got=message.role)
    return Message(message.role, parts)
