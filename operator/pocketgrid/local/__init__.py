"""The same engine, gateway and agents without a cluster: `pocketgrid run job.yaml`."""
