"""CLIPSep-NIT: noise invariant training with two noise masks and the gamma regularizer.

clipsep train --config=configs/clipsep_nit.py:vggsound --workdir=runs/nit --config.data.records=data/vggsound
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.model.num_noise_heads = 2
    config.objective.name = "noise_invariant"
    return config
