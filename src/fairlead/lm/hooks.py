"""What a hook at a site sees: the activations and, beside them, who each token is.

Sites are strings: "resid.L" (the residual stream after block L), "resid_pre.L" (before it), "attn.L" and
"mlp.L" (what the block's attention and MLP add to the stream). L counts from 0.

Free decoding is one prompt forward and then decode steps of one token a row. Scoring a page's legal actions
is a single forward: each row holds a prompt and, after it, the actions' tokens as a tree of shared prefixes
(see tree.py), so tokens that stand side by side may belong to different actions and share a position.
Nothing about a token may be inferred from the shape of a tensor or from its place in it; everything a hook
may ask is in `ForwardInfo`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

ROLE_SPECIAL, ROLE_SYSTEM, ROLE_USER, ROLE_ASSISTANT = 0, 1, 2, 3
ROLES = {"special": ROLE_SPECIAL, "system": ROLE_SYSTEM, "user": ROLE_USER, "assistant": ROLE_ASSISTANT}


@dataclass(frozen=True, eq=False)
class ForwardInfo:
    """The rows and tokens of one forward. B rows, T tokens a row in this forward, padding included.

    `positions` counts a row's own tokens from 0 as if there were no padding, over prompt and continuation
    together. The decision token is the last prompt token: its logits choose the first token of the action.
    """

    positions: Tensor  # long [B, T]; -1 on padding
    is_prompt: Tensor  # bool [B, T]; the token belongs to the prompt (False: generated, or a legal action's)
    is_last: Tensor  # bool [B, T]; the decision token
    real: Tensor  # bool [B, T]; not padding
    step: Tensor  # long [B]; agent step
    slot: Tensor  # long [B]; 0 means "leave this row as the model computed it", bit for bit
    role: Tensor  # long [B, T]; chat role ids as in ROLES
    roles_known: Tensor  # bool [B]; False where the template gave no role spans (then `role` is 0 throughout)
    request: (
        Tensor  # long [B]; which request of the batch the row works for; rows that are done drop out of decode steps
    )


SiteHook = Callable[[Tensor, ForwardInfo], Tensor]
"""Takes activations [B, T, d] at a site and returns what replaces them, of the same shape and dtype.
Returning the very tensor it was given means "unchanged"."""
