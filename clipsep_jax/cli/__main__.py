"""`python -m clipsep_jax.cli` is the command `clipsep`."""

import sys

from clipsep_jax.cli.main import main

sys.exit(main())
