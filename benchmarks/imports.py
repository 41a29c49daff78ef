"""How long imports take, beside torch alone: CPU-seconds of fresh interpreters, the least of N.

    python -m benchmarks.imports [--runs 5]

Prints one JSON object. The aim: `import fairlead`, and the rooms that load and steer models, within 0.3 s of torch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys

STATEMENTS = {
    "torch": "import torch",
    "torch, numpy, safetensors": "import torch, numpy, safetensors.torch",
    "fairlead": "import fairlead",
    "fairlead.cli": "import fairlead.cli",
    "fairlead.lm, dictionaries, steering": "import fairlead.lm.load, fairlead.dictionaries, fairlead.steering",
    "transformers' Llama": "from transformers import AutoModelForCausalLM, LlamaForCausalLM",
}


def cpu_seconds(statement: str, runs: int) -> float:
    """The least CPU time of `runs` fresh interpreters, start-up left out."""
    code = f"import time\nstart = time.process_time()\n{statement}\nprint(time.process_time() - start)"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return min(
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=env).stdout)
        for _ in range(runs)
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    took = {name: round(cpu_seconds(statement, runs), 3) for name, statement in STATEMENTS.items()}
    over = took["fairlead.lm, dictionaries, steering"] - took["torch"]
    print(json.dumps({"runs": runs, "cpu_seconds": took, "over_torch": round(over, 3), "within": over <= 0.3}))  # noqa: T201


if __name__ == "__main__":
    main()
