"""Measures PocketGrid against the bare limit of the same machine: `python -m hack.bench`.

Rooms: measurements/ holds one module per measurement and the list of all; they stand on workloads.py (jobs to run),
grid.py (the real product on them: operator_process.py and agents), limit.py (bare onnxruntime on the same rows) and
comparing.py (both computed the same). figures.py says what a figure is, document.py and machine.py write
docs/benchmarks.md.
"""
