"""The explorer's page in a real browser: Chromium without a window, driven by Selenium."""

import chromium
import numpy as np
import pytest
import torch
from pages import content, weights_in
from small_networks import DIGITS, VIT, write

from cvattn import VisionTransformer, capture_attention
from cvattn.cli import main
from cvattn.data import DigitsData

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

pytestmark = chromium.MARKS
LAYERS = ["encoder.layers.0.self_attn", "encoder.layers.1.self_attn"]


@pytest.fixture(scope="module")
def browser():
    driver = chromium.start(1200, 1000)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def vit(tmp_path_factory):
    """Page, and what each layer attends to in each image, by capture_attention: class token too."""
    folder = tmp_path_factory.mktemp("explorer")
    args = VIT | {"patch_size": 4, "pool": "cls"}
    network = write(folder / "vit.ckpt", VisionTransformer, args, DIGITS)
    page = folder / "page.html"
    assert main(["explore", f"{folder}/vit.ckpt", "--count", "3", "-o", str(page)]) == 0
    images, labels, _ = DigitsData().example_images(3)
    with torch.no_grad(), capture_attention(network) as maps:
        logits = network(images)
    return page, {name: w.double().numpy() for name, w in maps.items()}, logits, labels


@pytest.fixture
def page(browser, vit):
    browser.get(vit[0].as_uri())
    browser.execute_async_script("explorer.ready.then(arguments[0])")
    yield browser
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def heat(page) -> np.ndarray:
    return np.array(page.execute_script("return [...explorer.heat().values]"))


def pixels(page) -> str:
    return page.execute_script("return document.getElementById('stage').toDataURL()")


def check(page, maps, *, image=0, layer=0, head=None, row):
    want = maps[LAYERS[layer]][image]
    want = want.mean(0) if head is None else want[head]
    want = want[row, 1:]
    # The mean of two heads may be off by the mean of what each may be off by.
    peak = maps[LAYERS[layer]][image][:, row, 1:].max()
    assert abs(heat(page) - want).max() <= peak / 255


def hover(page, y, x):
    """Over the cell of row y and column x, of 8 x 8, a little off its middle."""
    stage = page.find_element(By.ID, "stage")
    side = stage.rect["width"] / 8
    offset = (round((x + 0.4 - 4) * side), round((y + 0.6 - 4) * side))
    ActionChains(page).move_to_element_with_offset(stage, *offset).perform()


def press(page, *keys):
    ActionChains(page).send_keys(*keys).perform()


def test_hovering_shows_the_weights_of_that_position(page, vit):
    maps, before = vit[1], pixels(page)
    for y, x in ((0, 0), (7, 1), (2, 6)):
        hover(page, y, x)
        check(page, maps, row=1 + 8 * y + x)
        assert pixels(page) != before
        before = pixels(page)
        assert f"From row {y + 1}, column {x + 1}:" in page.find_element(By.ID, "reading").text


