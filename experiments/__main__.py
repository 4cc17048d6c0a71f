"""`python -m resprune_jax.experiments`: the `resprune` command of a checkout."""

import sys

from resprune_jax.experiments import start

if __name__ == "__main__":
    sys.exit(start.main())
