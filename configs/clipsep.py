"""CLIPSep: image queries, no labels, no noise heads.

clipsep train --config=configs/clipsep.py:vggsound --workdir=runs/clipsep --config.data.records=data/vggsound

The paper, with text queries: SDR 5.49 dB mean and 4.97 dB median on MUSIC; improvement over the mixture 5.22 dB on
MUSIC+ and 3.53 dB on VGGSound-Clean+.

On the made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 7.32 ± 0.22 dB by text and 6.99 ± 0.23 by
image (the mixture: -0.18 dB), by `python -m benchmarks.toy clipsep`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    return base.get_config(dataset)
