"""What of a folder or zip is used: every file is, or is counted by reason; the same tree is the same images in both."""

from __future__ import annotations

import io
import os
import stat
import unicodedata
import zipfile
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.data.decode import FORMATS, Preparation
from harness.data.listing import list_images
from harness.data.sources import split
from harness.data.store import ImageStore, open_store
from harness.errors import DataError
from harness.gan.hparams import digest
from harness.home import Home
from harness.spec.tables import DataSpec


def picture(number: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((16, 16, 3), number, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def as_folder(path: Path, files: dict[str, bytes]) -> Path:
    for name, payload in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(payload)
    return path


def as_zip(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path.with_suffix(".zip"), "w") as out:
        for name, payload in reversed(files.items()):
            out.writestr(name, payload)
    return path.with_suffix(".zip")


def unmarked(path: Path) -> Path:
    """The zip without the flag that its names are UTF-8: that is how Info-ZIP and macOS write them."""
    payload = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            payload[info.header_offset + 7] &= ~8
        place = archive.start_dir
        for info in archive.infolist():
            payload[place + 9] &= ~8
            place += 46 + len(info.orig_filename.encode()) + len(info.extra) + len(info.comment)
    path.write_bytes(payload)
    return path


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "runs")


both = pytest.mark.parametrize("pack", [as_folder, as_zip])


def opened(home, source: Path, said: list[str] | None = None, **data) -> ImageStore:
    say = (said if said is not None else []).append
    spec = DataSpec(source="folder", image_size=16, channels=3, **data)
    return open_store(home, spec, source, study="test", on_progress=lambda *_: None, say=say)


PICTURES = {
    "a.jpg": picture(1, "JPEG"),
    "b.jfif": picture(2, "JPEG"),
    "c.JPG_large": picture(3, "JPEG"),
    "d": picture(4),
    "e.webp!d": picture(5, "WEBP"),
    "f.bmp": picture(6, "BMP"),
    "g": picture(7, "TIFF"),
    "h.001": picture(8, "GIF"),
    "h.pnm": picture(12, "PPM"),
    "h.dib": picture(15, "BMP"),
    "scraped.bin": picture(13, "JPEG"),
    "labels.txt": picture(14),
    **({"i.avif": picture(9, "AVIF")} if "AVIF" in FORMATS else {}),
    **({"i.heic": picture(10, "HEIF"), "i.HIF": picture(11, "HEIF")} if "HEIF" in FORMATS else {}),
}
OTHERS = {
    "j.HEIC": b"\0\0\0\x18ftypheic" + bytes(50),
    "k.nef": b"MM\0*" + bytes(50),
    "l.jxl": b"\xff\x0a" + bytes(50),
}
NOT_IMAGES = {"notes.txt": b"text", "labels.npy": b"\x93NUMPY", "a.jpg~": picture(9, "JPEG"), "b.png.part": picture(9)}


@both
def test_pictures_are_used_by_content_and_the_others_named_or_counted(home, tmp_path, pack):
    source = pack(tmp_path / "photos", PICTURES | OTHERS | NOT_IMAGES)
    said: list[str] = []
    store = opened(home, source, said)
    assert len(store) == len(PICTURES)
    assert store.rejected.keys() == OTHERS.keys()
    heic = "unreadable" if "HEIF" in FORMATS else "HEIC is read with the extra heic: pip install pillow-heif"
    assert store.rejected["j.HEIC"].startswith(heic)
    assert all("not read; convert it" in why for name, why in store.rejected.items() if name != "j.HEIC")
    unread = "passed over, not images, or in a format that is not read: 2 files (1 .npy, 1 .txt), such as labels.npy"
    assert unread in said
    assert any("1 .bin (such as scraped.bin)" in line and "2 without a suffix (such as d)" in line for line in said)
    assert any("backups or unfinished downloads by their names: 2 files" in line for line in said)
    assert opened(home, source).rejected == store.rejected, "also of a store that was there"


@both
@pytest.mark.parametrize(
    "folder",
    [
        ".ipynb_checkpoints",
        ".thumbnails",
        "@eaDir/1.png",
        "a/.Trash-1000/files",
        "__MACOSX/a",
        "$RECYCLE.BIN",
        "#recycle",
        "venv/lib/python3.12/site-packages/matplotlib",
        "node_modules/a",
        "venv/lib/python3/dist-packages/a",
        "@__thumb",
        "Network Trash Folder/a",
    ],
)
def test_what_tools_keep_in_hidden_folders_is_left_out_and_said(tmp_path, pack, folder):
    files = {"1.png": picture(1), "a/2.png": picture(2), f"{folder}/3.png": picture(3), f"{folder}/b/4": picture(4)}
    listing = list_images(pack(tmp_path / "photos", files))
    assert [name for name, *_ in listing.files] == ["1.png", "a/2.png"]
    assert ["in the hidden folder" in why for why in listing.passed_over] == [True]
    assert "2 files" in listing.sentences()[0]


def test_a_folder_that_is_given_itself_may_be_hidden(tmp_path):
    assert list_images(as_folder(tmp_path / ".cache" / "faces", {"1.png": picture(1)})).files


@both
def test_what_the_harness_wrote_is_left_out_wherever_it_is(home, tmp_path, pack):
    own = {
        "runs/optuna.db": b"", "runs/mlflow.db": b"", "runs/artifacts/s/1/artifacts/grid.png": picture(3),
        "runs/trials/s/1/00001/grid-1.png": picture(4),
        "old/00002/hparams.json": b"{}", "old/00002/curve.json": b"[]", "old/00002/grid-1.png": picture(5),
        "reports/s/report.md": b"", "reports/s/report.html": b"", "reports/s/step-1.png": picture(6),
        "reports/claims-s/report.md": b"", "reports/claims-s/effects.png": picture(7), "reports/claims-s/arm.png": b"",
        "reports/trainings/s/report.md": b"", "reports/trainings/s/losses.png": picture(8),
    }  # fmt: skip
    source = pack(tmp_path / "photos", {"1.png": picture(1), "data/2.png": picture(2)} | own)
    listing = list_images(source)
    assert [name for name, *_ in listing.files] == ["1.png", "data/2.png"]
    assert len(listing.passed_over["written by the harness"]) == len(own) - 2, "all but the databases"


def test_the_home_of_this_run_is_known_by_its_place_and_sheets_by_what_they_say(home, tmp_path):
    from harness.scoring.sampling import save_png

    source = as_folder(tmp_path, {"1.png": picture(1), "runs/artifacts/x.png": picture(2), "runs/new.png": picture(3)})
    save_png(tmp_path / "photos-images.png", np.zeros((40, 40, 3), np.uint8))
    said: list[str] = []
    store = opened(home, source, said)
    assert len(store) == 1
    assert store.rejected == {"photos-images.png": "a picture that the harness made"}
    assert any("written by the harness" in line for line in said)
    inside = list_images(as_folder(home.root, {"4.png": picture(4), "trials/x.png": picture(5)}), home.root)
    assert [name for name, *_ in inside.files] == ["4.png", "new.png"]


def test_links_are_followed_once_and_those_that_lead_back_are_named(home, tmp_path):
    root = as_folder(tmp_path / "photos", {"dogs/1.png": picture(1), ".git/annex/5.png": picture(5)})
    store = as_folder(tmp_path / "store", {"cats/2.png": picture(2), "cats/more/3.png": picture(3)})
    (store / "cats" / "back").symlink_to(root)
    (store / "cats" / "round").symlink_to("more")
    for name, target in {
        "cats": store / "cats", "again": store / "cats", "up": "..", "self": ".", "dogs/twice": root / "dogs",
        "one.png": store / "cats" / "2.png", "gone.png": "/nowhere/at/all.png", "annexed.png": ".git/annex/5.png",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    listing = list_images(root)
    names = [name for name, *_ in listing.files]
    assert names == ["again/2.png", "again/more/3.png", "annexed.png", "dogs/1.png"]
    assert listing.passed_over["links to files that are used already"] == ["one.png"]
    assert listing.unread.keys() == {"again/back", "again/round", "cats", "up", "self", "dogs/twice", "gone.png"}
    assert listing.links == [f"following the link again to {store / 'cats'}"]
    only = tmp_path / "only"
    only.mkdir()
    (store / "cats" / "back").unlink()
    (only / "cats").symlink_to(store / "cats")
    assert len(list_images(only).files) == 2


def test_links_that_go_round_or_lead_into_what_was_read_by_another_count_once(home, tmp_path):
    root = as_folder(tmp_path / "photos", {"1.png": picture(1)})
    store = as_folder(tmp_path / "store", {"cats/2.png": picture(2), "3.png": picture(3)})
    round_about = {"loop": "loop", "ping.png": "pong", "pong": "ping.png"}
    for name, target in {"a": store / "cats", "b": store, **round_about}.items():
        (root / name).symlink_to(target)
    listing = list_images(root)
    assert [name for name, *_ in listing.files] == ["1.png", "a/2.png", "b/3.png"]
    assert listing.unread.keys() == {"b/cats", "loop", "ping.png", "pong"}
    with pytest.raises(DataError, match="no such folder or zip"):
        opened(home, root / "loop")


def test_a_picture_that_several_links_lead_to_is_used_once(tmp_path):
    root = as_folder(tmp_path / "photos", {"cats/1.png": picture(1), "dogs/2.png": picture(2)})
    outside = as_folder(tmp_path / "store", {"3.png": picture(3), "0.png": picture(4)})
    (root / "all").mkdir()
    for name, target in {
        "all/1.png": root / "cats" / "1.png", "all/2.png": "../dogs/2.png", "all/3.png": outside / "3.png",
        "cats/3.png": outside / "3.png", "all/chain.png": root / "all" / "2.png", "dogs/0.png": outside / "0.png",
    }.items():  # fmt: skip
        (root / name).symlink_to(target)
    listing = list_images(root)
    assert [name for name, *_ in listing.files] == ["all/3.png", "cats/1.png", "dogs/0.png", "dogs/2.png"]
    twice = ["all/1.png", "all/2.png", "all/chain.png", "cats/3.png"]
    assert listing.passed_over == {"links to files that are used already": twice}


@both
def test_what_mlflow_keeps_of_runs_is_left_out_whatever_database_it_is_in(tmp_path, pack):
    run = f"mlartifacts/1/{'0a' * 16}/artifacts"
    files = {"1.png": picture(1), "artifacts/2.png": picture(2)}
    own = {f"{run}/images/samples+step+1000+x.png": picture(3), f"{run}/images/x.webp": picture(4, "WEBP")}
    listing = list_images(pack(tmp_path / "photos", files | own))
    assert [name for name, *_ in listing.files] == list(files)
    assert sorted(listing.passed_over["kept by MLflow with a run"]) == sorted(own)


def test_what_cannot_be_opened_is_named_and_a_pipe_is_not_waited_for(tmp_path, monkeypatch):
    root = as_folder(tmp_path / "photos", {"1.png": picture(1), "closed/2.png": picture(2)})
    os.mkfifo(root / "pipe.png")
    opened_before = os.scandir

    def refusing(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return opened_before(path)

    monkeypatch.setattr(os, "scandir", refusing)
    listing = list_images(root)
    assert listing.unread == {"closed": "this folder cannot be opened: Permission denied"}
    assert listing.passed_over == {"pipes, sockets or devices": ["pipe.png"]}


@pytest.mark.parametrize(
    "names",
    [
        ["a/1.png", "a-1/1.png", "A b/1.png", "a.png", "a!/2.png"],
        ["b/a/1.png", "b/a-/1.png", "b/1.png"],
        ["Zo\u0308e/1.png", "Zoa/1.png", "Zo\u00f6/2.png", "Zo\u0308/3.png"],
    ],
)
@pytest.mark.parametrize("share", [None, 0.5])
def test_a_zip_and_its_folder_are_the_same_images_in_the_same_order(tmp_path, names, share):
    files = dict.fromkeys([*names, *(f"more/{number}.png" for number in range(12))], b"")

    def divided(source: Path) -> tuple[list[str], list[str]]:
        parts = split([name for name, *_ in list_images(source).files], share)
        plain = [
            [unicodedata.normalize("NFC", name.replace("\\", "/").removeprefix("photos/")) for name in part]
            for part in (parts.train, parts.held_out)
        ]
        return plain[0], plain[1]

    expected = divided(as_folder(tmp_path / "photos", files))
    packed = {
        "as it is": files,
        "in a folder": {f"photos/{name}": b"" for name in files},
        "composed": {unicodedata.normalize("NFC", name): b"" for name in files},
        "by Windows": {name.replace("/", "\\"): b"" for name in files},
    }
    for how, members in packed.items():
        assert divided(as_zip(tmp_path / how, members)) == expected, how
        assert divided(unmarked(as_zip(tmp_path / f"{how}, unmarked", members))) == expected, how


def test_of_two_members_of_one_name_the_last_is_used_as_unpacking_does(home, tmp_path):
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as out, pytest.warns(UserWarning, match="Duplicate"):
        for number in (1, 2, 3):
            out.writestr("same.png", picture(number))
    store = opened(home, tmp_path / "photos.zip")
    assert np.load(store.path / "images.npy")[:, 0, 0, 0].tolist() == [3]


def test_members_that_cannot_be_read_are_named_with_why_whatever_they_are_called(home, tmp_path):
    path, link = tmp_path / "photos.zip", zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as out:
        out.writestr("1.png", picture(1))
        out.writestr("2.png", picture(2), zipfile.ZIP_BZIP2)
        out.writestr("2.jfif", picture(2, "JPEG"), zipfile.ZIP_LZMA)
        out.writestr(link, "1.png")
        for name in ("3.png", "3.jfif"):
            out.writestr(name, picture(3, "JPEG"))
            out.getinfo(name).flag_bits |= 1  # encrypted
    store = opened(home, path)
    assert len(store) == 1
    whys = {"2": "its compression is not read", "3": "it is encrypted", "l": "a link in a zip, which is not followed"}
    assert store.rejected.keys() == {"2.png", "2.jfif", "3.png", "3.jfif", "link.png"}
    assert all(whys[name[0]] in why for name, why in store.rejected.items())


def test_celebas_partition_holds_also_in_a_zip_that_windows_packed(home, tmp_path):
    files = {f"celeba/img_align_celeba/{number:06}.png": picture(number) for number in range(6)}
    lines = "".join(f"{number:06}.png {number // 4}\n" for number in range(6))
    files["celeba/list_eval_partition.txt"] = lines.encode()
    data = DataSpec(source="celeba", image_size=16, channels=3, held_out=0.5)
    for how, members in (("plain", files), ("windows", {name.replace("/", "\\"): files[name] for name in files})):
        source = as_zip(tmp_path / how, members)
        store = open_store(home, data, source, study="test", on_progress=lambda *_: None, say=lambda _: None)
        assert (store.n_train, store.n_held_out, store.named("celeba")) == (4, 2, "celeba"), how


@pytest.mark.parametrize("pattern", ["id{0}/{1}.png", "id{0}/face{1}/x.png", "a/b/{0}/front{1}.png", "a\\{0}\\{1}.png"])
def test_a_share_is_held_out_whatever_files_have_the_same_name(pattern):
    names = [pattern.format(person, shot) for person in range(100) for shot in range(3)]
    divided = split(names, 0.1)
    assert 18 <= len(divided.held_out) <= 42
    assert divided.rule == "0.1 of all held out, by sha256 of the path"
    moved = split([f"photos/{name}" for name in names], 0.1)
    assert moved.held_out == tuple(f"photos/{name}" for name in divided.held_out)


def test_files_of_names_of_their_own_are_held_out_as_ever():
    names = [f"a/{number}.png" for number in range(50)] + [f"b/x{number}.png" for number in range(50)]
    assert split(names, 0.2) == split(names, 0.2, by_name=True)


def test_the_store_of_an_earlier_version_stays_valid(home, tmp_path):
    files = {f"{person}/{shot}.png": picture(10 * person + shot) for person in range(8) for shot in range(3)}
    root = as_folder(tmp_path / "photos", files | {".thumbnails/0.png": picture(200)})
    new = opened(home, root, held_out=0.5)
    former = sorted((path for path in root.rglob("*.png")), key=lambda path: path)
    listed = [(str(path.relative_to(root)), path.stat().st_size, path.stat().st_mtime_ns) for path in former]
    by_name = split([name for name, *_ in listed], 0.5, by_name=True)
    identity = {"source": str(root), "files": listed, **by_name.identity()}
    key = digest({**identity, "prep": asdict(Preparation(image_size=16, channels=3))})
    older = new.path.with_name(f"folder-16-{key}")
    new.path.rename(older)
    said: list[str] = []
    assert opened(home, root, said, held_out=0.5).path == older
    assert any("an earlier version prepared these images" in line and str(older) in line for line in said)


def test_a_zip_of_names_that_it_does_not_say_are_utf8(home, tmp_path):
    files = {
        f"{name}.png": picture(number) for number, name in enumerate(("caf\u00e9", "cafe\u0301 2", "cafz", "\u65e5"))
    }
    new = opened(home, unmarked(as_zip(tmp_path / "photos", files)))
    assert new.fingerprint == opened(home, as_folder(tmp_path / "photos", files)).fingerprint
    cp437 = {name.encode().decode("cp437"): payload for name, payload in files.items()}
    listed = list_images(as_zip(tmp_path / "former", cp437)).files  # as they were known before
    identity = {
        "source": str(tmp_path / "photos.zip"),
        "files": listed,
        **split([n for n, *_ in listed], None).identity(),
    }
    key = digest({**identity, "prep": asdict(Preparation(image_size=16, channels=3))})
    older = new.path.with_name(f"folder-16-{key}")
    new.path.rename(older)
    assert opened(home, tmp_path / "photos.zip").path == older
    (tmp_path / "latin.zip").write_bytes(
        as_zip(tmp_path / "z", {"caf_.png": picture(1)}).read_bytes().replace(b"f_", b"f\xe9")
    )
    assert [name for name, *_ in list_images(tmp_path / "latin.zip").files] == ["caf\u0398.png"]


@pytest.mark.parametrize(
    ("files", "problem", "hint"),
    [
        ({"photos.zip": b"PK\x03\x04"}, "is not read: 1 file, such as photos.zip", "an archive in it, photos.zip"),
        ({"a.jxl": OTHERS["l.jxl"]}, "a.jxl: pictures of this format", "Looked, in all its folders"),
        ({".x/1.png": picture(1)}, "in the hidden folder .x: 1 file", "Looked"),
    ],
)
@both
def test_where_nothing_is_an_image_it_says_what_there_is(tmp_path, pack, files, problem, hint):
    with pytest.raises(DataError) as caught:
        list_images(pack(tmp_path / "data", files))
    assert problem in caught.value.problem
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("payload", "problem"),
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\n<HTML>", "is a web page"),
        (picture(1), "is one picture"),
        (b"\x1f\x8b\x08" + bytes(20), "is an archive"),
        (bytes(257) + b"ustar" + bytes(200), "is an archive"),
        (b"PK\3\4 and no end", "is a damaged zip"),
        (b"", "is neither a folder nor a zip"),
    ],
)
def test_a_file_that_is_no_zip_is_told_by_its_content(tmp_path, payload, problem):
    (tmp_path / "page.zip").write_bytes(payload)
    with pytest.raises(DataError, match=problem):
        list_images(tmp_path / "page.zip")
