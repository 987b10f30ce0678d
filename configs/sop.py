"""SOP (Sound of Pixels): image queries by a dilated ResNet-18, from records that hold its embeddings.

clipsep prepare embed data/music --encoder resnet18:MODEL
clipsep train --config=configs/sop.py:music --workdir=runs/sop

No time and no score are measured: the toy set has no ResNet-18 of its own.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.model.query_size = 512
    return config
