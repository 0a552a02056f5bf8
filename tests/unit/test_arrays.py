"""Sets that come as arrays: files of the right format, made here, and every way in which they can be wrong."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import http.server
import io
import os
import pickle
import struct
import tarfile
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from harness.data import arrays
from harness.data.store import ImageStore, open_store
from harness.errors import DataError
from harness.home import Home
from harness.spec.tables import DataSpec


def pictures(n: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    shape = (n, size, size, channels)[: 3 if channels == 1 else 4]
    return rng.integers(0, 256, shape, np.uint8)


def write_idx(path: Path, images: np.ndarray, kind: int = 0x08) -> None:
    header = struct.pack(f">BBBB{images.ndim}I", 0, 0, kind, images.ndim, *images.shape)
    payload = header + images.tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(payload) if path.suffix == ".gz" else payload)


def write_svhn(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scipy.io.savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.ones((len(images), 1), np.uint8)})


def write_cifar10(path: Path, images: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    batch = {"data": images.transpose(0, 3, 1, 2).reshape(len(images), 3072), "labels": [0] * len(images)}
    path.write_bytes(pickle.dumps(batch, protocol=2))


def make_set(name: str, root: Path, n: int = 6) -> dict[str, np.ndarray]:
    """All files of a set, as torchvision leaves them; the images by file name."""
    made = {}
    for index, file in enumerate(arrays.SETS[name].files):
        path = root / arrays.SETS[name].folders[-1] / file.names[0]
        if name == "svhn":
            made[path.name] = pictures(n, 32, 3, index)
            write_svhn(root / path.name, made[path.name])
        elif name == "cifar10":
            made[path.name] = pictures(n, 32, 3, index)
            write_cifar10(path, made[path.name])
        else:
            made[path.name] = pictures(n, 28, 1, index)
            write_idx(path, made[path.name])
    return made


def open_set(home: Home, name: str, root: Path | None, said: list[str] | None = None, **data) -> ImageStore:
    spec = DataSpec(source=name, image_size=data.pop("image_size", 32), **data)
    return open_store(
        home, spec, root, study="test", on_progress=lambda *_: None, say=(said if said is not None else []).append
    )


@pytest.mark.parametrize("name", ["svhn", "cifar10"])
def test_colour_sets_keep_their_pixels_and_order(home, tmp_path, name):
    made = make_set(name, tmp_path / "set")
    said: list[str] = []
    store = open_set(home, name, tmp_path / "set", said)
    training = [made[file.names[0]] for file in arrays.SETS[name].files if not file.held_out]
    assert np.array_equal(store.tensor().numpy(), np.concatenate(training))
    assert store.n_held_out == 0
    assert any("differs from the published file" in line for line in said)


@pytest.mark.parametrize("name", ["mnist_idx", "fashion_mnist"])
def test_digits_are_framed_not_enlarged(home, tmp_path, name):
    made = make_set(name, tmp_path / "set")
    store = open_set(home, name, tmp_path / "set", channels=1)
    images = store.tensor().numpy()
    assert np.array_equal(images[:, 2:30, 2:30, 0], made["train-images-idx3-ubyte"])
    assert images[:, :2].max() == 0


@pytest.mark.parametrize("name", ["svhn", "cifar10", "mnist_idx", "fashion_mnist"])
def test_a_sets_own_test_images_are_what_is_held_out(home, tmp_path, name):
    made = make_set(name, tmp_path / "set")
    held_out = [file.names[0] for file in arrays.SETS[name].files if file.held_out]
    size = {"channels": 1} if "mnist" in name else {}
    store = open_set(home, name, tmp_path / "set", held_out=0.1, **size)
    assert len(store) == 6 * (len(made) - 1)
    last = store.held_out().numpy()
    expected = made[held_out[0]]
    assert np.array_equal(last[:, 2:30, 2:30, 0] if "mnist" in name else last, expected)
    assert "own test images" in store.split_rule


def test_colour_sets_can_be_grey_and_smaller(home, tmp_path):
    make_set("svhn", tmp_path)
    store = open_set(home, "svhn", tmp_path, image_size=16, channels=1)
    assert store.tensor().shape == (6, 16, 16, 1)


def test_gzipped_idx_files_are_read(home, tmp_path):
    images = pictures(5, 28, 1)
    write_idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    store = open_set(home, "mnist_idx", tmp_path, channels=1)
    assert np.array_equal(store.tensor().numpy()[:, 2:30, 2:30, 0], images)


def test_a_set_is_not_enlarged(home, tmp_path):
    make_set("cifar10", tmp_path)
    with pytest.raises(DataError, match="data_batch_1: 32x32 px is smaller than 64 px"):
        open_set(home, "cifar10", tmp_path, image_size=64)


def damage(name: str, root: Path, how: str) -> None:
    make_set(name, root)
    (path,) = root.rglob({"svhn": "train_32x32.mat", "cifar10": "data_batch_3"}.get(name, "train-images-idx3-ubyte"))
    payload = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "truncated":
        path.write_bytes(payload[: len(payload) // 2])
    elif how == "html":
        path.write_bytes(b"<html>404 not found</html>")
    elif name == "svhn":
        scipy.io.savemat(path, {"X": np.zeros((32, 32, 2, 5), np.uint8), "y": np.ones((5, 1))})
    elif name == "cifar10":
        path.write_bytes(pickle.dumps({"data": np.zeros((5, 3071), np.uint8)}))
    else:
        write_idx(path, np.zeros(5, np.uint8))


@pytest.mark.parametrize("name", ["svhn", "cifar10", "mnist_idx", "fashion_mnist"])
@pytest.mark.parametrize("how", ["missing", "empty", "truncated", "html", "wrong shape"])
def test_bad_files_are_plain_errors_with_the_file_and_where_to_get_it(home, tmp_path, name, how):
    damage(name, tmp_path / "set", how)
    with pytest.raises(DataError) as caught:
        open_set(home, name, tmp_path / "set", channels=1 if "mnist" in name else 3)
    expected = "lacks" if how == "missing" else "cannot be read as a file of"
    assert expected in caught.value.problem
    assert arrays.SETS[name].page in caught.value.hint
    assert not list(home.data.glob("*/manifest.json"))


class Evil:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_a_malicious_batch_is_refused_and_runs_nothing(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_set("cifar10", tmp_path / "set")
    path = tmp_path / "set" / "cifar-10-batches-py" / "data_batch_1"
    path.write_bytes(pickle.dumps({"data": Evil()}))
    with pytest.raises(DataError, match="asks for posix.system"):
        open_set(home, "cifar10", tmp_path / "set")
    assert not (tmp_path / "pwned").exists()


def test_batches_as_python_2_wrote_them_are_read(tmp_path):
    """The published files: strings for bytes."""
    images = pictures(2, 32, 3)
    raw = images.transpose(0, 3, 1, 2).tobytes()
    dtype = b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x02M\x00\x0c\x86"
    values = b"\x89T" + struct.pack("<I", len(raw)) + raw + b"tb"
    path = tmp_path / "data_batch_1"
    path.write_bytes(b"\x80\x02}U\x04data" + array + dtype + values + b"s.")
    assert np.array_equal(pickle.loads(path.read_bytes(), encoding="latin1")["data"].tobytes(), raw)
    assert np.array_equal(arrays.read_cifar10(path), images)


def test_batches_stored_by_columns_are_read(tmp_path):
    images = pictures(3, 32, 3)
    rows = np.asfortranarray(images.transpose(0, 3, 1, 2).reshape(3, 3072))
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps({"data": rows}, protocol=2))
    assert np.array_equal(arrays.read_cifar10(tmp_path / "data_batch_1"), images)


def test_a_folder_that_is_not_there(home, tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        open_set(home, "svhn", tmp_path / "nowhere")


def test_the_published_sets_are_those_that_torchvision_knows():
    from torchvision import datasets

    known = {datasets.CIFAR10.url: datasets.CIFAR10.tgz_md5}
    for kind in (datasets.MNIST, datasets.FashionMNIST):
        known |= {kind.mirrors[0] + file: md5 for file, md5 in kind.resources if "images" in file}
    known |= {datasets.SVHN.split_list[split][0]: datasets.SVHN.split_list[split][2] for split in ("train", "test")}
    ours = {}
    for published in arrays.SETS.values():
        files = [published.archive] if published.archive else published.files
        ours |= {published.mirrors[0] + file.name: file.md5 for file in files}
    assert ours == known


@pytest.fixture
def server(tmp_path):
    """A server on this machine with the files of a folder."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=httpd.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{httpd.server_port}"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def publish(monkeypatch, name: str, **changes) -> None:
    monkeypatch.setitem(arrays.SETS, name, dataclasses.replace(arrays.SETS[name], **changes))


