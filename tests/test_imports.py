"""What an import brings in. Times are in benchmarks/imports.py, never in a test."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = {
    "accelerate", "bitsandbytes", "datasets", "inspect_ai", "lm_eval", "pandas", "peft", "ray", "sae_lens",
    "sentence_transformers", "sklearn", "transformer_lens", "wandb",
}  # fmt: skip


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter holds after `statement`."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_package_and_its_command_line_are_light():
    heavy = {"torch", "transformers", "numpy", "scipy", "playwright", "starlette", "jinja2"}
    assert not loaded_by("import fairlead") & (heavy | EXTRAS)
    assert not loaded_by("import fairlead.cli") & ({"torch", "transformers", "scipy", "playwright"} | EXTRAS)


def test_models_dictionaries_and_steering_bring_torch_and_no_more():
    found = loaded_by("import fairlead.lm.load, fairlead.dictionaries, fairlead.steering")
    assert {"torch", "numpy", "safetensors"} <= found
    assert not found & ({"transformers", "tokenizers", "huggingface_hub", "scipy", "playwright", "starlette"} | EXTRAS)
