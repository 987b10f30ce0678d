"""Files that are no official checkpoints, though they look like some: refused, and no half model is left."""

import os
import pickle
import zipfile

import pytest
import torch

from clipsep_jax.errors import InputError
from clipsep_jax.official.checkpoint import import_torch
from tests.parity.systems import model_config, random_module


def _lying(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor whose strides claim 4 TB that it does not have."""
    return torch.as_strided(tensor.reshape(-1)[:1], (10**6, 10**6), (0, 0))


ODD_TENSORS = {
    "sparse": lambda tensor: tensor.to_sparse(),
    "on no device": lambda tensor: tensor.to("meta"),
    "conjugate": lambda tensor: tensor.to(torch.complex64).conj(),
    "quantised": lambda tensor: torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8),
    "strides of 4 TB": _lying,
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "nested": lambda tensor: torch.nested.nested_tensor([tensor, tensor]),
}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch, about prototypes
@pytest.mark.parametrize("kind", ODD_TENSORS)
def test_a_tensor_that_is_no_plain_array_is_refused(kind, tmp_path):
    state = random_module(model_config("clipsep")).state_dict()
    state["frame_net.weight"] = ODD_TENSORS[kind](state["frame_net.weight"])
    torch.save(state, tmp_path / "x.pt")
    # Float8 is read as any other number: it fits into float32.
    if kind == "float8":
        import_torch(tmp_path / "x.pt", tmp_path / "model")
        return
    with pytest.raises(InputError, match=r"x\.pt.*(frame_net\.weight|plain state dict)") as caught:
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("count", [float("nan"), 1.0])
def test_a_counter_that_counts_nothing_is_refused(count, tmp_path):
    state = random_module(model_config("clipsep")).state_dict()
    torch.save(state | {"sound_net.bn0.num_batches_tracked": torch.tensor(count)}, tmp_path / "x.pt")
    with pytest.raises(InputError, match=r"x\.pt.*bn0\.num_batches_tracked"):
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_that_share_what_a_file_holds_once_are_refused(zipped, tmp_path):
    one = torch.zeros(10**6)
    torch.save({f"x{n}": one for n in range(50)}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match=r"x\.pt holds tensors of 200,000,000 bytes, above its size"):
        import_torch(tmp_path / "x.pt", tmp_path / "model")


def test_an_archive_that_grows_in_memory_is_refused(tmp_path):
    torch.save({"x": torch.zeros(10**6)}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(InputError, match=r"x\.pt is compressed"):
        import_torch(tmp_path / "x.pt", tmp_path / "model")


def test_a_failure_to_write_leaves_no_half_model(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipsep_jax.official.checkpoint.write_weights", fail)
    torch.save(random_module(model_config("clipsep")).state_dict(), tmp_path / "x.pt")
    with pytest.raises(OSError, match="No space left"):
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    assert not (tmp_path / "model").exists()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("form", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_does_not(form, tmp_path):
    path, target = tmp_path / "evil.pt", tmp_path / "made"
    values = {"module.frame_net.weight": Malicious(str(target))}
    if form == "torch":
        torch.save(values, path)
    else:
        path.write_bytes(pickle.dumps(values))
    with pytest.raises(InputError, match=r"evil\.pt") as caught:
        import_torch(path, tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not target.exists()
    assert not (tmp_path / "model").exists()


def write_foreign(path, kind):
    state = random_module(model_config("clipsep")).state_dict()
    if kind == "truncated":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif kind == "wrapped":
        torch.save({"state_dict": state, "epoch": 3}, path)
    elif kind == "other names":
        torch.save({"conv1.weight": torch.zeros(2, 2)}, path)
    elif kind == "numbered":
        torch.save({0: torch.zeros(2)}, path)
    elif kind == "tensor":
        torch.save(torch.zeros(2), path)
    elif kind == "nothing":
        torch.save({}, path)
    else:
        path.write_bytes({"empty": b"", "text": b"hello", "zip": b"PK\x03\x04rest"}[kind])


@pytest.mark.parametrize(
    "kind", ["truncated", "wrapped", "other names", "numbered", "tensor", "nothing", "empty", "text", "zip"]
)
def test_a_foreign_file_is_refused_in_one_sentence(kind, tmp_path):
    write_foreign(tmp_path / "x.pt", kind)
    with pytest.raises(InputError, match=r"x\.pt") as caught:
        import_torch(tmp_path / "x.pt", tmp_path / "model")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "model").exists()
