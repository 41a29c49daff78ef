"""Canonical JSON, seeds and the hash over source."""

import math
import subprocess
import sys
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fairlead.core.errors import RecordError
from fairlead.core.keys import _closure, canonical, content_key, derive_seed, source_hash
from fairlead.core.types import Cost


def test_canonical():
    assert canonical({"b": 1, "a": (1, None, "é")}) == '{"a":[1,null,"é"],"b":1}'
    assert canonical(Cost()) == canonical(asdict(Cost()))


@pytest.mark.parametrize("bad", [math.nan, math.inf, {"a": [1, -math.inf]}, {"x": object()}])
def test_what_cannot_be_recorded(bad):
    with pytest.raises(RecordError, match="cannot be recorded"):
        canonical(bad)


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_order_does_not_count(value):
    assert content_key(value) == content_key(dict(reversed(value.items())))


def test_seeds_are_content():
    assert derive_seed("a", 1) == derive_seed("a", 1) != derive_seed("a", 2)
    assert 0 <= derive_seed("a") < 2**63
    code = "from fairlead.core.keys import derive_seed; import sys; sys.stdout.write(str(derive_seed('a', 1)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(out.stdout) == derive_seed("a", 1)


def test_source_hash_follows_imports(tmp_path, monkeypatch):
    package = tmp_path / "madeup"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "a.py").write_text("def f():\n    from madeup import b\n    return b\n")
    (package / "b.py").write_text("from . import c\nx = 1\n")
    (package / "c.py").write_text("import os\n")
    (package / "d.py").write_text("y = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def now():
        _closure.cache_clear()
        return source_hash(["madeup.a"])

    before = now()
    (package / "d.py").write_text("y = 2\n")
    assert now() == before  # not imported
    (package / "c.py").write_text("import sys\n")
    assert now() != before  # imported through b, inside a function
    _closure.cache_clear()
    assert source_hash(["madeup"]) != source_hash(["madeup.a"])
    with pytest.raises(RecordError, match="no source"):
        source_hash(["madeup.zzz"])


def test_core_is_in_its_own_hash():
    assert "fairlead.core.types" in dict(_closure(("fairlead.core.fake",)))