def serve_svhn(monkeypatch, server, *, right_checksum: bool) -> np.ndarray:
    folder, address = server
    images = pictures(7, 32, 3)
    write_svhn(folder / "train_32x32.mat", images)
    md5 = hashlib.md5((folder / "train_32x32.mat").read_bytes()).hexdigest() if right_checksum else "0" * 32
    files = (arrays.ArrayFile("train_32x32.mat", md5),)
    publish(monkeypatch, "svhn", files=files, mirrors=("http://127.0.0.1:9/", f"{address}/"))
    return images


def test_a_mirror_downloads_checks_and_the_second_time_nothing_is_asked_for(home, monkeypatch, server):
    images = serve_svhn(monkeypatch, server, right_checksum=True)
    said: list[str] = []
    store = open_set(home, "svhn", None, said)
    assert np.array_equal(store.tensor().numpy(), images)
    assert any(line.startswith("downloading SVHN from its page, http") for line in said)
    (server[0] / "train_32x32.mat").unlink()
    assert len(open_set(home, "svhn", None)) == 7


def test_a_download_with_another_checksum_is_refused(home, monkeypatch, server):
    serve_svhn(monkeypatch, server, right_checksum=False)
    with pytest.raises(DataError, match=r"SVHN cannot be downloaded: File not found or corrupted"):
        open_set(home, "svhn", None)
    with pytest.raises(DataError):
        open_set(home, "svhn", None)


