"""For all rooms: one thread per test process, and no clock in the verdict of a test."""

from __future__ import annotations

import os
import tempfile

from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["FAIRLEAD_STATE"] = tempfile.mkdtemp(prefix="fairlead-state-")  # a test never counts in the user's own file

# A busy machine draws examples slowly; that says nothing about the code.
settings.register_profile("fairlead", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("fairlead")
