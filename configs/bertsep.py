"""BERTSep: queries are sentence embeddings of the labels, read from a file (see docs/sentences.md for making one).

clipsep train --config=configs/bertsep.py:music --workdir=runs/bertsep --config.query.table=data/sentences.safetensors

On the made-up toy set, 1,200 steps in 3 to 6 minutes on 2 CPU cores: mean SDR 6.70 ± 0.23 dB by sentence (the mixture,
drawn by an earlier rule: 0.03 dB), by `python -m benchmarks.toy bertsep`.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "sentence"
    config.query.table = "data/sentences.safetensors"
    config.model.query_size = 256
    return config
