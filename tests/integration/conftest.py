"""What the integration tests share.

The control plane is made ready before the first test begins, because a first build takes minutes and must not count
against the time limit of whichever test happens to come first.
"""

from collections.abc import Iterator

import pytest

from hack.controlplane import ControlPlane, ControlPlaneError, Source, ensure

_SOURCE = pytest.StashKey[Source | ControlPlaneError]()


def pytest_collection_finish(session: pytest.Session) -> None:
    if session.config.option.collectonly or not any(
        "control_plane" in getattr(item, "fixturenames", ()) for item in session.items
    ):
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        try:
            session.config.stash[_SOURCE] = ensure()
        except ControlPlaneError as error:
            # Tests that need no cluster shall still run; the others fail with this error.
            session.config.stash[_SOURCE] = error


@pytest.fixture(scope="session")
def control_plane(pytestconfig: pytest.Config) -> Iterator[ControlPlane]:
    source = pytestconfig.stash[_SOURCE]
    if isinstance(source, ControlPlaneError):
        raise source
    with ControlPlane(source) as running:
        yield running
