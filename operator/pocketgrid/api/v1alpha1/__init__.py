"""The kinds of `pocketgrid.dev/v1alpha1`: pydantic models that are the source of the CRDs in crds/."""
