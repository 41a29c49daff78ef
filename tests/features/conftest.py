from __future__ import annotations

from typing import Any

import pytest
from tests.features import planted


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return planted.subject(tmp_path_factory.mktemp("planted"))


@pytest.fixture
def subject(model: Any) -> Any:
    return model.metered(None)


@pytest.fixture(scope="session")
def points(model: Any) -> Any:
    return planted.points_of(planted.ToyTask(model), planted.items("train", 6))


@pytest.fixture(scope="session")
def dictionary(model: Any) -> Any:
    return planted.dictionary(model)
