"""LabelSep: queries are labels, each with an embedding that is trained along.

clipsep train --config=configs/labelsep.py:music --workdir=runs/labelsep
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "label"
    return config
