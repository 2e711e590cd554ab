import jax
import pytest
from hypothesis import HealthCheck, settings

# Every new shape compiles: no deadline per example, and few examples that count.
settings.register_profile(
    "suite", deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow], derandomize=True
)
settings.load_profile("suite")


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield
