"""How long to fuzz: a fixed, quick set of examples with all other tests; many random ones with
`python -m pytest tests/fuzz --hypothesis-profile=long`."""

from hypothesis import HealthCheck, settings

LONG = "long"
FACTOR = 60

settings.register_profile(LONG, print_blob=True)


def examples(quick: int) -> settings:
    """So many examples, the same each time; in the long run `FACTOR` times as many, and others each time."""
    long = settings.get_current_profile_name() == LONG
    return settings(
        max_examples=quick * (FACTOR if long else 1),
        derandomize=not long,
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture],
    )
