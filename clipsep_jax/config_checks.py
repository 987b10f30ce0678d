"""What the values of a config must be, and which go together. It is given a `Config`, whose module imports this one."""

from typing import Any

from clipsep_jax.errors import InputError

MOST_ASSIGNMENTS = 4_096  # of masks to mixtures, all of which a step tries

_MOST_STEPS = 10**12

# The least and the largest value of each whole number: some times what anybody has trained with, so that a config that
# came with a model cannot ask for more memory or time than its weights are worth.
RANGES = {
    "spectrogram.num_samples": (1, 2**24),
    "spectrogram.fft_size": (1, 2**16),
    "spectrogram.hop_samples": (1, 2**16),
    "spectrogram.num_warped_bins": (1, 2**13),
    "mixing.sources_per_target": (1, 64),
    "mixing.fewest_sounding": (0, 64),
    "mixing.most_sounding": (0, 64),
    "model.num_levels": (1, 16),
    "model.width": (1, 2**10),
    "model.num_channels": (1, 2**12),
    "model.num_noise_heads": (0, 256),
    "model.num_masks": (0, 64),
    "model.query_size": (1, 2**16),
    "objective.noise_warmup_steps": (0, _MOST_STEPS),
    "data.num_sources": (1, 64),
    "data.batch_size": (1, 2**20),
    "data.frames_per_clip": (1, 10_000),
    "data.frame_margin": (0, 10_000),
    "data.read_workers": (-1, 1_000),
    "data.read_threads": (1, 10_000),
    "data.num_dropped_pairs": (0, 2**20),
    "data.similar_pairs_from_step": (0, _MOST_STEPS),
    "optimizer.warmup_steps": (0, _MOST_STEPS),
    "optimizer.decay_end_step": (0, _MOST_STEPS),
    "train.steps": (1, _MOST_STEPS),
    "train.seed": (0, 2**63 - 1),
    "train.log_every": (1, _MOST_STEPS),
    "train.validate_every": (1, _MOST_STEPS),
    "train.validation_batches": (1, 2**20),
    "train.board_mixtures": (0, 1_000),
    "train.max_skipped_in_row": (1, _MOST_STEPS),
    "train.hang_seconds": (1, 10**9),
    "checkpoint.save_every": (1, _MOST_STEPS),
    "checkpoint.keep_latest": (1, 2**20),
}
_MOST_CELLS = 2**26  # frames times samples of each, 256 times the official ones


def check(config: Any) -> None:
    """Checks the values of a config.

    Raises:
        InputError: one is out of its range, or some contradict each other.
    """
    _check_numbers(config)
    sides = {"num_warped_bins": config.spectrogram.num_warped_bins, "number of frames": config.spectrogram.num_frames}
    for name, side in sides.items():
        if side % 2**config.model.num_levels:
            raise InputError(
                f"The spectrogram's {name} is {side}, which {config.model.num_levels} levels cannot halve; "
                f"choose a multiple of {2**config.model.num_levels} or fewer config.model.num_levels."
            )
    if config.objective.name == "noise_invariant" and config.model.num_noise_heads < config.data.num_sources:
        raise InputError(
            f"The noise invariant objective needs config.model.num_noise_heads of at least {config.data.num_sources} "
            f"(one per source), not {config.model.num_noise_heads}."
        )
    _check_targets(config)
    _check_sounding(config)
    if config.model.fusion == "film" and config.model.num_levels < 2:
        raise InputError(
            'config.model.fusion = "film" modulates blocks with a BatchNorm, which a network of one level has not; '
            "choose more config.model.num_levels."
        )
    if config.model.fusion != "late" and (config.model.num_noise_heads or config.model.negative_query):
        raise InputError('Noise heads, negative and learned queries need config.model.fusion = "late".')
    if config.model.negative_query and (config.data.num_sources < 2 or config.query.combine == "compete"):
        raise InputError(
            "config.model.negative_query takes the other sources' queries, of which it needs one each: "
            'config.data.num_sources of at least 2, and config.query.combine other than "compete".'
        )
    if (config.data.similar_pairs == "drop") != (config.data.num_dropped_pairs > 0):
        raise InputError('config.data.num_dropped_pairs goes with config.data.similar_pairs = "drop"; give a count.')


def _check_sounding(config: Any) -> None:
    mixing, fewest, most = config.mixing, config.fewest_sounding, config.most_sounding
    if not fewest <= most <= config.data.num_sources:
        raise InputError(
            f"config.mixing.fewest_sounding and most_sounding are {fewest} and {most} of config.data.num_sources = "
            f"{config.data.num_sources} clips; give them in rising order."
        )
    if mixing.absent_weight < 0:
        raise InputError(f"config.mixing.absent_weight is {mixing.absent_weight}; it must be at least 0.")
    if fewest < config.data.num_sources and config.objective.name not in ("weighted", "noise_invariant"):
        raise InputError(
            "config.mixing.fewest_sounding and most_sounding make some queries ask for what is not there, which needs "
            'config.objective.name = "weighted" or "noise_invariant".'
        )
    least, most = config.data.gain_min, config.data.gain_max
    if not 0 <= least <= most or (config.data.gain_law == "decibels" and least == 0):
        raise InputError(
            f"config.data.gain_min and gain_max are {least} and {most}; give them in rising order, from 0 on, or above "
            '0 with config.data.gain_law = "decibels".'
        )


def _check_targets(config: Any) -> None:
    num_sources, together = config.data.num_sources, config.mixing.sources_per_target
    if num_sources % together:
        raise InputError(
            f"config.data.num_sources is {num_sources}, not a multiple of "
            f"config.mixing.sources_per_target = {together}; choose a multiple."
        )
    num_masks = config.model.num_masks or num_sources
    if config.model.num_masks and config.query.kind != "none":
        raise InputError('config.model.num_masks needs config.query.kind = "none", a model without queries.')
    if num_masks < num_sources // together:
        raise InputError(f"config.model.num_masks is {num_masks}; {num_sources // together} targets need as many.")
    if config.objective.sparsity_weight and config.objective.name != "mixture_invariant":
        raise InputError('config.objective.sparsity_weight needs config.objective.name = "mixture_invariant".')
    if config.objective.name == "mixture_invariant":
        ways = (num_sources // together) ** num_masks
        if ways > MOST_ASSIGNMENTS:
            raise InputError(
                f"The mixture invariant objective would try {ways:,} assignments of masks to targets, above "
                f"{MOST_ASSIGNMENTS:,}; choose fewer config.data.num_sources or config.model.num_masks, or more "
                "config.mixing.sources_per_target."
            )
    elif together > 1:
        raise InputError(
            f"config.mixing.sources_per_target = {together} makes mixtures the targets, which needs "
            'config.objective.name = "mixture_invariant".'
        )


def _check_numbers(config: Any) -> None:
    for name, (least, most) in RANGES.items():
        group, option = name.split(".")
        value = getattr(getattr(config, group), option)
        if not least <= value <= most:
            limit = f"at least {least}" if value < least else f"at most {most:,}"
            raise InputError(f"config.{name} is {value}; it must be {limit}.")
    if config.spectrogram.num_frames * config.spectrogram.fft_size > _MOST_CELLS:
        raise InputError(
            f"The spectrogram has {config.spectrogram.num_frames:,} frames of {config.spectrogram.fft_size} samples, "
            f"above {_MOST_CELLS:,} in all; choose fewer config.spectrogram.num_samples or larger hop_samples."
        )
    if config.spectrogram.fft_size % config.spectrogram.hop_samples:
        raise InputError("config.spectrogram.fft_size must be a multiple of hop_samples.")
