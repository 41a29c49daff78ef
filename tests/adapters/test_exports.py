"""What goes out in other tools' files comes back as it was, and what is no such file is refused."""

from __future__ import annotations

import gzip
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from tests.adapters.conftest import DICTIONARY, MODEL
from tests.report.synthetic_run import write_run

from fairlead.adapters import neuronpedia, saebench
from fairlead.app.export import export
from fairlead.cli import main
from fairlead.core.errors import FairleadError, LoadError, MissingExtra
from fairlead.features import labels
from fairlead.features.index import Index
from fairlead.features.store import Store as FeatureStore
from fairlead.report.export import rows

NOW = 1_764_000_000_000


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("studies"), per_category=4, traced=1)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fairlead.app import features

    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("stores") / "store"
    features.harvest(MODEL, DICTIONARY, texts=None, out=home, limit=6)
    some = [int(i) for i in Index(FeatureStore(home)).count.nonzero()[0][:6]]
    features.label(home, latents=some, embed="none")
    return home


@pytest.fixture(scope="module")
def uploaded(store: Path, tmp_path_factory: pytest.TempPathFactory) -> neuronpedia.Exported:
    return neuronpedia.export(store, tmp_path_factory.mktemp("uploads"), threshold=0.0)


@pytest.fixture
def cli() -> Callable[..., Result]:
    return lambda *args: CliRunner().invoke(main, [str(a) for a in args], catch_exceptions=False)


# ---- Neuronpedia


def test_a_store_goes_to_neuronpedia_and_back(store, uploaded, tmp_path):
    told = uploaded
    assert told.model == "shopper-s" and told.source == "1-resid-fairlead"
    found = neuronpedia.read(Path(told.path))
    opened = FeatureStore(store)
    index = Index(opened)
    assert found.model == told.model and found.id == told.source and len(found.features) == opened.n_features
    said = labels.read(store / "labels.jsonl")[1]
    for i in (int(i) for i in index.count.nonzero()[0][:6]):
        feature, best = found.features[i], int(index.top[i][0])
        span = opened.window(best)
        assert feature.density == pytest.approx(float(index.density[i]))
        assert feature.windows[0].tokens == tuple(opened.texts(span))
        assert feature.windows[0].values == tuple(opened.activations(i, span))
        assert feature.largest == max(feature.windows[0].values)
        assert feature.labels == ((said[i].text,) if said[i].holds(0.0) else ())
    quiet = int((index.count[:] == 0).nonzero()[0][0]) if (index.count[:] == 0).any() else None
    assert quiet is None or found.features[quiet].windows == ()
    out = tmp_path / "labels.jsonl"
    assert neuronpedia.save_labels(found, out) == told.labels == len(labels.read(out)[1])
    assert all(label.held is None for label in labels.read(out)[1].values())  # scored elsewhere is not scored here


def test_only_labels_that_hold_go_out_and_the_lines_are_theirs(store, tmp_path):
    told = neuronpedia.export(store, tmp_path, threshold=2.0)
    assert told.labels == 0 and not list((Path(told.path) / "explanations").iterdir())
    (line, *_) = gzip.decompress((Path(told.path) / "features" / "batch-0.jsonl.gz").read_bytes()).splitlines()
    row = json.loads(line)
    assert {"modelId", "layer", "index", "maxActApprox", "frac_nonzero", "topkCosSimIndices", "pos_str"} <= set(row)
    assert row["index"] == "0" and row["layer"] == told.source
    for name in ("model", "release", "sourceset", "source"):
        assert json.loads((Path(told.path) / f"{name}.jsonl").read_text())


@pytest.mark.parametrize(
    "spoil",
    [
        lambda f: f.unlink(),
        lambda f: f.write_bytes(f.read_bytes()[:-20]),
        lambda f: f.write_bytes(b"no gzip"),
        lambda f: f.write_bytes(gzip.compress(b"[1]\n")),
        lambda f: f.write_bytes(gzip.compress(b'{"index": "0"}\n')),
        lambda f: f.write_bytes(gzip.compress(b'{"index": "0", "frac_nonzero": NaN, "maxActApprox": 1}\n')),
    ],
)
def test_a_spoiled_upload_is_refused(uploaded, tmp_path, spoil):
    here = shutil.copytree(uploaded.path, tmp_path / "spoiled")
    shutil.rmtree(here / "activations")
    spoil(here / "features" / "batch-0.jsonl.gz")
    with pytest.raises(LoadError):
        neuronpedia.read(here)


def test_names_that_are_paths_and_folders_that_are_there_are_refused(store, uploaded, tmp_path):
    with pytest.raises(FairleadError, match="not an id"):
        neuronpedia.export(store, tmp_path, model="../up")
    with pytest.raises(FairleadError, match="there already"):
        neuronpedia.export(store, Path(uploaded.path).parents[1])


# ---- SAEBench


