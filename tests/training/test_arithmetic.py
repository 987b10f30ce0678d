"""Arithmetic is counted in the program of a function."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from clipsep_jax.models.layers import matmul_strided_conv, native_strided_conv
from clipsep_jax.training.arithmetic import count_flops, peak_flops
from clipsep_jax.training.devices import make_mesh


def count(function, *shapes) -> float:
    return count_flops(jax.make_jaxpr(function)(*[jnp.zeros(shape) for shape in shapes]))


A, B = (3, 5, 7), (3, 7, 11)
PRODUCT = 2 * 3 * 5 * 7 * 11


def product(a, b):
    return jnp.einsum("bij,bjk->bik", a, b)


def test_products_are_counted_wherever_they_are():
    assert count(product, A, B) == PRODUCT
    assert count(jax.jit(product), A, B) == PRODUCT
    assert count(jax.checkpoint(product), A, B) == PRODUCT
    assert count(jax.grad(lambda a, b: product(a, b).sum(), argnums=(0, 1)), A, B) == 3 * PRODUCT
    assert count(lambda a, b: jax.lax.map(lambda x: product(a + x, b), jnp.ones(4)), A, B) == 4 * PRODUCT
    assert (
        count(
            lambda a, b: jax.lax.cond(a[0, 0, 0] > 0, product, lambda a, b: a @ b @ (b.mT @ a.mT) @ a @ b, a, b), A, B
        )
        > PRODUCT
    )
    assert count(lambda a, b: a.sum() + jnp.sin(b).sum(), A, B) == 0


def test_what_is_spread_over_devices_is_counted_for_all_of_them():
    mesh = make_mesh()
    spread = jax.shard_map(
        product, mesh=mesh, in_specs=(PartitionSpec("data"),) * 2, out_specs=PartitionSpec("data"), axis_names={"data"}
    )
    size = len(jax.devices())
    assert count(spread, (size, *A[1:]), (size, *B[1:])) == size * PRODUCT / 3


@pytest.mark.parametrize(("stride", "groups"), [(1, 1), (2, 1), (2, 3)])
def test_convolutions_are_counted(stride, groups):
    def convolve(x, kernel):
        return jax.lax.conv_general_dilated(
            x, kernel, (stride, stride), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    side = (9 - 3) // stride + 1
    assert count(convolve, (2, 9, 9, 6), (3, 3, 6 // groups, 12)) == 2 * (2 * side**2 * 12) * (9 * 6 / groups)


@pytest.mark.parametrize("form", [native_strided_conv, matmul_strided_conv])
def test_gradients_of_strided_convolutions_count_as_much_as_their_values(form):
    shapes = (2, 8, 8, 3), (4, 4, 3, 5)
    value = 2 * (2 * 4 * 4 * 5) * (4 * 4 * 3)
    assert count(form, *shapes) == value
    assert count(jax.grad(lambda *arrays: jnp.sin(form(*arrays)).sum(), argnums=(0, 1)), *shapes) == 3 * value


def test_peaks_are_found_by_the_names_of_devices():
    assert peak_flops("NVIDIA H100 80GB HBM3", "bfloat16") == 989e12
    assert peak_flops("NVIDIA H100 PCIe", "bfloat16") == 756e12
    assert peak_flops("NVIDIA A100-SXM4-40GB", "float32") == 156e12
    assert peak_flops("TPU v5 lite", "bfloat16") == 197e12
    assert peak_flops("TPU v5p", "bfloat16") == peak_flops("TPU v5", "bfloat16") == 459e12
    assert peak_flops("NVIDIA L40S", "bfloat16") == 362e12
    assert peak_flops("NVIDIA A10", "bfloat16") == 125e12
    assert peak_flops("NVIDIA A10G", "bfloat16") is None
    assert peak_flops("NVIDIA RTX A1000 Laptop GPU", "bfloat16") is None
    assert peak_flops("cpu", "float32") is None
