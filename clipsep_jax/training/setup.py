"""The parts of a training run, built from its config and checked before anything is written."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from clipsep_jax.config import Config
from clipsep_jax.data.batches import Batches
from clipsep_jax.data.record_set import LABEL_EMBEDDINGS_NAME, EncoderInfo, RecordSet
from clipsep_jax.encoders.base import Encoder
from clipsep_jax.encoders.registry import load_encoder, split_name
from clipsep_jax.errors import InputError
from clipsep_jax.queries.base import Kind
from clipsep_jax.queries.centre import Centre, measure_centre
from clipsep_jax.queries.kinds import kind_of
from clipsep_jax.structures import Batch
from clipsep_jax.training.devices import local_batch_size, make_mesh, put_batch, replicated
from clipsep_jax.training.step import Trainer, TrainState


class Run:
    """The parts of one training run, built once and checked before anything is written.

    Attributes:
        shown: the first validation batch, once it was read.
        centre: what is subtracted from queries, if anything.
    """

    shown: Batch | None = None

    def __init__(self, config: Config):
        """Build the parts."""
        self.records = RecordSet(Path(config.data.records))
        self.kind = kind_of(config)
        self.kind.check(config)
        self.config = config = self.kind.fit(config, self.records.labels)
        self.encoder = find_encoder(config, self.records)
        self.centre = self._measure_centre() if config.query.centre else None
        self.mesh = self._build_mesh()
        encoder = self._load_encoder()
        self.encoder_state = jax.device_put(encoder.state, replicated(self.mesh)) if encoder else None
        self.trainer = self._build_trainer(encoder.encode_images if encoder else None)
        self.gather = jax.jit(lambda tree: tree, out_shardings=replicated(self.mesh))
        self.train_batches = self._batches(config.data.train_split, self.kind, training=True)
        self.validation_batches = {
            kind.name: self._batches(config.data.validation_split, kind, training=False)
            for kind in self._validated_kinds()
        }

    def _build_mesh(self) -> Mesh:
        return make_mesh()

    def _build_trainer(self, encode: Callable[[Any, Array], Array] | None) -> Trainer:
        return Trainer(self.config, encode=encode, mesh=self.mesh)

    def _load_encoder(self) -> Encoder | None:
        if self.config.query.source != "frames":
            return None
        assert self.encoder is not None
        encoder = load_encoder(self.encoder.name, download=bool(self.config.query.encoder))
        otherwise = f"; set --config.model.query_size={encoder.query_size}."
        encoder.check_query_size(self.config.model.query_size, otherwise)
        return encoder

    def _measure_centre(self) -> Centre:
        def embed(texts: Sequence[str]) -> np.ndarray:
            if self.encoder is None:
                raise InputError(f"{self.records.folder} has neither labels nor an encoder to centre texts by.")
            return load_encoder(self.encoder.name, download=bool(self.config.query.encoder)).embed_text(texts)

        return measure_centre(self.records, self.config.data.train_split, embed)

    def _batches(self, split: str, kind: Kind, *, training: bool) -> Batches:
        spare = self.config.data.num_dropped_pairs if training else 0
        return kind.batches(
            self.config,
            self.records,
            split,
            training=training,
            centre=self.centre,
            batch_size=local_batch_size(self.config.data.batch_size, self.mesh, spare),
            process_index=jax.process_index(),
            num_processes=jax.process_count(),
        )

    def _validated_kinds(self) -> tuple[Kind, ...]:
        """The kinds of queries to validate by; none if the validation split is missing or too small."""
        if self.config.data.validation_split not in self.records.splits:
            return ()
        entries = self.records.split(self.config.data.validation_split).entries
        if len(entries) < self.config.data.num_sources:
            return ()
        same_encoder = self.encoder and self.records.encoder and self.encoder.sha256 == self.records.encoder.sha256
        has_texts = bool(same_encoder) and (self.records.folder / LABEL_EMBEDDINGS_NAME).is_file()
        return self.kind.validated_by(entries, has_texts)

    @property
    def chosen_by(self) -> str:
        """The name of the kind of query whose validation loss chooses the best model."""
        return self.kind.chosen_by.name

    def validate(self, state: TrainState) -> dict[str, np.ndarray]:
        """The mean loss over the first validation batches, for each kind of query: the name of the loss and a scalar.

        Of several models trained together: an array of their losses.
        """
        losses = {}
        for kind, batches in self.validation_batches.items():
            parts = []
            for number in range(self.config.train.validation_batches):
                batch = batches[number]
                parts.append(self.trainer.validation_step(state, put_batch(batch, self.mesh), self.encoder_state))
                if number == 0 and kind == self.chosen_by:
                    self.shown = batch
            losses[f"validation_loss_{kind}"] = np.asarray(np.mean([np.asarray(part) for part in parts], axis=(0, -1)))
        return losses


def find_encoder(config: Config, records: RecordSet) -> EncoderInfo | None:
    """The query encoder of a run: the config's, or else the one that prepared the records.

    Raises:
        InputError: it is missing, or is not the one that made the stored embeddings.
    """
    if not kind_of(config).has_encoder:
        return None
    name = config.query.encoder or (records.encoder.name if records.encoder else "")
    if not name:
        if config.query.source == "frames":
            raise InputError(f"{records.folder} names no encoder; give one with --config.query.encoder=FOLDER_OR_ID.")
        return None
    place = Path(split_name(name)[1])
    if not place.exists() and (place.is_absolute() or place.parts[:1] in ((".",), ("..",))):
        raise InputError(f"The query encoder {name} is missing; give it with --config.query.encoder=FOLDER.")
    if not config.query.encoder and records.encoder:
        return records.encoder
    encoder = load_encoder(name)
    if config.query.source == "embeddings" and records.encoder and encoder.sha256 != records.encoder.sha256:
        raise InputError(f"The embeddings in {records.folder} were made by {records.encoder.name}, not by {name}.")
    return EncoderInfo(encoder.name, encoder.sha256, encoder.query_size)
