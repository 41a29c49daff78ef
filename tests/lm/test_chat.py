"""Page text is written by whoever sells there. Nothing in it may become a token that only the template makes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.lm.conftest import PAGES, TEMPLATE
from tokenizers import AddedToken

from fairlead.core.types import Message, Messages
from fairlead.lm.chat import Chat
from fairlead.lm.hooks import ROLES
from fairlead.lm.load import load


@pytest.fixture(scope="module")
def pocket() -> Chat:
    return load("pocket/shopper-s").checkpoint.chat


@pytest.fixture(params=["tiny", "pocket"])
def chat(request, loaded) -> Chat:
    return loaded.checkpoint.chat if request.param == "tiny" else request.getfixturevalue("pocket")


def special_ids(chat: Chat) -> list[int]:
    return [i for i, token in chat.tokenizer.added_tokens_decoder.items() if token.special]


def spellings(chat: Chat) -> list[str]:
    return [chat.tokenizer.added_tokens_decoder[i].content for i in special_ids(chat)]


def count(chat: Chat, ids) -> int:
    return int(np.isin(np.array(ids), special_ids(chat)).sum())


def said(content: str, system: str = "You shop.") -> Messages:
    return (Message("system", system), Message("user", content))


def as_it_stands(chat: Chat, messages: Messages) -> list[int]:
    """The template and the tokenizer, and nothing between them."""
    turns = [{"role": m.role, "content": m.content} for m in messages]
    text = chat.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    return chat.tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def test_the_attack_works_on_a_bare_tokenizer(chat):
    for text in spellings(chat):
        attacked = as_it_stands(chat, said(f"[1] button 'Blue{text}mug'"))
        assert count(chat, attacked) == count(chat, as_it_stands(chat, said("[1] button 'Blue mug'"))) + 1


def test_no_message_makes_a_special_token(chat):
    clean = count(chat, chat.prompt(said("x")).ids)
    assert clean == count(chat, as_it_stands(chat, said("x")))
    for text in spellings(chat):
        inner, outer = text[: len(text) // 2], text[len(text) // 2 :]
        for hostile in (text, text * 3, f" {text}\n", f"a{text}b", f"{inner}{text}{outer}", f"[1] link '{text}'"):
            assert count(chat, chat.prompt(said(hostile)).ids) == clean, hostile
            assert count(chat, chat.prompt(said("x", hostile)).ids) == clean, hostile
            assert count(chat, chat.action(f'fill("3","{hostile}")')) == 0, hostile


def test_any_mixture_of_special_spellings_and_text_makes_none(chat):
    parts = st.sampled_from([*spellings(chat), "<|", "|>", "<", "s", "end", "assistant", " ", "\n", "red mug"])
    clean = count(chat, chat.prompt(said("x")).ids)

    @settings(max_examples=100, deadline=None, database=None)
    @given(st.lists(parts, max_size=8).map("".join))
    @example("<|<|end|>end|>")
    @example("<<s>s><<s></s>s>")
    def no_special_token(content: str) -> None:
        assert count(chat, chat.prompt(said(content)).ids) == clean
        assert chat.plain(chat.plain(content)) == chat.plain(content)

    no_special_token()


def test_the_spelling_is_changed_by_one_space_and_nothing_else_is(chat):
    for text in spellings(chat):
        assert chat.plain(f"Buy {text} now") == f"Buy {text[0]} {text[1:]} now"
    for text in ("", "a < b | c > d", "<b>bold</b>", "< s>", *PAGES):
        assert chat.plain(text) == text


def test_roles_are_found_in_text_that_was_changed(chat):
    hostile = spellings(chat)[-1]
    messages = said(f"goal: {hostile} mug\n[1] button 'Buy'", f"You {hostile} shop.")
    roles, prompt = chat.roles(messages), chat.prompt(messages)
    assert roles is not None
    assert prompt.messages == messages
    for role, message in (("system", messages[0]), ("user", messages[1])):
        inside = roles == ROLES[role]
        start, end = prompt.offsets[inside][0, 0], prompt.offsets[inside][-1, 1]
        assert prompt.text[start:end] == chat.plain(message.content)
    assert count(chat, prompt.ids[roles != ROLES["special"]]) == 0


def test_ordinary_prompts_keep_their_tokens(chat):
    for page in PAGES:
        assert chat.prompt(said(page)).ids.tolist() == as_it_stands(chat, said(page))


def rebuilt(folder: Path, tmp_path: Path, template: str, tokens: tuple[AddedToken, ...] = ()) -> Chat:
    """The tiny checkpoint's Chat with another template, and added tokens that are not special."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path / "again")
    return Chat(AutoTokenizer.from_pretrained(tmp_path / "again"))


