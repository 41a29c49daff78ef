"""Pages and pictures that the live page frames: kept in memory, each under a name that only its content's reader knows.

A frame cannot send a token, so a name is a keyed hash: who has it was given it by an answer that needed the token,
where one is needed. Pages are untrusted; what serves them says that they may run nothing and load nothing.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections import OrderedDict
from dataclasses import dataclass, field

MOST = 600  # pages kept; the oldest is forgotten
OUTLINE = '<style>[data-bid="{}"]{{outline:3px solid #d6471a!important;outline-offset:2px}}</style>'
POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; img-src data:; form-action 'none'; base-uri 'none'; "
    "frame-ancestors 'self'; sandbox"
)


@dataclass
class Pages:
    """Contents by name."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32))
    kept: OrderedDict[str, tuple[str, bytes]] = field(default_factory=OrderedDict)

    def keep(self, content: str | bytes, kind: str = "text/html; charset=utf-8") -> str:
        """The name under which `content` is served."""
        data = content.encode("utf-8", "replace") if isinstance(content, str) else content
        name = hmac.new(self.secret, kind.encode() + data, hashlib.sha256).hexdigest()[:40]
        self.kept[name] = (kind, data)
        self.kept.move_to_end(name)
        while len(self.kept) > MOST:
            self.kept.popitem(last=False)
        return name

    def get(self, name: str, bid: str = "") -> tuple[str, bytes] | None:
        """(content type, content); in a page, the element of number `bid` is outlined."""
        found = self.kept.get(name)
        if found is None:
            return None
        kind, data = found
        if kind.startswith("text/html") and re.fullmatch(r"\d{1,4}", bid):
            data = data + OUTLINE.format(bid).encode()
        return kind, data
