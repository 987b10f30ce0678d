import time

import jax
import jax.numpy as jnp
import pytest

from clipsep_jax.goodput import KINDS, Goodput


def test_shares_add_up_and_compilation_is_counted_once():
    goodput = Goodput()
    with goodput.during("input"):
        time.sleep(0.2)
    with goodput.during("validation"):  # compiles, and waits besides
        jax.block_until_ready(jax.jit(lambda x: jnp.linalg.svd(x @ x + 3.25)[1])(jnp.ones((50, 50))))
        time.sleep(0.1)
    time.sleep(0.3)
    shares = goodput.shares()
    assert tuple(shares) == KINDS
    assert sum(shares.values()) == pytest.approx(1)
    total = 0.2 / shares["input"]
    assert shares["compile"] > 0
    assert shares["validation"] * total == pytest.approx(0.1, abs=0.15)
    assert shares["steps"] * total >= 0.28
    assert str(goodput).startswith("time: steps ")
