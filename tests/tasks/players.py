"""Scripted worlds for the shop: a policy that sees the state, put behind `play`'s question."""

from __future__ import annotations

from fairlead.core.types import Generation, Outcome
from fairlead.tasks.shop.episode import play
from fairlead.tasks.shop.fronts import Front
from fairlead.tasks.shop.observe import Observation
from fairlead.tasks.shop.policies import Policy
from fairlead.tasks.shop.spec import Instance


async def play_with(ins: Instance, front: Front, policy: Policy, *, keep_html: bool = False) -> Outcome:
    async def ask(obs: Observation, legal: tuple[str, ...]) -> Generation:
        return Generation(policy(ins, front.state, obs), 0, 0)

    return await play(ins, front, ask, keep_html=keep_html)
