"""CLIPSep with middle fusion: the query vector joins the features at the network's bottleneck.

clipsep train --config=configs/clipsep_middle.py:vggsound --workdir=runs/middle
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.model.fusion = "middle"
    return config
