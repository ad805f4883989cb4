"""Take docs/pictures/*.png: the search page of a real server over the sample vault, in a real Chromium.

python docs/make_page_pictures.py      # needs requirements-dev.txt and a Chromium (`apt-get install chromium`)
"""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

REPO = Path(__file__).resolve().parent.parent
PICTURES = REPO / "docs" / "pictures"
DESKTOP: dict[str, Any] = {"viewport": {"width": 1280, "height": 760}, "device_scale_factor": 1.5}
PHONE: dict[str, Any] = {
    "viewport": {"width": 390, "height": 760},
    "device_scale_factor": 1.5,
    "has_touch": True,
    "is_mobile": True,
}


def take(
    browser: Browser, address: str, do: Callable[[Page], None] | None = None, **context: Any
) -> Image.Image:
    """The page at an address, after its results have come."""
    page = browser.new_context(**context).new_page()
    page.goto(address)
    page.locator("#found:not(.waiting) [role=option]").first.wait_for()
    if do is not None:
        do(page)
    page.wait_for_timeout(400)
    picture = Image.open(io.BytesIO(page.screenshot()))
    page.context.close()
    return picture


def beside(left: Image.Image, right: Image.Image, gap: int = 36) -> Image.Image:
    both = Image.new("RGB", (left.width + gap + right.width, left.height), "white")
    both.paste(left, (0, 0))
    both.paste(right, (left.width + gap, 0))
    return both


def keep(picture: Image.Image, name: str) -> None:
    """In 200 colours, which is what a page of text has, and a third of the bytes."""
    PICTURES.mkdir(exist_ok=True)
    path = PICTURES / name
    # maximum coverage keeps the small green dot, which a median cut loses, and the greys apart, which an octree joins
    few = picture.convert("RGB").quantize(200, Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
    few.save(path, optimize=True)
    print(f"wrote {path.relative_to(REPO)}, {path.stat().st_size // 1024} KB")


def open_first(page: Page) -> None:
    page.locator("#hit-0").tap()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        env = os.environ | {"QMD_CONFIG_DIR": folder, "QMD_DATA_DIR": folder, "XDG_RUNTIME_DIR": folder}

        def qmd(*arguments: str) -> str:
            command = [sys.executable, "-m", "qmd", *arguments]
            return subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout

        qmd("add", str(REPO / "examples" / "vault"), "--name", "notes")
        found = re.search(r"http://\S+", qmd("serve", "--daemon", "--port", "0"))
        assert found is not None
        url = found[0].rstrip("/")
        own = playwright.chromium.executable_path
        path = own if Path(own).exists() else shutil.which("chromium") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=path)
        try:
            english = f"{url}/#q=rolling+median+of+the+gauges"
            keep(take(browser, english, **DESKTOP), "page.png")
            keep(take(browser, f"{url}/#q=type:image+tram", **DESKTOP), "page-images.png")
            japanese = f"{url}/#q=" + "花粉の薬はいつから飲むか"
            keep(take(browser, japanese, color_scheme="dark", locale="ja-JP", **DESKTOP), "page-dark.png")
            chinese = f"{url}/#q=" + "如何设置文件权限"
            phones = [
                take(browser, chinese, do, locale="zh-CN", **PHONE, color_scheme=scheme)
                for do, scheme in ((None, "light"), (open_first, "dark"))
            ]
            keep(beside(*phones), "page-phone.png")
        finally:
            browser.close()
            qmd("serve", "stop")


if __name__ == "__main__":
    main()
