# SPDX-FileCopyrightText: 2026 The iquest-plt authors
# SPDX-License-Identifier: Apache-2.0
"""The playground: what it computes, its HTML, and its page in a browser that cannot reach another machine."""

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import torch
import yaml
from command_line import run
from paths import ROOT, SMALL
from servers import free_port

from iquest_plt.cli.playground import compare, markup
from iquest_plt.conversion.loading import load_model
from iquest_plt.training.samples import read_prompts


PROMPT = read_prompts()[1]


@pytest.fixture(scope="module")
def loaded():
    return load_model(str(SMALL), dtype="float32", device="cpu")


# -- what it computes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_loops", [1, 2, 3])
def test_a_completion_is_what_generate_writes(loaded, num_loops):
    model, tokenizer = loaded
    ids = compare.encode(tokenizer, PROMPT)
    found = compare.complete(model, tokenizer, ids, num_loops, 12)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, num_loops=num_loops)[0]
    assert PROMPT + found.text == tokenizer.decode(expected, skip_special_tokens=True)
    assert len(found.tokens) == len(expected) - len(ids)
    for token in found.tokens:
        assert 0 < token.probability <= 1
        assert (token.probability_before is None) == (num_loops == 1)


def test_marked_tokens_are_those_that_one_loop_fewer_writes_differently(loaded):
    model, tokenizer = loaded
    ids = compare.encode(tokenizer, PROMPT)
    found = compare.complete(model, tokenizer, ids, 2, 12)
    written = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, num_loops=2)[0]
    assert len(written) == len(ids) + len(found.tokens)
    for index, token in enumerate(found.tokens):
        before = written[None, : len(ids) + index]
        one = model.generate(before, max_new_tokens=1, do_sample=False, num_loops=1)[0, -1]
        assert token.instead == (None if one == written[len(ids) + index] else tokenizer.decode([one]))
    assert found.changed == sum(token.instead is not None for token in found.tokens)


def test_probabilities_are_those_of_the_model(loaded):
    model, tokenizer = loaded
    ids = compare.encode(tokenizer, PROMPT)
    (token,) = compare.complete(model, tokenizer, ids, 2, 1).tokens
    with torch.no_grad():
        one, two = (model(torch.tensor([ids]), num_loops=loops).logits[0, -1].softmax(-1) for loops in (1, 2))
    assert token.probability == pytest.approx(two.max().item(), rel=1e-4)
    assert token.probability_before == pytest.approx(one[two.argmax()].item(), rel=1e-4)


def test_texts_of_tokens(loaded, spm_tokenizer):
    """Characters of several tokens stay whole, and a leading space is kept."""
    text = " x = 'é 🙂 中'\n"
    for tokenizer in (loaded[1], spm_tokenizer):
        prompt = tokenizer.encode("def f():\n   ", add_special_tokens=False)
        ids = tokenizer.encode("def f():\n   " + text, add_special_tokens=False)[len(prompt) :]
        texts = compare.token_texts(tokenizer, prompt, ids)
        assert len(texts) == len(ids) and "�" not in "".join(texts)
        assert "def f():\n   " + "".join(texts) == tokenizer.decode(prompt + ids)


def test_prompts(loaded):
    model, tokenizer = loaded
    assert compare.encode(tokenizer, "import os") == tokenizer("import os").input_ids
    with pytest.raises(ValueError, match="The prompt is empty"):
        compare.encode(tokenizer, " \n")
    with pytest.raises(ValueError, match="can have at most 2,048"):
        compare.complete(model, tokenizer, [5] * 2048, 1, 8)
    assert len(compare.complete(model, tokenizer, [5] * 2046, 1, 8).tokens) <= 2


def test_a_chat_prompt_follows_the_template(loaded):
    _, tokenizer = loaded
    template = (ROOT / "chat_template.jinja").read_text()
    assert tokenizer.chat_template is None
    tokenizer.chat_template = template
    try:
        text = tokenizer.decode(compare.encode(tokenizer, "Read a file.", is_chat=True))
        assert text.endswith("<|im_start|>user\nRead a file.<|im_end|>\n<|im_start|>assistant\n")
    finally:
        tokenizer.chat_template = None


def test_speeds(loaded, monkeypatch):
    """An end token does not stop a run."""
    model, tokenizer = loaded
    monkeypatch.setattr(model.generation_config, "eos_token_id", list(range(model.config.vocab_size - 1)))
    speeds = compare.measure_speeds(model, compare.encode(tokenizer, PROMPT), [1, 3], new_tokens=3)
    assert [speed.num_loops for speed in speeds] == [1, 3]
    assert all(1 < value < 1e4 for speed in speeds for value in (speed.together, speed.in_sequence))
    assert speeds[0].together == speeds[0].in_sequence
    with pytest.raises(ValueError, match="no room to measure"):
        compare.measure_speeds(model, [5] * 2045, [1])


# -- HTML --------------------------------------------------------------------------------------------------------------


def test_texts_from_the_model_are_escaped():
    hostile = compare.Token('<script>"\u202e\0', 0.5, '"><img src=x>', 0.25)
    html = markup.comparison([compare.Completion(2, [hostile])], [3], 2)
    assert "<script" not in html and "<img" not in html and "\u202e" not in html and "\0" not in html
    assert "25% → 50%" in html and "loop 2 changed 1 of 1 tokens" in html and "writing …" in html
    assert "<b>" not in markup.error("<b>")


def test_a_marked_token_is_visible():
    for text, shown in (("\n    ", "⏎\n␣␣␣␣"), ("  ", "␣␣"), ("", "∎"), ("x\n", "x\n")):
        html = markup.token_html(compare.Token(text, 0.5, "y", 0.1), 2)
        assert html.endswith(f">{shown}</mark>")
    assert markup.token_html(compare.Token("\n", 0.5), 2) == "\n"


