"""CLIPSep-Text: text queries made from labels, in training too.

clipsep train --config=configs/clipsep_text.py:vggsound --workdir=runs/text
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "text"
    return config
