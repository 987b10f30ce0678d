"""The smallest run that is still the whole job: CLIPSep-NIT on a few made-up clips. For trying things out.

clipsep train --config=configs/toy_smoke.py --workdir=runs/smoke
"""

from ml_collections import ConfigDict

from clipsep_jax.configs import clipsep_nit


def get_config() -> ConfigDict:
    config = clipsep_nit.get_config("toy")
    config.data.records = "runs/toy_smoke_records"
    config.toy.num_clips = 24
    config.toy.encoder_steps = 0
    config.spectrogram.num_samples = 8_191
    config.model.num_levels = 3
    config.model.width = 4
    config.data.batch_size = 2
    config.data.validation_split = "test"
    config.train.steps = 20
    config.train.log_every = 1
    config.train.validate_every = 10
    config.train.validation_batches = 1
    config.checkpoint.save_every = 10
    return config