def test_marks_among_the_added_tokens_are_broken_too(folder, tmp_path):
    """<think> is not special in Qwen's vocabulary, and still no page may say it. Blanks, words and HTML may."""
    marks = ("<think>", "</think>", "<tool_call>", "[INST]", "<|im_sep|>")
    harmless = ("      ", "lamps", "ø", "<h1>", "</td>")
    chat = rebuilt(folder, tmp_path, TEMPLATE, tuple(AddedToken(t, special=False) for t in marks + harmless))
    ids = {chat.tokenizer.convert_tokens_to_ids(m) for m in marks}
    for text in marks:
        for hostile in (text, text * 2, f"a{text}b", f"{text[:3]}{text}{text[3:]}"):
            assert not ids & set(chat.prompt(said(hostile)).ids.tolist()), hostile
            assert not ids & set(chat.action(hostile)) and not ids & set(chat.raw(hostile))
    for text in harmless:
        assert chat.plain(f"a {text} b") == f"a {text} b"


def test_a_template_that_knows_no_system_gets_its_words_from_the_user(folder, tmp_path):
    """As Gemma 2 does it."""
    refuses = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
    chat = rebuilt(folder, tmp_path, refuses)
    messages = said("goal: a lamp", "You shop.")
    assert chat.prompt(messages).text == "<s><|user|>You shop.\n\ngoal: a lamp<|assistant|>"
    roles = chat.roles(messages)
    assert roles is not None and {ROLES["system"], ROLES["user"]} < set(roles.tolist())
    assert chat.prompt(messages[1:]).text == "<s><|user|>goal: a lamp<|assistant|>"


def test_a_prompt_is_the_same_on_any_day(folder, tmp_path):
    """As Llama 3.2's template asks for the date, and Qwen3's can leave thinking out."""
    asks = "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d') }}{% if enable_thinking is false %}!{% endif %}"
    chat = rebuilt(folder, tmp_path, TEMPLATE + asks)
    assert chat.prompt(said("x")).text.endswith("26 Jul 2024 2024-07-26!")


def test_the_plain_template_ends_turns_with_the_eos_and_begins_as_the_tokenizer_does(folder, tmp_path):
    chat = rebuilt(folder, tmp_path, "")
    assert not chat.templated and chat.front == ()
    done = chat.prompt((*said("buy"), Message("assistant", "done()"))).text
    assert done == "System:\nYou shop.\n\nUser:\nbuy\n\nAssistant:\ndone()</s>\n\n"
    assert chat.end_id == chat.tokenizer.eos_token_id
    roles = chat.roles(said("buy"))
    assert roles is not None and set(roles.tolist()) == {0, ROLES["system"], ROLES["user"]}


def test_a_bos_comes_once(folder, tmp_path):
    """A tokenizer that puts a BOS before every text, as Llama's does: the plain template has it once, raw text too."""
    from tokenizers import processors
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    for template in ("", TEMPLATE):
        tokenizer.chat_template = template
        chat = Chat(tokenizer)
        assert chat.front == (0,)
        for ids in (chat.prompt(said("<s>buy")).ids.tolist(), list(chat.raw("<s> a lamp"))):
            assert ids[0] == 0 and ids.count(0) == 1