def serve_malicious_cifar10(monkeypatch, server, *, right_checksum: bool) -> None:
    folder, address = server
    payload = pickle.dumps({"data": Evil()})
    with tarfile.open(folder / "cifar-10-python.tar.gz", "w:gz") as out:
        for file in arrays.SETS["cifar10"].files:
            member = tarfile.TarInfo(f"cifar-10-batches-py/{file.names[0]}")
            member.size = len(payload)
            out.addfile(member, io.BytesIO(payload))
    path = folder / "cifar-10-python.tar.gz"
    md5 = hashlib.md5(path.read_bytes()).hexdigest() if right_checksum else "0" * 32
    publish(monkeypatch, "cifar10", archive=arrays.ArrayFile(path.name, md5), mirrors=(f"{address}/",))


def test_a_downloaded_malicious_batch_is_refused_and_runs_nothing(home, tmp_path, monkeypatch, server):
    monkeypatch.chdir(tmp_path)
    serve_malicious_cifar10(monkeypatch, server, right_checksum=True)
    with pytest.raises(DataError, match="data_batch_1 cannot be read as a file of CIFAR-10: it asks for posix.system"):
        open_set(home, "cifar10", None)
    assert not (tmp_path / "pwned").exists()


def test_a_downloaded_batch_with_another_checksum_never_takes_its_place(home, monkeypatch, server):
    serve_malicious_cifar10(monkeypatch, server, right_checksum=False)
    with pytest.raises(DataError, match="CIFAR-10 cannot be downloaded: File not found or corrupted"):
        open_set(home, "cifar10", None)
    assert [path.name for path in (home.root / "downloads").iterdir()] == [".cifar10.lock"]


def test_without_a_network_the_message_says_what_to_get_and_where(home, monkeypatch):
    publish(monkeypatch, "svhn", mirrors=("http://127.0.0.1:9/",))
    with pytest.raises(DataError) as caught:
        open_set(home, "svhn", None)
    assert "SVHN cannot be downloaded" in caught.value.problem
    assert "Get train_32x32.mat from http://ufldl.stanford.edu/housenumbers/" in caught.value.hint
    assert "DATA=/path/to/folder" in caught.value.hint


