"""``python -m tools.pictures STUDY [report terminal mlflow]``: draw the README's pictures from a finished sweep.

It is looked up in HARNESS_HOME and in reports/ of the current folder. The terminal shows a first sweep's end if the
best is not confirmed yet.

Headless Chromium photographs the report's first screen and MLflow's comparison. The terminal is the sweep's command
again, which finds everything finished and shows its last screen.
"""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from io import StringIO
from pathlib import Path

from PIL import Image
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "images"
HARNESS = (sys.executable, "-P", "-m", "harness")
_PORT, _WIDTH, _VIEW = 5055, 110, "ranked"
# How a live view returns to its first line before it is drawn again.
_REDRAWN = re.compile(r"\r(?:\x1b\[2K)?(?:\x1b\[1A\x1b\[2K)+")


def photograph(address: str, out: Path, *, width: int, height: int) -> None:
    """A page as Chromium shows it, after what its scripts load."""
    options = ("--headless", "--no-sandbox", "--hide-scrollbars", "--virtual-time-budget=20000")
    command = ["chromium", *options, f"--window-size={width},{height}", f"--screenshot={out}", address]
    subprocess.run(command, check=True, capture_output=True, timeout=180)


def terminal(study: str, out: Path) -> None:
    """The last screen of a sweep at a terminal of this width, as an SVG."""
    ours, theirs = pty.openpty()
    sweep = subprocess.Popen(
        [*HARNESS, "sweep", study],
        env={**os.environ, "COLUMNS": str(_WIDTH), "LINES": "50"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    written = b""
    with suppress(OSError):  # the terminal's end
        while block := os.read(ours, 65536):
            written += block
    os.close(ours)
    assert sweep.wait() == 0
    shown = _REDRAWN.split(written.decode())[-1]
    shown = re.sub(r"\x1b\[\?25[lh]", "", shown.replace("\r\n", "\n")).strip("\n")
    console = Console(record=True, width=_WIDTH, file=StringIO())
    console.print(Text.from_ansi(f"$ make sweep STUDY={study}\n{shown}"))
    console.save_svg(str(out), title="make sweep", font_aspect_ratio=0.61)
    svg = out.read_text()  # rich names a font on a server; the reader's own will do
    out.write_text(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL).replace("Fira Code", "ui-monospace"))


def comparison(study: str, out: Path) -> None:
    """MLflow's saved view of a study's trials."""
    server = subprocess.Popen([*HARNESS, "ui", "--port", str(_PORT)], stdout=subprocess.PIPE, text=True)
    assert server.stdout
    try:
        address = next(
            line.split(": ", 1)[1].strip() for line in server.stdout if line.strip().startswith(f"{study}, {_VIEW}")
        )
        for _ in range(120):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{_PORT}/health", timeout=5)
                break
            except OSError:
                time.sleep(1)
        photograph(address, out, width=1700, height=900)
        Image.open(out).crop((0, 0, 1260, 900)).save(out, optimize=True)  # without MLflow's assistant
    finally:
        server.terminate()
        server.wait()


def report(study: str, out: Path) -> None:
    """The first screen of a study's report."""
    photograph(Path("reports", study, "report.html").resolve().as_uri(), out, width=1280, height=1000)


PICTURES = {"report": (report, "report.png"), "terminal": (terminal, "sweep.svg"), "mlflow": (comparison, "mlflow.png")}


def main(study: str = "mnist32", *names: str) -> None:
    for name in names or PICTURES:
        draw, file = PICTURES[name]
        draw(study, OUT / file)


if __name__ == "__main__":
    main(*sys.argv[1:])
