"""Batches on their way to the devices."""

import jax
import numpy as np

from clipsep_jax.distributed import make_mesh, put_ahead


def test_batches_are_put_ahead_and_keep_their_order():
    taken = []

    def batches():
        for number in range(5):
            taken.append(number)
            yield {"sources": np.full((jax.device_count(), 2), number)}

    ahead = put_ahead(batches(), make_mesh())
    first = next(ahead)
    assert taken == [0, 1, 2]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(first))
    assert [int(batch["sources"][0, 0]) for batch in (first, *ahead)] == [0, 1, 2, 3, 4]