def test_crops_apply_to_sets_too(home, tmp_path):
    made = make_set("svhn", tmp_path)
    store = open_set(home, "svhn", tmp_path, image_size=16, crop=16)
    assert np.array_equal(store.tensor().numpy(), made["train_32x32.mat"][:, 8:24, 8:24])
    with pytest.raises(DataError, match="32x32 px is smaller than 150 px"):
        open_set(home, "svhn", tmp_path, crop=150)


def test_idx_values_of_other_types_are_no_pixels(home, tmp_path):
    write_idx(tmp_path / "train-images-idx3-ubyte", np.zeros((4, 28, 28), ">f4"), kind=0x0D)
    with pytest.raises(DataError, match="values of type float32, not pixels of one byte"):
        open_set(home, "mnist_idx", tmp_path, channels=1)


def test_idx_images_of_other_sizes_are_not_framed(home, tmp_path):
    images = pictures(4, 64, 1)
    write_idx(tmp_path / "train-images-idx3-ubyte", images)
    assert open_set(home, "mnist_idx", tmp_path, channels=1).tensor().shape == (4, 32, 32, 1)


def test_two_processes_that_want_the_same_download_get_it(home, monkeypatch, server):
    images = serve_svhn(monkeypatch, server, right_checksum=True)
    found: list[ImageStore] = []
    threads = [threading.Thread(target=lambda: found.append(open_set(home, "svhn", None))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(store) for store in found] == [len(images)] * 3
    assert {path.name for path in (home.root / "downloads").iterdir()} == {"svhn", ".svhn.lock"}


def test_celeba_is_downloaded_only_when_asked_for_and_without_gdown_says_what_to_do(home, monkeypatch):
    import sys

    from harness.data.downloads import celeba_folder, download_celeba

    monkeypatch.setitem(sys.modules, "gdown", None)
    with pytest.raises(DataError, match="CelebA cannot be downloaded: .*'gdown' is required") as caught:
        download_celeba(home, lambda text: None)
    assert "DATA=/path/to/img_align_celeba.zip" in caught.value.hint
    assert not celeba_folder(home).exists()
    with pytest.raises(DataError, match="test needs CelebA"):
        open_set(home, "celeba", None)


def test_a_downloaded_celeba_is_checked_unpacked_and_found_without_data(home, monkeypatch, tmp_path):
    """torchvision's own code, with Google Drive replaced by files of this test."""
    import io
    import sys
    import types
    import zipfile

    from PIL import Image
    from torchvision.datasets import CelebA

    from harness.data.downloads import download_celeba

    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as out:
        for index in range(12):
            picture = io.BytesIO()
            Image.new("RGB", (178, 218), (index, 0, 0)).save(picture, "PNG")
            out.writestr(f"img_align_celeba/{index:06d}.png", picture.getvalue())
    rows = "".join(f"{index:06d}.png {0 if index < 9 else 2}\n" for index in range(12))
    attributes = "12\nSmiling\n" + "".join(f"{index:06d}.png 1\n" for index in range(12))
    files = {
        "img_align_celeba.zip": archive.getvalue(),
        "list_attr_celeba.txt": attributes.encode(),
        "identity_CelebA.txt": rows.encode(),
        "list_bbox_celeba.txt": attributes.encode(),
        "list_landmarks_align_celeba.txt": attributes.encode(),
        "list_eval_partition.txt": rows.encode(),
    }
    listed = [(name, hashlib.md5(payload).hexdigest(), name) for name, payload in files.items()]
    monkeypatch.setattr(CelebA, "file_list", listed)

    def download(id, output, quiet, user_agent):  # noqa: A002 - gdown's name
        Path(output).write_bytes(files[id])

    monkeypatch.setitem(sys.modules, "gdown", types.SimpleNamespace(download=download))
    root = download_celeba(home, lambda text: None)
    assert not list(root.rglob("*.zip"))
    store = open_set(home, "celeba", None, held_out=0.3)
    assert [int(image[0, 0, 0]) for image in store.tensor()] == list(range(9))
    assert "CelebA's own partition" in store.split_rule
    listed[0] = (listed[0][0], "0" * 32, listed[0][2])
    with pytest.raises(DataError, match="CelebA cannot be downloaded: File not found or corrupted"):
        download_celeba(Home(tmp_path / "other"), lambda text: None)
