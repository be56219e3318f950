"""Makes the long profile known before pytest looks for it."""

import pytest

from tests.fuzz import profiles


def pytest_collection_modifyitems(items: list[pytest.Item], config: pytest.Config) -> None:
    if config.getoption("hypothesis_profile", None) == profiles.LONG:
        for item in items:
            item.add_marker(pytest.mark.timeout(3600))
