"""The device agent of PocketGrid: computes shards of inference jobs that a gateway leases to it.

Importing this package settles two things that must be settled before numpy and onnxruntime load: onnxruntime sends
telemetry from 1.29 on unless it is told not to, and OpenBLAS reserves memory for every core although the agent's own
numpy work is too small to be spread.
"""

import os

os.environ["ORT_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

__version__ = "0.1.0"
