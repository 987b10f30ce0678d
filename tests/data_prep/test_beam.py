"""Apache Beam in place of this machine's processes: the same bytes."""

import pytest

from clipsep_jax.data_prep.beam import BeamRunner
from clipsep_jax.data_prep.writer import PoolRunner, write_records
from clipsep_jax.errors import InputError
from tests.data_prep.fakes import files_of, make_inputs, read_fake


@pytest.mark.slow
def test_the_direct_runner_writes_the_same_bytes_and_goes_on_where_others_stopped(tmp_path):
    options = {"block_size": 4, "max_rejected": 0.5}
    write_records(make_inputs(20), read_fake, tmp_path / "here", run=PoolRunner(num_workers=0), **options)
    write_records(make_inputs(20), read_fake, tmp_path / "there", run=BeamRunner("DirectRunner"), **options)
    assert files_of(tmp_path / "there") == files_of(tmp_path / "here")

    def stop_after_two(blocks, read, num_done):
        PoolRunner(num_workers=0)(blocks[:2], read, num_done)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_records(make_inputs(20), read_fake, tmp_path / "again", run=stop_after_two, **options)
    write_records(make_inputs(20), read_fake, tmp_path / "again", run=BeamRunner("DirectRunner"), **options)
    assert files_of(tmp_path / "again") == files_of(tmp_path / "here")


@pytest.mark.slow
def test_a_pipeline_that_cannot_run_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="The pipeline on NoRunner failed"):
        write_records(make_inputs(2), read_fake, tmp_path / "out", run=BeamRunner("NoRunner"))
    write_records(make_inputs(2), read_fake, tmp_path / "out", run=PoolRunner(num_workers=0))
