"""Shop prompts reach a pocket model as its template and tokenizer make them, token for token."""

from __future__ import annotations

from fairlead.core.types import Messages
from fairlead.lm.load import load
from fairlead.tasks.shop import plugin as shop
from fairlead.tasks.shop.fronts import TextFront
from fairlead.tasks.shop.observe import Observation
from fairlead.tasks.shop.spec import CATEGORIES


def pages(n: int) -> list[Messages]:
    task = shop({"n": 40, "categories": list(CATEGORIES)})
    items = [item for split in ("train", "validation") for item in task.items(split)]
    found = []
    for item in items[:: max(1, len(items) // n)]:
        ins = task.instance(item)
        found.append(Observation(ins.goal, "/", TextFront(ins).elements(), "", 0, 8, ()).messages())
    return found


def test_shop_prompts_are_left_as_they_are():
    chat = load("pocket/shopper-s").checkpoint.chat
    prompts = pages(120)
    assert len(prompts) >= 100
    for messages in prompts:
        turns = [{"role": m.role, "content": m.content} for m in messages]
        text = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        assert chat.prompt(messages).text == text
        assert chat.prompt(messages).ids.tolist() == chat.tokenizer.encode(text, add_special_tokens=False)
