"""Preparing on a cluster with Apache Beam; each block is one element of the pipeline.

The workers must see inputs and output under the same paths, as on a shared file system or a mounted bucket.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions

from clipsep_jax.data_prep.pool import Reader, ReaderPool
from clipsep_jax.data_prep.writer import Block, write_block
from clipsep_jax.errors import InputError
from clipsep_jax.terminal import say

# Runners that need more than their name.
_RUNNERS = {
    "DaskRunner": [
        "--runner=apache_beam.runners.dask.dask_runner.DaskRunner",
        "--dask_partition_size=1",  # else up to 128 blocks go to one worker
    ]
}


@dataclass(frozen=True)
class BeamRunner:
    """Runs the blocks in a Beam pipeline.

    Attributes:
        runner: DirectRunner, DaskRunner, FlinkRunner, SparkRunner, DataflowRunner, or another of Beam's.
        arguments: pipeline options, such as "--flink_master=host:8081".
    """

    runner: str
    arguments: tuple[str, ...] = ()
    time_limit_seconds: float = 600.0

    def __call__(self, blocks: Sequence[Block], read: Reader, num_done: int) -> None:
        """Run the pipeline and wait until it ends; see `data_prep.writer.Runner`.

        Raises:
            InputError: the pipeline failed.
        """
        say(f"{len(blocks)} blocks of clips run on {self.runner}.", error=True)
        pipeline = None
        try:
            options = PipelineOptions([*_RUNNERS.get(self.runner, [f"--runner={self.runner}"]), *self.arguments])
            with beam.Pipeline(options=options) as pipeline:
                _ = (
                    pipeline
                    | "blocks" >> beam.Create(list(blocks))
                    | "write" >> beam.ParDo(_WriteBlock(read, self.time_limit_seconds))
                )
        except Exception as error:  # each of Beam's runners raises its own kind
            why = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            if "daemonic processes" in why:
                why += "; start Dask's workers with DASK_DISTRIBUTED__WORKER__DAEMON=False"
            raise InputError(f"The pipeline on {self.runner} failed ({why}); rerun the command to resume.") from error
        finally:
            _close_client(pipeline)


def _close_client(pipeline: beam.Pipeline | None) -> None:
    """Close the connection to a Dask cluster, which Beam leaves open."""
    client = getattr(getattr(pipeline, "result", None), "client", None)
    if client is not None:
        client.close()


class _WriteBlock(beam.DoFn):
    def __init__(self, read: Reader, time_limit_seconds: float) -> None:
        self._read, self._limit = read, time_limit_seconds

    def setup(self) -> None:
        self._pool = ReaderPool(self._read, 1, self._limit)
        self._pool.__enter__()

    def process(self, block: Block) -> Iterator[int]:
        write_block(block, self._pool.outcomes(block.inputs))
        yield block.number

    def teardown(self) -> None:
        self._pool.__exit__(None, None, None)
