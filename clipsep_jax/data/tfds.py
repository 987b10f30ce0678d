"""The two files by which TensorFlow Datasets reads a folder of records: `tfds.builder_from_directory(RECORDS)`."""

from collections.abc import Mapping, Sequence
from typing import Any

from clipsep_jax.files import encode_json

INFO_NAME = "dataset_info.json"
FEATURES_NAME = "features.json"

_FEATURES = "tensorflow_datasets.core.features."


def dataset_info(schema: int, shard_lengths: Mapping[str, Sequence[int]], num_bytes: Mapping[str, int]) -> bytes:
    """`dataset_info.json`: the records of each shard and the bytes of each split."""
    splits = [
        {
            "name": name,
            "filepathTemplate": "{SPLIT}-{SHARD_INDEX}.{FILEFORMAT}",
            "shardLengths": [str(length) for length in lengths],
            "numBytes": str(num_bytes[name]),
        }
        for name, lengths in shard_lengths.items()
    ]
    return encode_json(
        {"name": "records", "version": f"{schema}.0.0", "fileFormat": "tfrecord", "splits": splits}, indent=1
    )


def features(audio_encoding: str, frame_size: int, query_size: int | None) -> bytes:
    """`features.json`: what a record holds. FLAC stays compressed: TensorFlow gives its bytes."""
    picture = {"shape": _shape(frame_size, frame_size, 3), "dtype": "uint8", "encodingFormat": "jpeg"}
    image = {"pythonClassName": f"{_FEATURES}image_feature.Image", "image": picture}
    fields = {
        "id": _text(),
        "label": _text(),
        "audio": _text() if audio_encoding == "flac" else _raw("int16", -1),
        "encoding": _text(),
        "sample_rate_hz": _integer(),
        "still_picture": _integer(),
        "frames": {
            "pythonClassName": f"{_FEATURES}sequence_feature.Sequence",
            "sequence": {"feature": image, "length": "-1"},
        },
    }
    if query_size is not None:
        fields |= {"frame_embeddings": _raw("float32", -1, query_size), "query_size": _integer()}
    return encode_json(
        {"pythonClassName": f"{_FEATURES}features_dict.FeaturesDict", "featuresDict": {"features": fields}}, indent=1
    )


def _shape(*sides: int) -> dict[str, list[str]]:
    return {"dimensions": [str(side) for side in sides]}


def _text() -> dict[str, Any]:
    return {"pythonClassName": f"{_FEATURES}text_feature.Text", "text": {}}


def _integer() -> dict[str, Any]:
    tensor = {"shape": {}, "dtype": "int64", "encoding": "none"}
    return {"pythonClassName": f"{_FEATURES}scalar.Scalar", "tensor": tensor}


def _raw(dtype: str, *sides: int) -> dict[str, Any]:
    """An array that is stored as its bytes."""
    tensor = {"shape": _shape(*sides), "dtype": dtype, "encoding": "bytes"}
    return {"pythonClassName": f"{_FEATURES}tensor_feature.Tensor", "tensor": tensor}
