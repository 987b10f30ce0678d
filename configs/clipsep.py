"""CLIPSep: image queries, no labels, no noise heads.

clipsep train --config=configs/clipsep.py:vggsound --workdir=runs/clipsep --config.data.records=data/vggsound

The paper: SDR 5.49 dB mean, 4.97 dB median on MUSIC with text queries.
"""

from ml_collections import ConfigDict

from configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    return base.get_config(dataset)
