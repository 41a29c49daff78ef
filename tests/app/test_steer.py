from __future__ import annotations

import json

import pytest


@pytest.mark.usefixtures("pocket")
class TestSteer:
    def test_an_episode_is_shown_step_by_step_default_beside_steered(self, cli):
        got = cli("steer", "3 += 40", "--shop", "validation/promo/0/on", "--model", "pocket/tiny", "--json")
        assert got.exit_code == 0, got.output
        found = json.loads(got.stdout)
        assert found["edits"] == "3 += 40" and found["steps"]
        for step in found["steps"]:
            assert sum(o["default"] for o in step["options"]) == pytest.approx(1)
            assert sum(o["steered"] for o in step["options"]) == pytest.approx(1)
            best = max(step["options"], key=lambda o: o["steered"])
            assert best["action"] == step["steered"]
            assert step["edits"][0]["fired"] > 0
        assert any(o["default"] != o["steered"] for s in found["steps"] for o in s["options"])
        assert any(o["label"] == "trap" for o in found["steps"][0]["options"])

    def test_a_prompt_with_actions_shows_how_their_shares_move(self, cli):
        ask = ("--prompt", "hello", "--action", "a", "--action", "b", "--model", "pocket/tiny", "--json")
        options = json.loads(cli("steer", "3 += 40 at last", *ask).stdout)["steps"][0]["options"]
        assert [o["action"] for o in options] == ["a", "b"]
        assert abs(options[0]["default"] - options[0]["steered"]) > 0.01

    def test_no_edit_changes_nothing(self, cli):
        got = cli("steer", "nothing", "--shop", "validation/promo/0/on", "--model", "pocket/tiny", "--json")
        for step in json.loads(got.stdout)["steps"]:
            assert step["default"] == step["steered"] and step["edits"] == []
            assert all(o["default"] == pytest.approx(o["steered"], abs=1e-6) for o in step["options"])

    def test_an_edit_that_did_not_fire_says_so(self, cli):
        got = cli("steer", "3 += 40 on step 90", "--prompt", "hello", "--action", "a", "--action", "b",
                  "--model", "pocket/tiny")  # fmt: skip
        assert got.exit_code == 0 and "DID NOT FIRE" in got.stdout

    def test_a_prompt_without_actions_is_answered_freely(self, cli):
        got = cli("steer", "3 += 4", "--prompt", "hello", "--system", "Be brief.", "--model", "pocket/tiny", "--json")
        step = json.loads(got.stdout)["steps"][0]
        assert step["options"] == [] and isinstance(step["steered"], str)

    def test_the_number_of_steps_can_be_limited(self, cli):
        got = cli(
            "steer", "nothing", "--shop", "validation/promo/0/on", "--model", "pocket/tiny", "--json", "--limit", 1
        )
        assert len(json.loads(got.stdout)["steps"]) == 1

    def test_the_test_split_stays_closed(self, cli):
        got = cli("steer", "nothing", "--shop", "test/promo/0/on", "--model", "pocket/tiny")
        assert got.exit_code == 2 and "validation/promo/0/on" in got.stderr
