"""`python -m spp_jax` is `spp-jax`."""

import sys

from spp_jax.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
