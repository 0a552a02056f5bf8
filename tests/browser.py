"""A page in headless Chromium, over the DevTools protocol: NUL-ended JSON through two pipes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from threading import Event
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
# Seconds that a page may take to show something.
_PATIENCE_S = 120


class Page:
    """What a person sees and clicks, ``width`` by 1,000 px."""

    def __init__(self, profile: Path, width: int = 1800) -> None:
        assert CHROMIUM
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        # Chromium has its commands at 3 and its answers at 4, wherever these pipes are.
        script = 'commands=$1 answers=$2; shift 2; exec "$@" 3<&"$commands" 4>&"$answers"'
        command = [
            *("bash", "-c", script, "bash", str(commands), str(answers), CHROMIUM, "--headless=new"),
            *("--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--disable-background-networking", "--no-proxy-server", f"--window-size={width},1000"),
            f"--user-data-dir={profile}",
        ]
        self._process = subprocess.Popen(
            command, pass_fds=(commands, answers), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._left, self._count, self._session = b"", 0, ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self._ask("Page.enable")

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        os.write(
            self._write, json.dumps(message | ({"sessionId": self._session} if self._session else {})).encode() + b"\0"
        )
        while True:
            while b"\0" not in self._left:
                more = os.read(self._read, 1 << 20)
                assert more, "Chromium has ended"
                self._left += more
            first, _, self._left = self._left.partition(b"\0")
            answer = json.loads(first)
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open(self, address: str) -> None:
        self._ask("Page.navigate", url="about:blank")  # else an address that differs in its fragment loads nothing
        self._ask("Page.navigate", url=address)

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression in the page."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, script: str) -> Any:
        """The value of an expression as soon as it is true; the page's text is shown where it never is."""
        until = time.monotonic() + _PATIENCE_S
        while not (value := self.run(script)):
            assert time.monotonic() < until, f"{script}\n{self.run('document.body?.innerText')}"
            Event().wait(0.2)
        return value

    def shows(self, text: str) -> None:
        self.wait_for(f"document.body?.innerText.includes({json.dumps(text)})")

    def show_as(self, width: int, media: str = "screen", scheme: str = "light") -> None:
        """Show the page as a device of this width (CSS pixels) does, or paper, in light or dark colours."""
        self._ask("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._ask("Emulation.setEmulatedMedia", media=media, features=features)

    def click(self, script: str) -> None:
        """Click in the middle of the element that an expression gives, once it is there, at rest and not covered."""
        middle = f"""(async element => {{
            if (!element) return null;
            element.scrollIntoView({{block: 'center'}});
            const middle = () => (r => [r.x + r.width / 2, r.y + r.height / 2])(element.getBoundingClientRect());
            const frame = () => new Promise(requestAnimationFrame);
            await frame();
            const before = middle();
            await frame();
            await frame();
            const after = middle(), hit = document.elementFromPoint(...after);
            return hit && String(before) == String(after) && (element.contains(hit) || hit.contains(element)) && after;
        }})({script})"""
        x, y = self.wait_for(middle)
        for kind in ("mousePressed", "mouseReleased"):
            self._ask("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
