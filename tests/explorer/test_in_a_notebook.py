"""What a notebook shows, in a real browser: the page in a frame of its own."""

import chromium
import pytest

from cvattn import explore

pytestmark = chromium.MARKS


@pytest.fixture
def browser():
    driver = chromium.start(1000, 900)
    yield driver
    driver.quit()


def test_the_frame_of_a_notebook_holds_a_page_that_works(browser, tmp_path):
    page = explore("vit-digits", count=3)
    outer = tmp_path / "notebook.html"
    style = "<style>h1 { display: none }</style>"  # the notebook's own styles stay outside
    outer.write_text(f"<!doctype html>{style}<p>In [1]:</p>{page._repr_html_()}", encoding="utf-8")
    browser.get(outer.as_uri())
    frame = browser.find_element("tag name", "iframe")
    assert frame.get_attribute("title") == "What VisionTransformer looks at"
    browser.switch_to.frame(frame)
    browser.execute_async_script("explorer.ready.then(arguments[0])")
    assert browser.find_element("id", "title").is_displayed()
    heat = browser.execute_script("return [...explorer.heat().values]")
    assert max(heat) > min(heat) >= 0
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