def test_a_study_is_a_result_of_the_shape_that_saebench_reads(study, tmp_path):
    files = saebench.export(study, tmp_path, millis=NOW)
    assert files == saebench.export(study, tmp_path, millis=NOW) and files
    found = [saebench.read(file) for file in files]
    table = rows(study)
    for result in found:
        place = (result["eval_config"]["model_name"], result["eval_config"]["decoding"])
        mine = [row for row in table if (row["model"], row["decoding"]) == place]
        assert result["eval_result_details"] == json.loads(json.dumps(mine))
        for row in mine:
            numbers = result["eval_result_metrics"][f"arm_{row['arm']}"]
            assert numbers["strict"] == row["strict"] and all(math.isfinite(v) for v in numbers.values())
        claim = result["eval_result_metrics"]["claim"]
        assert claim["minus_none_lo"] <= claim["minus_none_difference"] <= claim["minus_none_hi"]
        assert result["datetime_epoch_millis"] == NOW and result["sae_bench_commit_hash"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"eval_id": None, "drop": "eval_id"}, "no eval_id"),
        ({"datetime_epoch_millis": -1}, "time in milliseconds"),
        ({"datetime_epoch_millis": 1.5}, "time in milliseconds"),
        ({"eval_result_metrics": []}, "categories"),
        ({"eval_result_metrics": {"a": {"b": {"c": 1}}}}, "flat"),
    ],
)
def test_what_saebench_would_not_read_is_refused(study, change, message):
    (result, *_) = saebench.results(study, millis=NOW)
    drop = change.pop("drop", None)
    spoiled = {key: value for key, value in {**result, **change}.items() if key != drop}
    with pytest.raises(LoadError, match=message):
        saebench.check(spoiled)


# ---- pandas


def test_frames_hold_the_records_and_the_tables(study, tmp_path):
    pandas = pytest.importorskip("pandas", reason="pip install 'fairlead[pandas]'")
    from fairlead.core.records import Run
    from fairlead.report.frames import TABLES, frames

    found = frames(study)
    records = Run.open(study).records
    assert tuple(found) == TABLES and len(found["records"]) == len(records)
    assert found["records"]["score_strict"].isna().sum() == sum(r.error is not None for r in records)
    assert len(found["arms"]) == len(rows(study)) and {"difference_interval_low", "p_holm"} <= set(found["contrasts"])
    written = export(study, "pandas-csv", tmp_path / "out")
    again = pandas.read_csv(tmp_path / "out" / "records.csv")
    assert len(again) == len(records) and len(written.files) == len(TABLES)


def test_without_pandas_the_message_names_the_extra(study, monkeypatch):
    from fairlead.report.frames import frames

    monkeypatch.setattr("fairlead.core.extras.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"fairlead\[pandas\]"):
        frames(study)
    assert issubclass(MissingExtra, ImportError)


# ---- the verb


def test_the_verb_writes_each_format_once(study, store, tmp_path, cli):
    for to, source in (("json", study), ("csv", study), ("saebench", study), ("neuronpedia", store)):
        names = ("--model", "m", "--id", "1-x") if to == "neuronpedia" else ()
        got = cli("export", source, "--to", to, "--out", tmp_path / to, "--json", *names)
        told = json.loads(got.output)
        assert got.exit_code == 0 and told["files"] and all(Path(file).is_file() for file in told["files"])
        assert not names or told["about"].endswith("as m/1-x")
        again = cli("export", source, "--to", to, "--out", tmp_path / to)
        assert again.exit_code == 2 and "there already" in again.output
    assert cli("export", study, "--to", "csv", "--out", tmp_path / "q", "--model", "m").exit_code == 2
    assert cli("export", tmp_path, "--to", "saebench", "--out", tmp_path / "w").exit_code == 2
    assert cli("export", study, "--to", "neuronpedia", "--out", tmp_path / "v").exit_code == 2


# ---- notebooks


def test_values_show_themselves_in_a_notebook_and_nothing_in_them_is_markup(study):
    from fairlead import steering
    from fairlead.features.cards import Card
    from fairlead.judge import judge

    (edit,) = steering.parse("12 -= 2x at generated when 97 > 0.4")
    shown = edit._repr_html_()
    assert "12 -= 2x at generated when 97 &gt; 0.4" in shown and steering.fingerprint((edit,))[:12] in shown
    evil = "<script>alert(1)</script>"
    contexts = [{"tokens": ["a", evil], "highlight": 1, "value": 2.0}]
    lens: dict[str, Any] = {"positive": [[evil, 1.0]], "negative": []}
    card = Card(index=3, site="resid.1", label=evil, density=0.25, top_contexts=contexts, logit_lens=lens)
    assert "latent 3 at resid.1" in card._repr_html_() and "<script" not in card._repr_html_()
    assert json.loads(json.dumps(card)) == card and "no label" in Card()._repr_html_()
    from fairlead.core.records import Run

    verdict = judge(Run.open(study))
    html = verdict._repr_html_()
    assert verdict.status in html and "Δ strict" in html and "<script" not in html and html.count("<tr>") > 1
