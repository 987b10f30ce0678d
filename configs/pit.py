"""PIT: no queries; two masks, trained permutation invariantly.

clipsep train --config=configs/pit.py:music --workdir=runs/pit
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "none"
    config.objective.name = "permutation_invariant"
    return config
