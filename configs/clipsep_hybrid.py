"""CLIPSep-Hybrid: image queries on even steps, text queries on odd ones.

clipsep train --config=configs/clipsep_hybrid.py:vggsound --workdir=runs/hybrid

On the made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 7.38 ± 0.24 dB by text and 7.00 ± 0.24 by
image (the mixture, drawn by an earlier rule: 0.03 dB), by `python -m benchmarks.toy clipsep_hybrid`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "hybrid"
    return config
