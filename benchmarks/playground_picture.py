# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""
Draws `docs/playground.png`: the playground with the small model and the second of its example prompts. It needs
Chromium and chromedriver.

    python -m iquest_plt.benchmarks.playground_picture
"""

import io
from pathlib import Path

from PIL import Image
from selenium.webdriver.support.wait import WebDriverWait

from ..cli.playground import page
from ..conversion.loading import load_model
from ..training.samples import read_prompts
from ..utils.browser import chromium


ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs" / "playground.png"
PORT = 7869
WIDTH, COLOURS = 1280, 64


def main() -> None:
    model, tokenizer = load_model(str(ROOT / "checkpoints" / "small"), device="cpu")
    blocks = page.build(model, tokenizer, "checkpoints/small", prompt=read_prompts()[1])
    page.start(blocks, "127.0.0.1", PORT)
    with chromium(WIDTH) as driver:

        def click(button: str, ready: str) -> None:
            driver.find_element("id", button).click()
            WebDriverWait(driver, 120).until(lambda driver: driver.execute_script(f"return {ready}"))

        driver.get(f"http://127.0.0.1:{PORT}/?__theme=light")
        WebDriverWait(driver, 60).until(lambda driver: driver.find_elements("id", "run"))
        click("run", "document.querySelectorAll('.plt-panel pre').length == 4")
        click("measure", "document.querySelectorAll('.plt-speed tr').length == 4")
        driver.execute_script("document.querySelector('.plt-panel mark')?.focus({preventScroll: true})")
        height = driver.execute_script("return document.querySelector('#speed').getBoundingClientRect().bottom + 24")
        size = {"width": WIDTH, "height": round(height), "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB").quantize(COLOURS)
    blocks.close()
    picture.save(PICTURE, optimize=True)
    print(f"{PICTURE.name}: {PICTURE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
