"""The page of networks that are not ours, in a real browser: words, windows, heat of classes."""

import chromium
import numpy as np
import pytest
import torch
from conditioned import WORDS, Conditioned, Queries

from cvattn import VisionTransformer, capture_attention, explore

pytest.importorskip("selenium", reason="selenium is not installed")
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By

pytestmark = chromium.MARKS


@pytest.fixture(scope="module")
def browser():
    driver = chromium.start(1200, 1000)
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser, tmp_path):
    def open_page(page):
        browser.get(page.save(tmp_path / "page.html").as_uri())
        browser.execute_async_script("explorer.ready.then(arguments[0])")
        return browser

    yield open_page
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def numbers(page, what) -> np.ndarray:
    return np.array(page.execute_script(f"return [...{what}]"))


def hover(page, y, x, grid):
    """Over the middle of the cell of row y and column x."""
    stage = page.find_element(By.ID, "stage")
    high, wide = stage.rect["height"] / grid[0], stage.rect["width"] / grid[1]
    offset = (round((x + 0.5 - grid[1] / 2) * wide), round((y + 0.5 - grid[0] / 2) * high))
    ActionChains(page).move_to_element_with_offset(stage, *offset).perform()


def test_words_show_who_looks_at_them_and_positions_their_words(opened):
    torch.manual_seed(5)
    network, text = Conditioned().eval(), torch.randn(1, len(WORDS), 6)
    images = torch.randn(2, 3, 14, 10)
    with torch.no_grad(), capture_attention(network) as maps:
        network(images[:1], text)
    page = opened(
        explore(
            network,
            images,
            words=WORDS,
            forward=lambda model, x: model(x, text.expand(len(x), -1, -1)),
        )
    )
    assert "their tokens lie on no grid: text" in page.find_element(By.ID, "notes").text
    words = page.find_elements(By.CSS_SELECTOR, "#words button")
    assert [word.get_attribute("title") for word in words] == WORDS
    weights = maps["fine"][0].double().mean(0).numpy()  # (positions, words)
    for y, x in ((2, 7), (13, 0)):
        hover(page, y, x, (14, 10))
        shares = numbers(page, "explorer.words()")
        want = weights[10 * y + x]
        assert abs(shares - want).max() <= weights.max() / 255
        said = page.find_element(By.ID, "reading").text
        assert f"From row {y + 1}, column {x + 1}: most" in said
        assert f"goes to “{WORDS[want.argmax()]}”" in said
        assert [word.text.split()[-1] for word in words] == ["%"] * len(WORDS)
    words[3].click()
    assert words[3].get_attribute("aria-pressed") == "true"
    heat = numbers(page, "explorer.heat().values")
    assert abs(heat - weights[:, 3]).max() <= weights.max() / 255
    ActionChains(page).send_keys("w").perform()
    assert page.execute_script("return explorer.state.word") == 4
    ActionChains(page).send_keys("]").perform()  # self-attention on the coarse grid
    assert page.find_elements(By.CSS_SELECTOR, "#words button") == []
    hover(page, 3, 4, (7, 5))
    want = maps["self_attention"][0].double().mean(0).numpy()[3 * 5 + 4]
    assert abs(numbers(page, "explorer.heat().values") - want).max() <= want.max() / 120
    ActionChains(page).send_keys("]").perform()
    want = maps["coarse"][0].double().mean(0).numpy()[:, 4]
    assert abs(numbers(page, "explorer.heat().values") - want).max() <= want.max() / 120


def test_tokens_show_where_they_look(opened):
    network, images = Queries().eval(), torch.randn(1, 3, 7, 5)
    with torch.no_grad(), capture_attention(network) as maps:
        network(images)
    page = opened(explore(network, images))
    page.find_elements(By.CSS_SELECTOR, "#words button")[1].click()
    want = maps["attention"][0].double().mean(0).numpy()
    heat = numbers(page, "explorer.heat().values")
    assert abs(heat - want[1]).max() <= want.max() / 255
    hover(page, 5, 2, (7, 5))
    assert abs(numbers(page, "explorer.words()") - want[:, 27]).max() <= want.max() / 255
    assert "“token 2” gives most" in page.find_element(By.ID, "reading").text


def test_heat_of_a_class_in_place_of_attention(opened):
    torch.manual_seed(3)
    network = VisionTransformer(
        11, image_size=(12, 16), patch_size=2, pool="cls", embed_dim=12, num_heads=3, num_layers=2
    ).eval()
    made = explore(network, torch.randn(2, 3, 12, 16), targets=2)
    page = opened(made)
    choices = page.find_elements(By.CSS_SELECTOR, "#targets button")
    guesses = [name for name, _ in made.content.captions[0]["guesses"]]
    assert [choice.text for choice in choices] == ["attention", *(f"for {n}" for n in guesses[:2])]
    choices[2].click()
    for block in range(3):
        page.execute_script(f"explorer.choose({{block: {block}}})")
        want = made.content.heats[0][1][block].ravel()
        heat = numbers(page, "explorer.heat().values")
        assert abs(heat - want).max() <= want.max() / 255
        hover(page, 1, block, (6, 8))  # which changes nothing
        assert (numbers(page, "explorer.heat().values") == heat).all()
    assert not page.find_element(By.ID, "heads").is_displayed()
    assert f"What “{guesses[1]}” rests on in rollout" in page.find_element(By.ID, "reading").text
    ActionChains(page).send_keys("g").perform()  # behind the last class comes attention again
    assert page.execute_script("return explorer.state.target") is None
    assert page.find_element(By.ID, "heads").is_displayed()
