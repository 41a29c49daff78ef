"""Bad input through the command line: one clear message, exit code 2, nothing written and nothing lost."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.app.conftest import PLAN, SITE

from fairlead import dictionaries
from fairlead.core import records
from fairlead.core.records import Run
from fairlead.dictionaries import random as random_dictionary

WITH_FEATURE = PLAN.replace('"prompt"]', '"prompt", "feature"]')


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def refused(got, *words: str) -> None:
    """Exit code 2 and one message that starts with `error:` and holds every word; no traceback."""
    assert got.exit_code == 2, got.output
    assert got.stderr.count("error:") + got.stderr.count("Error:") == 1, got.stderr
    assert "Traceback" not in got.stderr
    for word in words:
        assert word in got.stderr, got.stderr


def nothing_written() -> None:
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.usefixtures("pocket")
class TestPlans:
    @pytest.mark.parametrize(
        ("old", "new", "words"),
        [
            ('"prompt"]', '"prompt", "promt"]', ("promt", "prompt", "fairlead list methods")),
            ("smallest_effect", "smalest_effect", ("did you mean 'smallest_effect'?",)),
            ("n = 2\nn_train", "n = two\nn_train", ("not TOML",)),
            ('"strict"', "7", ("primary", "a text")),
            ('task = "shop"', 'task = "shopp"', ("shopp", "shop")),
            ("[task_options]\nn = 2", "[task_options]\nm = 2", ("unknown shop option", "m")),
            ("[task_options]\nn = 2", "[task_options]\nn = 2\nport = 'x'", ("shop option port", "'x'")),
            ("n = 2\nn_train", "n = 1000000000\nn_train", ("n is too large", "at most 100000")),
            ("[task_options]\nn = 2", "[task_options]\nn = 1000000000", ("shop option n is too large",)),
            ('claim = "prompt"', 'claim = "feature"', ("judged but not run",)),
            ('model = "pocket/tiny"', 'model = "pocket/tony"', ("pocket/tony", "pocket/tiny")),
        ],
    )
    def test_a_plan_that_cannot_be_run(self, cli, plan, old, new, words):
        assert old in PLAN
        plan.write_text(PLAN.replace(old, new))
        refused(cli("run", plan, "--exploratory"), *words)
        nothing_written()

    def test_a_dictionary_that_is_not_there(self, cli, plan):
        plan.write_text(WITH_FEATURE.replace("@resid.0", "@resid.7"))
        refused(cli("run", plan, "--exploratory"), "no dictionary", "resid.0")
        nothing_written()

    def test_a_plan_that_is_not_there(self, cli):
        refused(cli("run", "nowhere.toml"), "no plan", "demo", "fairlead list studies")
        nothing_written()

    def test_a_changed_plan_over_existing_records(self, cli, plan):
        first = cli("run", plan, "--exploratory", "--run", "here")
        assert first.exit_code == 0, first.output
        before = tree(Path("here"))
        plan.write_text(PLAN.replace("smallest_effect = 0.1", "smallest_effect = 0.2"))
        refused(cli("run", plan, "--exploratory", "--run", "here"), "the plan differs", "new run directory")
        assert tree(Path("here")) == before

    def test_judging_what_is_no_run(self, cli):
        refused(cli("judge", "nowhere"), "no run in nowhere")
        refused(cli("report", "nowhere"), "no run in nowhere")
        nothing_written()

    @pytest.mark.parametrize("verb", ["run", "steer"])
    def test_ctrl_c_is_one_line_and_exit_code_130(self, cli, plan, monkeypatch, verb):
        def stop(*_, **__):
            raise KeyboardInterrupt

        monkeypatch.setattr(f"fairlead.app.{verb}.{'opener' if verb == 'run' else 'open_model'}", stop)
        args = ("run", plan, "--exploratory") if verb == "run" else ("steer", "1 = 0", "--prompt", "x")
        got = cli(*args)
        assert got.exit_code == 130 and "Traceback" not in got.stderr
        assert got.stderr.endswith("stopped; the same command goes on from here\n" if verb == "run" else "stopped\n")


class TestWeights:
    @pytest.fixture
    def copied(self, pocket, tmp_path, monkeypatch) -> Path:
        root = tmp_path / "copied"
        shutil.copytree(pocket, root)
        monkeypatch.setenv("FAIRLEAD_POCKET", str(root))
        return root / "tiny"

    def refused_everywhere(self, cli, plan, *words):
        refused(cli("run", plan, "--exploratory"), *words)
        refused(cli("steer", "nothing", "--prompt", "x", "--model", "pocket/tiny"), *words)
        refused(cli("train-dictionary", "--model", "pocket/tiny", "--site", SITE, "--out", "new"), *words)
        nothing_written()

    def test_missing(self, cli, plan, copied):
        (copied / "model.safetensors").unlink()
        self.refused_everywhere(cli, plan, "no weights", "model.safetensors")

    def test_truncated(self, cli, plan, copied):
        file = copied / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        self.refused_everywhere(cli, plan, "model.safetensors cannot be read")

    def test_nan(self, cli, plan, copied):
        file = copied / "model.safetensors"
        tensors = load_file(file)
        next(iter(tensors.values())).view(-1)[3] = float("nan")
        save_file(tensors, file, metadata={"format": "pt"})
        self.refused_everywhere(cli, plan, "holds NaN", "model.safetensors")

    def test_a_dictionary_whose_width_does_not_fit(self, cli, plan, copied):
        rows = torch.randn(200, 8, generator=torch.Generator().manual_seed(2))
        narrow = random_dictionary.fit(rows, 12, name="narrow", site=SITE)
        shutil.rmtree(copied / "dictionaries" / SITE)
        dictionaries.save(narrow, copied / "dictionaries" / SITE)
        plan.write_text(WITH_FEATURE)
        refused(cli("run", plan, "--exploratory"), "does not fit", "16", "8")
        refused(cli("steer", "3 = 0", "--prompt", "x", "--model", "pocket/tiny"), "does not fit", "16", "8")
        nothing_written()


@pytest.mark.usefixtures("pocket")
class TestEdits:
    def test_a_latent_that_is_not_there(self, cli):
        refused(cli("steer", "999 = 0", "--prompt", "x", "--model", "pocket/tiny"), "latent 999", "0 to 23")
        nothing_written()

    @pytest.mark.parametrize("line", ["3 ==", "3 += six", "3 += 1 on stepp 0", ""])
    def test_syntax_has_a_caret_under_the_place(self, cli, line):
        got = cli("steer", line, "--prompt", "x", "--model", "pocket/tiny")
        refused(got, "^")
        nothing_written()

    def test_a_vector_that_is_not_stored(self, cli):
        line = ("steer", "@resid.1: $careful += 1", "--prompt", "x", "--model", "pocket/tiny")
        refused(cli(*line), "no stored vector $careful")
        refused(cli(*line, "--vectors", "nowhere.safetensors"), "nowhere.safetensors cannot be read")

    def test_neither_or_both_of_prompt_and_shop(self, cli):
        refused(cli("steer", "nothing", "--model", "pocket/tiny"), "--prompt or --shop")


@pytest.mark.usefixtures("pocket")
class TestBrowser:
    def test_no_browser(self, cli, plan, monkeypatch, tmp_path):
        monkeypatch.setenv("FAIRLEAD_CHROMIUM", str(tmp_path / "none"))
        plan.write_text(PLAN + 'front = "chromium"\n')
        refused(cli("run", plan, "--exploratory"), "FAIRLEAD_CHROMIUM", "apt-get install chromium-headless-shell")
        refused(cli("demo"), "FAIRLEAD_CHROMIUM", "apt-get install chromium-headless-shell")
        nothing_written()

    @pytest.mark.browser
    def test_port_taken(self, cli, plan):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            port = taken.getsockname()[1]
            plan.write_text(PLAN + f'front = "chromium"\nport = {port}\n')
            refused(cli("run", plan, "--exploratory"), f"port {port}")
        nothing_written()


@pytest.mark.usefixtures("pocket")
def test_a_disk_that_fills_up_loses_nothing(cli, plan, monkeypatch):
    """After a few writes every write fails as on a full disk; with room again the same command completes."""
    whole = cli("run", plan, "--exploratory", "--run", "whole")
    assert whole.exit_code == 0, whole.output
    written, room = os.write, [8]

    def write(handle: int, data) -> int:
        room[0] -= 1
        if room[0] < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return written(handle, data)

    with monkeypatch.context() as full:
        full.setattr(records.os, "write", write)
        refused(cli("run", plan, "--exploratory", "--run", "filled"), "the disk is full", "run the same command again")
    kept = Run.open("filled").records
    again = cli("run", plan, "--exploratory", "--run", "filled")
    assert again.exit_code == 0, again.output

    def plain(found):
        return sorted((r.trial, r.item, str(r.score), str(r.outcome)) for r in found)

    assert set(plain(kept)) <= set(plain(Run.open("filled").records))
    assert plain(Run.open("filled").records) == plain(Run.open("whole").records)


def test_what_the_system_refuses_is_one_message(cli, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    monkeypatch.setattr("fairlead.app.doctor.checks", full)
    refused(cli("doctor"), "page.html", "No space left on device")
