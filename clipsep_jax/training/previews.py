"""What a model makes of a few held-out mixtures, as pictures and sounds for TensorBoard."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from clipsep_jax.mixing import apply_gain
from clipsep_jax.spectrogram import apply_masks, stft
from clipsep_jax.spectrogram_pictures import draw_images
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import put_batch, replicated
from clipsep_jax.training.setup import Run
from clipsep_jax.training.tensorboard import Board


class Previews:
    """The first mixtures of the first validation batch, separated by the model as it is."""

    def __init__(self, run: Run):
        self._run = run
        self._separate = jax.jit(self._separated, out_shardings=replicated(run.mesh))

    def show(self, board: Board | None, step: int, variables: PyTree) -> None:
        """Show the masks and sounds that a model gives; all processes take part, one has the board.

        Args:
            variables: parameters and running statistics.
        """
        if self._run.shown is None or not self._run.config.train.board_mixtures:
            return
        batch = put_batch(self._run.shown, self._run.mesh)
        pictures, sounds = jax.tree.map(np.asarray, self._separate(variables, batch, self._run.encoder_state))
        if board is not None:
            self._write(board, step, pictures, sounds)

    def _write(self, board: Board, step: int, pictures: dict[str, np.ndarray], sounds: dict[str, np.ndarray]) -> None:
        rate = self._run.config.spectrogram.sample_rate_hz
        for number in range(len(sounds["mixture"])):
            board.picture(
                f"mixture_{number}", step, draw_images({name: images[number] for name, images in pictures.items()})
            )
            for name, waves in sounds.items():
                board.sound(f"mixture_{number}/{name}", step, waves[number], rate)

    def _separated(self, variables: PyTree, batch: Batch, encoder: Any) -> tuple[dict[str, Array], dict[str, Array]]:
        """Pictures [B K T] and sounds [B L] by name, of the first mixtures of the batch."""
        spectrogram, trainer = self._run.config.spectrogram, self._run.trainer
        batch = jax.tree.map(lambda x: x[: self._run.config.train.board_mixtures], batch)
        mixture, query = trainer.mix(batch, jnp.array(0), encoder, training=False)
        params, batch_stats = variables
        logits, _ = trainer.logits(params, batch_stats, mixture, query, training=False)
        masks = jax.nn.sigmoid(logits.query)
        sources = apply_gain(jnp.asarray(batch.sources), trainer.gain(batch, None)[0]) / self._run.config.most_sounding
        mixed = sources.sum(axis=1)
        estimates = apply_masks(masks, stft(mixed, spectrogram), spectrogram, mixed.shape[-1])
        pictures = {"mixture, dB": 20 * jnp.log10(mixture.magnitude)}
        sounds = {"mixture": mixed}
        pictures |= {f"target {s + 1}": mixture.targets[:, s] for s in range(mixture.targets.shape[1])}
        sounds |= {f"source_{n + 1}": sources[:, n] for n in range(sources.shape[1])}
        for n in range(masks.shape[1]):
            pictures[f"mask {n + 1}"] = masks[:, n]
            sounds[f"estimate_{n + 1}"] = estimates[:, n]
        if logits.noise is not None:
            pictures["noise masks"] = jax.nn.sigmoid(logits.noise).sum(axis=1)
        return pictures, sounds
