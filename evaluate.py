"""`spp-jax evaluate`, from a checkout. `python evaluate.py --help` lists every option."""

import sys

from spp_jax.cli.evaluate import main

if __name__ == "__main__":
    sys.exit(main())
