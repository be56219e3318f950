"""A real Kubernetes API server for the demo and the tests: found, or built from Debian's source.

    from hack.controlplane import ControlPlane, ensure

    with ControlPlane(ensure()) as control_plane:
        control_plane.kubeconfig, control_plane.run_kubectl("get", "namespaces")

Rooms: lookup.py decides where the server comes from; build.py (with mirror.py, debian.py, cache.py) builds it;
run.py (with servers.py, k3s.py, child.py, kubeconfig.py) runs it. Standard library only, so that it works
before anything is installed. On the command line: `python -m hack.controlplane --help`.
"""

from hack.controlplane.errors import ControlPlaneError
from hack.controlplane.lookup import Absent, Kind, Source, ensure, find
from hack.controlplane.progress import Progress
from hack.controlplane.run import ControlPlane

__all__ = ["Absent", "ControlPlane", "ControlPlaneError", "Kind", "Progress", "Source", "ensure", "find"]
