"""A strided convolution by Winograd's F(2x2, 2x2)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def winograd_strided_conv(x: Float[Array, "B H W C"], kernel: Float[Array, "4 4 C c"]) -> Float[Array, "B h w c"]:
    """The 2 x 2 convolution over blocks by Winograd's F(2x2, 2x2): nine products for sixteen, the rest additions.

    One axis: from blocks d0, d1, d2 and taps g0, g1 come y0 = (d0 - d1) g0 + d1 (g0 + g1) and
    y1 = d1 (g0 + g1) + (d2 - d1) g1 (Lavin and Gray, 2016). The sides are multiples of 4.
    """
    products = [tile @ tap for tile, tap in zip(_tiles(x), _tile_taps(kernel), strict=True)]
    return _outputs(products, (x.shape[0], x.shape[1] // 2, x.shape[2] // 2, kernel.shape[-1]))


def _winograd_forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd_strided_conv(x, kernel), (x, kernel)


def _winograd_backward(saved: tuple[Array, Array], cotangent: Array) -> tuple[Array, Array]:
    x, kernel = saved
    products = _outputs_transposed(cotangent)
    tiles = [d_tile @ tap.T for d_tile, tap in zip(products, _tile_taps(kernel), strict=True)]
    taps = [tile.T @ d_tile for tile, d_tile in zip(_tiles(x), products, strict=True)]
    return _tiles_transposed(tiles, x.shape), _tile_taps_transposed(taps, kernel.shape)


winograd_strided_conv.defvjp(_winograd_forward, _winograd_backward)


def _tiles(x: Float[Array, "B H W C"]) -> list[Float[Array, "n D"]]:
    """Nine differences of blocks, of n tiles: a tile is 3 x 3 blocks, and the next one starts 2 further."""
    b, height, width, channels = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    blocks = x.reshape(b, height // 2 + 1, 2, width // 2 + 1, 2 * channels)

    def differences(blocks: Array, axis: int) -> list[Array]:
        even = jax.lax.slice_in_dim(blocks, 0, None, 2, axis)
        odd = jax.lax.slice_in_dim(blocks, 1, None, 2, axis)
        n = odd.shape[axis]
        first, third = (jax.lax.slice_in_dim(even, i, i + n, 1, axis) for i in (0, 1))
        return [first - odd, odd, third - odd]

    tiles = [tile for rows in differences(blocks, 1) for tile in differences(rows, 3)]
    return [tile.transpose(0, 1, 3, 2, 4).reshape(-1, 4 * channels) for tile in tiles]


def _tiles_transposed(tiles: list[Array], shape: tuple[int, ...]) -> Float[Array, "B H W C"]:
    b, height, width, channels = shape

    def blocks(parts: list[Array], axis: int) -> Array:
        first, _, third = (_pad(part, axis, after) for part, after in zip(parts, ((0, 1), (0, 1), (1, 0)), strict=True))
        odd = parts[1] - parts[0] - parts[2]
        both = jnp.stack([first + third, _pad(odd, axis, (0, 1))], axis + 1)
        both = both.reshape(*both.shape[:axis], -1, *both.shape[axis + 2 :])
        return jax.lax.slice_in_dim(both, 0, both.shape[axis] - 1, 1, axis)

    parts = [tile.reshape(b, height // 4, width // 4, 2, -1).transpose(0, 1, 3, 2, 4) for tile in tiles]
    rows = [blocks(parts[i : i + 3], 3) for i in (0, 3, 6)]
    return blocks(rows, 1).reshape(b, height + 2, width + 2, channels)[:, 1:-1, 1:-1]


def _block_taps(kernel: Float[Array, "4 4 C c"]) -> Float[Array, "2 2 D c"]:
    """The kernel as a 2 x 2 convolution over blocks of 2 x 2 pixels, D = 4 C."""
    channels = kernel.shape[2]
    return kernel.reshape(2, 2, 2, 2, channels, -1).transpose(0, 2, 1, 3, 4, 5).reshape(2, 2, 4 * channels, -1)


def _tile_taps(kernel: Float[Array, "4 4 C c"]) -> list[Float[Array, "D c"]]:
    taps = _block_taps(kernel)
    rows = [taps[0], taps[0] + taps[1], taps[1]]
    return [tap for row in rows for tap in (row[0], row[0] + row[1], row[1])]


def _tile_taps_transposed(taps: list[Array], shape: tuple[int, ...]) -> Float[Array, "4 4 C c"]:
    rows = [jnp.stack([a + b, b + c]) for a, b, c in (taps[0:3], taps[3:6], taps[6:9])]
    blocks = jnp.stack([rows[0] + rows[1], rows[1] + rows[2]])
    return blocks.reshape(2, 2, 2, 2, *shape[2:]).transpose(0, 2, 1, 3, 4, 5).reshape(shape)


def _outputs(products: list[Array], shape: tuple[int, ...]) -> Float[Array, "B h w c"]:
    b, h, w, channels = shape
    parts = [part.reshape(b, h // 2, 1, w // 2, 1, channels) for part in products]
    rows = [jnp.concatenate([a + b, b + c], axis=4) for a, b, c in (parts[0:3], parts[3:6], parts[6:9])]
    return jnp.concatenate([rows[0] + rows[1], rows[1] + rows[2]], axis=2).reshape(shape)


def _outputs_transposed(y: Float[Array, "B h w c"]) -> list[Float[Array, "n c"]]:
    b, h, w, channels = y.shape
    y = y.reshape(b, h // 2, 2, w // 2, 2, channels)
    rows = [y[:, :, 0], y[:, :, 0] + y[:, :, 1], y[:, :, 1]]
    parts = [part for row in rows for part in (row[:, :, :, 0], row[:, :, :, 0] + row[:, :, :, 1], row[:, :, :, 1])]
    return [part.reshape(-1, channels) for part in parts]


def _pad(x: Array, axis: int, widths: tuple[int, int]) -> Array:
    return jnp.pad(x, [widths if i == axis else (0, 0) for i in range(x.ndim)])