# -- the command and the Space -----------------------------------------------------------------------------------------


def test_the_command_needs_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "iquest_plt.cli.playground.page", raising=False)
    monkeypatch.delattr("iquest_plt.cli.playground.page", raising=False)
    code, _, message = run("demo", SMALL)
    assert code == 1
    assert message == "gradio is not installed: pip install '.[demo]' in a checkout of iquest-plt"


def test_the_command_opens_the_page(monkeypatch):
    pytest.importorskip("gradio", reason="pip install '.[demo]' in a checkout of iquest-plt")
    from iquest_plt.cli.playground import page

    opened = []
    monkeypatch.setattr(page, "launch", lambda *arguments: opened.append(arguments))
    code, _, error = run("demo", SMALL, "--port", "7899", "--device", "cpu")
    assert code == 0, error
    ((blocks, host, port),) = opened
    assert (blocks.title, host, port) == ("PLT playground", "127.0.0.1", 7899)
    assert not blocks.analytics_enabled and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    code, _, message = run("demo", "no-such-folder")
    assert code == 1 and message.startswith("There is no folder no-such-folder")


def test_the_space_needs_what_the_package_needs():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = setup["options"]["install_requires"] + setup["options.extras_require"]["demo"]
    assert (ROOT / "examples/space/requirements.txt").read_text().split() == needed.split()
    _, front, text = (ROOT / "examples/space/README.md").read_text().split("---\n", 2)
    front = yaml.safe_load(front)
    assert (front["sdk"], front["app_file"], front["license"]) == ("gradio", "app.py", "apache-2.0")
    assert f"gradio=={front['sdk_version']}" in (ROOT / "constraints.txt").read_text().splitlines()
    assert len(front["short_description"]) <= 60 and "git archive --prefix=iquest_plt/" in text


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    """Runs the Space's folder, in which the package lies beside the app, and yields its address."""
    pytest.importorskip("gradio", reason="pip install '.[demo]' in a checkout of iquest-plt")
    folder = tmp_path_factory.mktemp("space") / "app"
    shutil.copytree(ROOT / "examples" / "space", folder)
    (folder / "iquest_plt").symlink_to(ROOT)
    port = free_port()
    address = {"GRADIO_SERVER_NAME": "127.0.0.1", "GRADIO_SERVER_PORT": str(port)}
    command = [sys.executable, "app.py"]
    app = subprocess.Popen(command, cwd=folder, env=os.environ | address, stdout=subprocess.PIPE, text=True)
    try:
        line = next((line for line in app.stdout if line.startswith("The playground is at")), "")
        assert f"http://127.0.0.1:{port}" in line
        yield f"http://127.0.0.1:{port}"
    finally:
        app.kill()
        app.wait()


@pytest.fixture(scope="module")
def browser(space):
    pytest.importorskip("selenium.webdriver", reason="pip install selenium")
    from selenium.webdriver.support.wait import WebDriverWait

    from iquest_plt.utils import browser

    if not (browser.CHROMIUM and browser.DRIVER):
        pytest.skip(browser.MISSING)
    with browser.chromium() as driver:
        driver.get(space)
        WebDriverWait(driver, 60).until(lambda driver: driver.find_elements("id", "run"))
        yield driver


def wait_for(driver, condition: str) -> None:
    from selenium.webdriver.support.wait import WebDriverWait

    WebDriverWait(driver, 60).until(lambda driver: driver.execute_script(f"return {condition}"), condition)


def test_the_page_in_a_browser(browser):
    """Types a prompt, chooses loops, and reads the texts and the speeds."""
    model, tokenizer = load_model(str(SMALL), device="cpu")
    box = browser.find_element("css selector", "#prompt textarea")
    box.clear()
    box.send_keys("import os")
    for label in browser.find_elements("css selector", "#loops label"):
        if label.text.strip() in ("3", "4"):
            label.find_element("tag name", "input").click()
    browser.find_element("id", "run").click()
    wait_for(browser, "document.querySelectorAll('.plt-panel pre').length == 2")
    panels = browser.find_elements("css selector", ".plt-panel")
    assert [panel.get_attribute("data-loops") for panel in panels] == ["1", "2"]
    ids = compare.encode(tokenizer, "import os")
    first = compare.complete(model, tokenizer, ids, 1, 4).text  # other threads may round differently later on
    assert panels[0].find_element("tag name", "pre").get_attribute("textContent").startswith(first)
    marks = panels[1].find_elements("tag name", "mark")
    assert f"loop 2 changed {len(marks)} of" in panels[1].text and not panels[0].find_elements("tag name", "mark")

    browser.find_element("id", "measure").click()
    wait_for(browser, "document.querySelectorAll('.plt-speed tr').length == 2")
    rows = [re.findall(r"[\d.]+", row.text) for row in browser.find_elements("css selector", ".plt-speed tr")]
    assert [len(row) for row in rows] == [2, 3] and all(float(value) > 0 for row in rows for value in row)

    for label in browser.find_elements("css selector", "#loops label"):
        if label.text.strip() in ("1", "2"):
            label.find_element("tag name", "input").click()
    browser.find_element("id", "run").click()
    wait_for(browser, "document.querySelector('.plt-error')?.textContent.includes('Tick at least one')")


def test_the_page_loads_nothing_from_another_machine(browser, space):
    assert [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    assert sent
    assert {urlsplit(url).netloc for url in sent if not url.startswith(("data:", "blob:"))} == {urlsplit(space).netloc}


def test_the_page_fits_a_phone(browser):
    device = {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", device)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 360
