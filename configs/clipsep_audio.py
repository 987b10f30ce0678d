"""Sounds as queries: CLIPSep asked by an example, for recordings that have neither labels nor pictures.

clipsep train --config=configs/clipsep_audio.py:vggsound --workdir=runs/audio
clipsep separate street.wav --model runs/audio --example bark.wav --out separated

Each training query is another segment of the clip, which an encoder embeds that is trained together with the separator
(as in SoundFilter: Gfeller et al., 2020). `python -m benchmarks.ablations` measures it at a small size.
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import base


def get_config(dataset: str = "vggsound") -> ConfigDict:
    config = base.get_config(dataset)
    config.query.kind = "audio"
    return config
