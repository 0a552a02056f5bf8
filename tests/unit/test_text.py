"""Text whose encoding nobody chose: what Windows saves, and a terminal that lacks signs."""

from __future__ import annotations

import codecs
import subprocess
import sys
from pathlib import Path

import pytest

from harness.data.sources import find_partition
from harness.spec.files import parse, read
from harness.text import decoded

SAVED = {
    "UTF-8": lambda text: text.encode(),
    "with a mark": lambda text: codecs.BOM_UTF8 + text.encode(),
    "UTF-16 of PowerShell": lambda text: text.encode("utf-16"),
    "big-endian UTF-16": lambda text: codecs.BOM_UTF16_BE + text.encode("utf-16-be"),
}


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
def test_a_file_is_read_however_it_was_saved(tmp_path, saved, ends):
    (tmp_path / "a.toml").write_bytes(saved(f'name = "Größe"{ends}size = 3{ends}'))
    assert parse(read(tmp_path / "a.toml"), "a.toml") == {"name": "Größe", "size": 3}
    assert decoded(saved(f"a{ends}b")) == "a\nb"
    lines = ["image_id,partition", "000001.jpg,0", "000002.jpg,2"]
    for name, text in {"txt": ends.join(line.replace(",", " ") for line in lines[1:]), "csv": ends.join(lines)}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"list_eval_partition.{name}").write_bytes(saved(text))
        assert find_partition(folder) == {"000001.jpg": 0, "000002.jpg": 2}


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_signs_that_a_terminal_lacks_are_no_traceback(encoding):
    done = subprocess.run(
        [sys.executable, "-c", "import sys; from harness.cli import main; sys.exit(main(['sweep', '--help']))"],
        cwd=Path(__file__).resolve().parents[2], env={"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"},
        capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
