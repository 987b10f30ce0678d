import time

import jax
import jax.numpy as jnp
import pytest

from clipsep_jax.goodput import KINDS, Goodput


def test_shares_add_up_and_compilation_is_counted_once():
    begin, goodput = time.perf_counter(), Goodput()
    with goodput.during("input"):
        time.sleep(0.2)
    waited = time.perf_counter() - begin
    with goodput.during("validation"):  # compiles, and waits besides
        jax.block_until_ready(jax.jit(lambda x: jnp.linalg.svd(x @ x + 3.25)[1])(jnp.ones((50, 50))))
        time.sleep(0.1)
    validated = time.perf_counter() - begin - waited
    time.sleep(0.3)
    shares, total = goodput.shares(), time.perf_counter() - begin
    seconds = {kind: share * total for kind, share in shares.items()}
    assert tuple(shares) == KINDS
    assert sum(shares.values()) == pytest.approx(1)
    assert seconds["input"] == pytest.approx(waited, abs=0.02)
    assert seconds["compile"] > 0
    assert seconds["validation"] + seconds["compile"] == pytest.approx(validated, abs=0.02)
    assert seconds["validation"] >= 0.09
    assert seconds["steps"] == pytest.approx(total - waited - validated, abs=0.02)
    assert str(goodput).startswith("time: steps ")
