"""CLIPSep-NIT: noise invariant training with two noise masks and the gamma regularizer.

clipsep train --config=configs/clipsep_nit.py:vggsound --workdir=runs/nit --config.data.records=data/vggsound

The 200,000 steps take 3 to 4 hours on an H100 with 16 CPU cores, which reading limits (docs/performance.md). On the
made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 7.04 ± 0.21 dB by text and 6.75 ± 0.22 by image
(the mixture: -0.18 dB), by `python -m benchmarks.toy clipsep_nit`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.model.num_noise_heads = 2
    config.objective.name = "noise_invariant"
    return config
