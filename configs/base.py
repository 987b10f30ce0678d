"""What all configs share, and the data sets that `file.py:DATASET` selects."""

from ml_collections import ConfigDict

from clipsep_jax.config import default_config

DATASETS = ("vggsound", "music", "toy")


def get_config(dataset: str = "vggsound") -> ConfigDict:
    """The official settings on a data set: CLIPSep, late fusion, weighted BCE."""
    config = default_config()
    if dataset == "toy":
        return _toy(config)
    if dataset not in DATASETS:
        raise ValueError(f"There is no data set {dataset!r}; choose one of {', '.join(DATASETS)}.")
    config.data.records = f"data/{dataset}"
    return config


def _toy(config: ConfigDict) -> ConfigDict:
    """Made-up clips and a miniature CLIP, both made on first use; small enough for two CPU cores."""
    config.data.records = "runs/toy_records"
    config.toy.num_clips = 400
    config.toy.encoder_steps = 600
    config.model.query_size = 64
    config.model.num_levels = 5
    config.model.width = 16
    config.model.init_std = 0.02
    config.spectrogram.num_samples = 32_767
    config.data.batch_size = 8
    config.optimizer.learning_rate = 3e-3
    config.optimizer.warmup_steps = 50
    config.optimizer.decay_end_step = 1200
    config.train.steps = 1200
    config.train.log_every = 5
    config.train.validate_every = 300
    config.train.validation_batches = 4
    config.checkpoint.save_every = 300
    return config
