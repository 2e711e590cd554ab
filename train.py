"""`spp-jax train`, from a checkout. `python train.py --help` lists every option."""

import sys

from spp_jax.cli.train import main

if __name__ == "__main__":
    sys.exit(main())
