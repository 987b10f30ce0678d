"""CLIPSep-Hybrid: image queries on even steps, text queries on odd ones.

clipsep train --config=configs/clipsep_hybrid.py:vggsound --workdir=runs/hybrid
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "hybrid"
    return config