def test_keys_move_and_switch(page, vit):
    maps = vit[1]
    hover(page, 3, 5)
    page.execute_script("document.getElementById('stage').focus()")
    press(page, Keys.ARROW_UP, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    check(page, maps, row=1 + 8 * 2 + 3)
    press(page, "]", ".", ".")
    check(page, maps, layer=1, head=1, row=1 + 8 * 2 + 3)
    press(page, ",", "c")
    check(page, maps, layer=1, head=0, row=0)
    assert "From class token" in page.find_element(By.ID, "reading").text
    press(page, Keys.ARROW_DOWN, *[Keys.ARROW_RIGHT] * 9)  # back on the grid, and not beyond it
    check(page, maps, layer=1, head=0, row=1 + 8 * 3 + 7)


def test_layers_heads_images_and_rollout_switch_by_mouse(page, vit):
    _, maps, logits, labels = vit
    hover(page, 4, 4)
    page.find_elements(By.CSS_SELECTOR, "#blocks button")[1].click()
    page.find_elements(By.CSS_SELECTOR, "#heads button")[2].click()
    check(page, maps, layer=1, head=1, row=1 + 8 * 4 + 4)
    page.find_elements(By.CSS_SELECTOR, "#images button")[2].click()
    page.execute_async_script("setTimeout(arguments[0], 300)")
    check(page, maps, image=2, layer=1, head=1, row=1 + 8 * 4 + 4)
    caption = page.find_element(By.ID, "caption").text
    probability, guess = logits[2].softmax(-1).max(-1)
    assert caption.startswith(
        f"{guess}, {100 * probability:.{1 if probability < 0.0995 else 0}f} %"
    )
    assert ("✓" in caption) == (guess == labels[2])
    page.find_elements(By.CSS_SELECTOR, "#blocks button")[2].click()
    assert page.find_element(By.ID, "headsof").text.startswith("of rollout")
    eye = np.eye(65)
    mixed = [0.5 * maps[name][2].mean(0) + 0.5 * eye for name in LAYERS]
    want = (mixed[1] @ mixed[0])[1 + 8 * 4 + 4, 1:]
    assert abs(heat(page) - want).max() <= want.max() / 255


def test_the_slider_goes_from_the_image_to_the_heat(page, vit):
    grey = "const c = document.getElementById('stage'), d = c.getContext('2d')"
    grey += ".getImageData(0, 0, c.width, c.height).data; let colour = 0;"
    grey += "for (let i = 0; i < d.length; i += 4) colour += Math.abs(d[i] - d[i + 2]);"
    hover(page, 4, 4)
    slider = page.find_element(By.ID, "strength")
    page.execute_script("explorer.choose({prefix: 0})")  # no mark in colour
    colour = {}
    for at, key in ((0, Keys.HOME), (100, Keys.END)):
        slider.send_keys(key)
        assert page.execute_script("return explorer.state.strength") == at / 100
        colour[at] = page.execute_script(grey + "return colour / d.length;")
    assert colour[0] == 0  # the digits are grey
    assert colour[100] > 5


def test_light_and_dark(page):
    def back() -> str:
        return page.execute_script("return getComputedStyle(document.body).backgroundColor")

    before = back()
    press(page, "d")
    assert back() != before
    page.find_element(By.ID, "theme").click()
    assert back() == before


def test_a_phone_shows_it_without_scrolling_sideways_and_takes_taps(page, vit):
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": True})
    try:
        assert page.execute_script("return document.documentElement.scrollWidth") <= 390
        box = page.execute_script(
            "const b = document.getElementById('stage').getBoundingClientRect();"
            "return [b.left, b.top, b.width, b.height]"
        )
        assert box[2] > 340
        point = {"x": box[0] + box[2] * 6.5 / 8, "y": box[1] + box[3] * 1.5 / 8}
        for kind, points in (("touchStart", [point]), ("touchEnd", [])):
            page.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        check(page, vit[1], row=1 + 8 * 1 + 6)
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        page.execute_cdp_cmd("Emulation.setTouchEmulationEnabled", {"enabled": False})


def test_a_sagan_block_shows_its_gamma(browser, sagan, tmp_path):
    page = tmp_path / "page.html"
    assert main(["explore", str(sagan[0]), "--count", "2", "-o", str(page)]) == 0
    browser.get(page.as_uri())
    browser.execute_async_script("explorer.ready.then(arguments[0])")
    assert "gamma 0.70" in browser.find_element(By.ID, "blocks").text
    images, _, _ = DigitsData().example_images(2)
    with torch.no_grad(), capture_attention(sagan[1]) as maps:
        sagan[1](images)
    (weights,) = maps.values()
    side = round(weights.shape[-1] ** 0.5)
    want = weights[0, 0, (side // 2) * side + side // 2].double().numpy()
    assert abs(heat(browser) - want).max() <= want.max() / 255
    assert browser.get_log("browser") == []


def test_a_reader_shows_where_each_character_was_read(browser, reader, lines, tmp_path):
    page, files = tmp_path / "page.html", [str(file) for file, _ in lines[1:]]
    assert main(["explore", str(reader[0]), *files, "-o", str(page)]) == 0
    entries = content(page)
    browser.get(page.as_uri())
    browser.execute_async_script("explorer.ready.then(arguments[0])")
    press(browser, "]")  # the second layer
    maps = weights_in(entries, 0)["decoder.layers.1.cross_attn"].mean(0)
    characters = entries["images"][0]["characters"]
    buttons = browser.find_elements(By.CSS_SELECTOR, "#queries button")
    assert [button.text for button in buttons] == characters
    for index, button in enumerate(buttons[:3]):
        button.click()
        assert abs(heat(browser) - maps[index]).max() < 1e-6
    press(browser, Keys.TAB)
    browser.execute_script("document.getElementById('stage').focus()")
    press(browser, Keys.ARROW_LEFT)
    assert browser.execute_script("return explorer.state.character") == min(1, len(buttons) - 2)
    columns = entries["blocks"][0]["grid"][1]
    column = 2
    stage = browser.find_element(By.ID, "stage")
    side = stage.rect["width"] / columns
    ActionChains(browser).move_to_element_with_offset(
        stage, round((column + 0.5 - columns / 2) * side), 0
    ).perform()
    wanted = maps.reshape(len(characters), -1, columns).sum(1)[:, column].argmax()
    assert browser.execute_script("return explorer.state.character") == wanted
    press(browser, "n")
    browser.execute_async_script("setTimeout(arguments[0], 300)")
    buttons = browser.find_elements(By.CSS_SELECTOR, "#queries button")
    assert [button.text for button in buttons] == entries["images"][1]["characters"]
    assert [e for e in browser.get_log("browser") if e["level"] == "SEVERE"] == []
