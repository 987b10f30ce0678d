"""CLIPSep with early fusion: the query vector joins the spectrogram at the network's input.

clipsep train --config=configs/clipsep_early.py:vggsound --workdir=runs/early
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.model.fusion = "early"
    return config
