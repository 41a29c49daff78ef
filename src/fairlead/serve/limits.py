"""How much a request may ask for. Whoever runs the server sets them; whoever asks can only stay below."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Strength is in multiples of a latent's largest activation where the dictionary knows it, else in the edit's own
    units; seconds are for a body to arrive, and for an answer."""

    body: int = 2_000_000  # bytes
    messages: int = 512
    chars: int = 400_000  # of all messages or prompts
    tokens: int = 1024  # new tokens of one choice
    choices: int = 500  # legal answers
    stops: int = 4
    n: int = 16  # prompts times choices
    tops: int = 20  # alternatives to a token
    edits: int = 32
    edit_chars: int = 20_000
    strength: float = 100.0
    body_seconds: float = 20.0
    seconds: float = 300.0


@dataclass(frozen=True)
class FeatureLimits:
    """Of a question about features."""

    body: int = 400_000  # bytes
    query: int = 200  # characters
    rows: int = 200  # latents of a list
    latents: int = 32  # cards at once
    texts: int = 64  # on each side of a contrast; messages of a prompt
    chars: int = 20_000  # of a text
