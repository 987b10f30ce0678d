"""LabelSep: queries are labels, each with an embedding that is trained along.

clipsep train --config=configs/labelsep.py:music --workdir=runs/labelsep

On the made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 7.05 ± 0.23 dB by label (the mixture,
drawn by an earlier rule: 0.03 dB), by `python -m benchmarks.toy labelsep`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "label"
    return config
