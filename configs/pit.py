"""PIT: no queries; two masks, trained permutation invariantly.

clipsep train --config=configs/pit.py:music --workdir=runs/pit

On the made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 5.89 ± 0.22 dB for the better of both
masks (the mixture, drawn by an earlier rule: 0.03 dB), by `python -m benchmarks.toy pit`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "none"
    config.objective.name = "permutation_invariant"
    return config
