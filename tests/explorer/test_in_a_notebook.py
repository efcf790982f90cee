"""What a notebook shows, in a real browser: the page in a frame of its own."""

import chromium
import pytest

from cvattn import explore

pytestmark = chromium.MARKS

CELL = """
import torch, cvattn
from cvattn import SelfAttention2d
torch.manual_seed(0)
network = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), SelfAttention2d(8))
cvattn.explore(network, torch.randn(2, 3, 9, 7))
"""


@pytest.fixture
def browser():
    driver = chromium.start(1000, 900)
    yield driver
    driver.quit()


def enter_frame(browser, path, title):
    browser.get(path.as_uri())
    frame = browser.find_element("tag name", "iframe")
    assert frame.get_attribute("title") == title
    # A page that scrolls itself into view would move the notebook.
    assert browser.execute_script("return scrollY") == 0
    browser.switch_to.frame(frame)
    browser.execute_async_script("explorer.ready.then(arguments[0])")
    assert browser.find_element("id", "title").is_displayed()
    heat = browser.execute_script("return [...explorer.heat().values]")
    assert max(heat) > min(heat) >= 0
    return heat


def move_pointer(browser, before):
    """Until the page in the frame shows another heat."""
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.wait import WebDriverWait

    stage = browser.find_element("id", "stage")

    def moved(_):
        # As a reader scrolls: where a picture is taller than the window, a point may be outside.
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", stage)
        for down in (-0.3, 0.3):
            offset = (round(stage.rect["width"] * 0.3), round(stage.rect["height"] * down))
            ActionChains(browser).move_to_element_with_offset(stage, *offset).perform()
        return browser.execute_script("return [...explorer.heat().values]") != before

    # A sandboxed frame is another process, which may miss where it was scrolled to just now.
    WebDriverWait(browser, 10).until(moved)


@pytest.mark.parametrize("sandbox", ["", 'sandbox="allow-scripts"'], ids=["plain", "sandboxed"])
def test_the_frame_of_a_notebook_holds_a_page_that_works(browser, tmp_path, sandbox):
    """Also where a host keeps scripts from everything but their own frame."""
    page = explore("vit-digits", count=3)
    outer = tmp_path / "notebook.html"
    style = "<style>h1 { display: none }</style>"  # the notebook's own styles stay outside
    frame = page._repr_html_().replace("<iframe", f"<iframe {sandbox}", 1)
    tall = '<p style="height: 2000px">In [1]:</p>'
    outer.write_text(f"<!doctype html>{style}{tall}{frame}", encoding="utf-8")
    before = enter_frame(browser, outer, "What VisionTransformer looks at")
    move_pointer(browser, before)
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_an_executed_notebook_shows_a_page_that_works(browser, tmp_path):
    nbformat = pytest.importorskip("nbformat", reason="nbconvert is not installed")
    nbconvert = pytest.importorskip("nbconvert", reason="nbconvert is not installed")
    pytest.importorskip("ipykernel", reason="ipykernel is not installed")
    from nbconvert.preprocessors import ExecutePreprocessor

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    ExecutePreprocessor(timeout=120, kernel_name="python3").preprocess(notebook)
    outer = tmp_path / "notebook.html"
    outer.write_text(nbconvert.HTMLExporter().from_notebook_node(notebook)[0], encoding="utf-8")
    before = enter_frame(browser, outer, "What Sequential looks at")
    move_pointer(browser, before)
