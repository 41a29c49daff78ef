"""A study on real files with a tiny random model: it runs to its end, and scores at chance."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.lm.tiny import write

from fairlead.cli import main
from fairlead.core.records import Run

DATA = Path(__file__).parents[3] / "shared" / "data"
PLAN = """
question = "Does a prompt help?"
task = "{task}"
model = "{model}"
arms = ["none", "prompt"]
primary = "strict"
smallest_effect = 0.1
n = {n}
n_train = 2
n_validation = 2
traces = 0
decoding = "{decoding}"
budget = {{tuning_trials = 2}}
[options.prompt]
select = "rollouts"
[task_options]
file = "{file}"
max_tokens = 4
"""


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no {DATA}")
@pytest.mark.parametrize(
    ("task", "file", "decoding", "n", "chance"),
    [("metaphor", "fig-qa/dev.csv", "constrained", 12, 0.5), ("maths", "svamp/SVAMP.json", "free", 6, 0.0)],
)
def test_real_files_run_to_the_end_at_chance(tmp_path, monkeypatch, task, file, decoding, n, chance):
    monkeypatch.chdir(tmp_path)
    model = write(tmp_path / "tiny", max_position_embeddings=1024)
    text = PLAN.format(task=task, model=model, n=n, decoding=decoding, file=DATA / file)
    Path("plan.toml").write_text(text)
    got = CliRunner().invoke(main, ["run", "plan.toml", "--exploratory", "--json"], catch_exceptions=False)
    assert got.exit_code == 0, got.output
    records = list(Run.open(json.loads(got.stdout)["run"]).records)
    assert len({r.cluster for r in records}) == n and all(r.error is None for r in records)
    for arm in ("none", "prompt"):
        mine = [r for r in records if r.arm == arm]
        right = sum(bool(r.score["strict"]) for r in mine) / len(mine)
        assert abs(right - chance) <= 0.3 and all(r.outcome["rewrite"] is None for r in mine)
