"""A miniature CLIP, trained in a minute on pictures and their labels, and saved in the usual CLIP format.

It learns on pictures of 56 x 56 pixels cut into patches of 8: the mean over 4 x 4 pixels followed by a patch of 8
is itself a linear map of a patch of 32. So the trained network becomes one for 224 x 224 pixels exactly, by
spreading each weight of its patch embedding over 4 x 4 pixels.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8
from tqdm import tqdm

from clipsep_jax.data.record import FRAME_SIZE
from clipsep_jax.encoders.clip import save_clip, tokenizer_class
from clipsep_jax.encoders.clip_network import Clip, ClipConfig, TextConfig, VisionConfig
from clipsep_jax.encoders.pixels import PictureConfig, preprocess
from clipsep_jax.queries.prompts import DEFAULT_TEMPLATE, PROMPT_ENSEMBLE, prompt_for

QUERY_SIZE = 64
TEMPLATES = (
    DEFAULT_TEMPLATE,
    *PROMPT_ENSEMBLE,
    "a photo of a {}",
    "a picture of a {}",
    "the sound of a {}",
    "the {}",
    "{}",
)

_SHRINKAGE = 4
_PATCH_SIZE = 8
_SIDE = FRAME_SIZE // _SHRINKAGE
_MEAN, _STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
_POSITION_STD = 0.3  # so that position shows beside the patches, whose values are about 1

_MAX_SHIFT = 2  # pixels of the shrunken pictures
_BATCH_SIZE = 64
_TEXT_STEPS = 200
_LEARNING_RATE = 4e-3
_INVERSE_TEMPERATURE = 10.0
_PULL = 0.5

Prompts = Int[np.ndarray, "templates kinds P"]
Examples = tuple[np.ndarray, np.ndarray]  # what is embedded, and the kind of each


def train_mini_clip(
    folder: Path,
    pictures: Iterable[UInt8[np.ndarray, "224 224 3"]],
    kinds: Int[np.ndarray, " n"],
    names: Sequence[str],
    steps: int,
    seed: int = 0,
) -> Path:
    """Train on pictures and prompts, save as a Hugging Face folder with its tokenizer, and return the folder.

    The text tower comes first: each prompt has to find other wordings of itself, so the kinds spread out. Then the
    vision tower learns to find a picture's prompt. Both times the loss is `contrastive_loss`, whose second term
    closes the gap between pictures and texts, so a model trained on embedded pictures can be queried by prompts.
    A bar on stderr shows the progress.

    Args:
        pictures: RGB; taken one by one, and only if there are steps.
        kinds: of each picture, as an index into `names`.
        names: what the prompts call the kinds.
        steps: of the vision tower; 0 saves a random network.
    """
    tokenizer = build_tokenizer(names)
    config = _config(tokenizer)
    model = _start(config, seed)
    if steps:
        prompts, rng = _prompt_ids(tokenizer, names, config.text.max_position_embeddings), np.random.default_rng(seed)
        _train_text(model, prompts, rng)
        _train_vision(model, prompts, np.stack([_shrink(picture) for picture in pictures]), kinds, steps, rng)
    save_clip(folder, _enlarged(model, config), config, tokenizer, _MEAN, _STD)
    return folder


def contrastive_loss(
    queries: Float[Array, "B Q"], texts: Float[Array, "kinds Q"], kinds: Int[Array, " B"]
) -> Float[Array, ""]:
    """Cross-entropy of a query's kind by its cosines with the texts, at a fixed temperature, plus a pull.

    The pull is the mean squared distance between each query and its kind's text, not normalised; its
    gradient does not reach the texts, or all would shrink together.
    """
    logits = _INVERSE_TEMPERATURE * _normalised(queries) @ _normalised(texts).T
    contrast = optax.softmax_cross_entropy_with_integer_labels(logits, kinds).mean()
    return contrast + _PULL * jnp.mean((queries - jax.lax.stop_gradient(texts)[kinds]) ** 2)


def _normalised(vectors: Float[Array, "n Q"]) -> Float[Array, "n Q"]:
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


# Tokenizer


def build_tokenizer(names: Sequence[str]) -> Any:
    """A CLIP tokenizer whose merges are learned from the prompts of `names`; any other text is split into bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    clip_tokenizer = tokenizer_class()
    units = sorted(ByteLevel.alphabet())
    merges = _learn_merges(_prompts(names), clip_tokenizer().backend_tokenizer)
    tokens = [*units, *(unit + "</w>" for unit in units), *(left + right for left, right in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return clip_tokenizer(vocab={token: i for i, token in enumerate(dict.fromkeys(tokens))}, merges=merges)


def _learn_merges(texts: Iterable[str], splitter: Any) -> Any:
    """Join the most frequent pair of neighbouring tokens, over and over, until every word of the texts is one token.

    The trainer of the `tokenizers` library would do, but breaks ties at random.
    """
    normalize, split = splitter.normalizer.normalize_str, splitter.pre_tokenizer.pre_tokenize_str
    pieces = {piece for text in texts for piece, _ in split(normalize(text))}
    words = {(*piece[:-1], piece[-1] + "</w>") for piece in pieces}
    merges = []
    while pairs := Counter(pair for word in words for pair in itertools.pairwise(word)):
        merges.append(max(pairs, key=lambda pair: (pairs[pair], pair)))
        words = {_joined(word, merges[-1]) for word in words}
    return merges


def _joined(word: tuple[str, ...], pair: tuple[str, str]) -> tuple[str, ...]:
    """The word with every such pair of its tokens made one, from left to right."""
    tokens: list[str] = []
    for token in word:
        if tokens and (tokens[-1], token) == pair:
            tokens[-1] += token
        else:
            tokens.append(token)
    return tuple(tokens)


def _prompts(names: Sequence[str]) -> list[str]:
    return [prompt_for(name, template) for template in TEMPLATES for name in names]


def _prompt_ids(tokenizer: Any, names: Sequence[str], limit: int) -> Prompts:
    rows = tokenizer(_prompts(names), padding=True, truncation=True, max_length=limit)["input_ids"]
    return np.array(rows, np.int32).reshape(len(TEMPLATES), len(names), -1)


# Network


def _config(tokenizer: Any) -> ClipConfig:
    text = TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    vision = VisionConfig(
        hidden_size=96,
        intermediate_size=384,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=FRAME_SIZE,
        patch_size=_PATCH_SIZE * _SHRINKAGE,
    )
    return ClipConfig(text, vision, QUERY_SIZE)


def _start(config: ClipConfig, seed: int) -> Clip:
    """A random network for shrunken pictures, whose patch embedding is the fixed one of `_cosines`."""
    shrunken = replace(config, vision=replace(config.vision, image_size=_SIDE, patch_size=_PATCH_SIZE))
    model = nnx.jit(lambda: Clip(shrunken, nnx.Rngs(seed)))()
    model.logit_scale[...] = jnp.log(_INVERSE_TEMPERATURE)
    vision = model.vision
    vision.patch_embedding.kernel[...] = _cosines(config.vision.hidden_size)
    vision.position_embedding[...] *= _POSITION_STD / jnp.std(vision.position_embedding[...])
    return model


def _cosines(count: int) -> Float[Array, "P P 3 count"]:
    """Patches of the lowest frequencies, half of them in brightness and a quarter in either colour contrast."""
    along = np.cos(np.pi * np.outer(np.arange(_PATCH_SIZE), np.arange(_PATCH_SIZE) + 0.5) / _PATCH_SIZE)
    pairs = sorted(np.ndindex(_PATCH_SIZE, _PATCH_SIZE), key=lambda pair: (pair[0] ** 2 + pair[1] ** 2, pair))
    waves = np.stack([np.outer(along[u], along[v]) for u, v in pairs])
    waves /= np.linalg.norm(waves, axis=(1, 2), keepdims=True)
    colors = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])
    shares = (count // 2, count // 4, count // 4)
    kernels = [waves[:share, :, :, None] * color for share, color in zip(shares, colors, strict=True)]
    return jnp.asarray(np.moveaxis(np.concatenate(kernels), 0, -1), jnp.float32)


def _enlarged(model: Clip, config: ClipConfig) -> Clip:
    """The network for pictures of full size that embeds a picture as `model` embeds its shrunken version."""
    state: Any = nnx.state(model)
    kernel = state["vision"]["patch_embedding"]["kernel"]
    spread = jnp.repeat(jnp.repeat(kernel[...], _SHRINKAGE, axis=0), _SHRINKAGE, axis=1) / _SHRINKAGE**2
    state["vision"]["patch_embedding"]["kernel"] = kernel.replace(spread)
    enlarged = nnx.eval_shape(lambda: Clip(config, nnx.Rngs(0)))
    nnx.update(enlarged, state)
    return enlarged


# Training


def _train_text(model: Clip, prompts: Prompts, rng: np.random.Generator) -> None:
    kinds = np.arange(prompts.shape[1])

    def embed(model: Clip, ids: Array) -> tuple[Array, Array]:
        wordings = model.text_features(ids.reshape(-1, ids.shape[-1]))
        return wordings[: len(kinds)], wordings[len(kinds) :]

    def batches() -> Iterator[Examples]:
        for _ in range(_TEXT_STEPS):
            yield prompts[rng.integers(len(prompts), size=(2, len(kinds))), kinds], kinds

    _fit(model, embed, batches(), _TEXT_STEPS)


def _train_vision(
    model: Clip,
    prompts: Prompts,
    pictures: UInt8[np.ndarray, "n S S 3"],
    kinds: Int[np.ndarray, " n"],
    steps: int,
    rng: np.random.Generator,
) -> None:
    wordings = jax.jit(Clip.text_features)(model, prompts.reshape(-1, prompts.shape[-1]))
    texts = wordings.reshape(*prompts.shape[:2], -1).mean(axis=0)

    def embed(model: Clip, shown: Array) -> tuple[Array, Array]:
        return model.image_features(preprocess(shown, _SIDE, PictureConfig(_MEAN, _STD))), texts

    def batches() -> Iterator[Examples]:
        for _ in tqdm(range(steps), "miniature CLIP"):
            chosen = rng.integers(len(pictures), size=_BATCH_SIZE)
            yield _shifted(pictures, chosen, rng), kinds[chosen]

    _fit(model, embed, batches(), steps)


def _fit(
    model: Clip, embed: Callable[[Clip, Array], tuple[Array, Array]], batches: Iterable[Examples], steps: int
) -> None:
    """Minimise `contrastive_loss` over batches in place; `embed` gives a batch's queries and the text of each kind."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, _LEARNING_RATE, min(30, steps // 10), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, weight_decay=0.05))
    parts: Any = nnx.split(model, _is_trained, ...)
    graphdef, params, fixed = parts
    slots = optimizer.init(params)

    def loss(params: nnx.State, examples: Array, kinds: Array) -> Array:
        return contrastive_loss(*embed(nnx.merge(graphdef, params, fixed), examples), kinds)

    @jax.jit
    def step(params: nnx.State, slots: Any, examples: Array, kinds: Array) -> tuple[nnx.State, Any]:
        gradients = jax.grad(loss)(params, examples, kinds)
        with jax.numpy_dtype_promotion("standard"):  # optax mixes its floats with the integer count of steps
            updates, slots = optimizer.update(gradients, slots, params)
        return optax.apply_updates(params, updates), slots

    for examples, kinds in batches:
        params, slots = step(params, slots, examples, kinds)
    nnx.update(model, params)


def _is_trained(path: tuple[Any, ...], _: Any) -> bool:
    # Neighbouring pixels are alike, so a step of the patch embedding moves its output far: training is faster without.
    return "patch_embedding" not in path


def _shrink(picture: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "S S 3"]:
    blocks = picture.reshape(_SIDE, _SHRINKAGE, _SIDE, _SHRINKAGE, 3)
    return np.rint(blocks.mean(axis=(1, 3))).astype(np.uint8)


def _shifted(
    pictures: UInt8[np.ndarray, "n S S 3"], chosen: Int[np.ndarray, " B"], rng: np.random.Generator
) -> UInt8[np.ndarray, "B S S 3"]:
    """The chosen pictures, each shifted a little around its edges; so any position is seen, of training and testing."""
    shifts = rng.integers(-_MAX_SHIFT, _MAX_SHIFT + 1, (2, len(chosen), 1))
    rows, columns = (np.arange(_SIDE) + shifts) % _SIDE
    return pictures[chosen[:, None, None], rows[:, :, None], columns[:, None, :]]
