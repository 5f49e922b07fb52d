"""report.html in a real browser: nothing fails, nothing is fetched, nothing foreign runs, and its parts work."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_tables import FakeStudy

from kv_transition.analysis.plots import draw_task
from kv_transition.report.build import build_report, drawn_figures
from kv_transition.report.html import build_html

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.pwned = 1</script><img src=x onerror='window.pwned = 1'> [x](javascript:window.pwned=1) "
    "![i](http://127.0.0.1:9/i.png)"
)


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report with all its figures, whose model answers with markup and scripts."""
    folder = tmp_path_factory.mktemp("report")
    study = FakeStudy(
        n=6, edges=(60, 200, 800), methods=("snapkv", "random"), budgets=(16, 64, 256), answer=HOSTILE,
        failing={("random", "64", 1): 0.5},
    )  # fmt: skip
    files = study.write(folder)
    for task in study.tasks:
        draw_task(
            task, tables=files["tables"], scores=files["scores"][0], folder=folder / "figures", settings=study.settings()
        )  # fmt: skip
    build_report(
        settings=study.settings(), provenance={}, out=folder / "report.md",
        figures=drawn_figures(sorted((folder / "figures").glob("*.txt"))), **files,
    )  # fmt: skip
    build_html(folder / "report.md", folder / "report.html")
    return folder / "report.html"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A headless Chromium that notes what it fetches and what its console says."""
    import shutil

    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    yield driver
    driver.quit()


@pytest.fixture
def opened(chromium: Any, page: Path) -> Any:
    """The page, freshly opened in a wide window."""
    chromium.get_log("browser")
    chromium.get_log("performance")
    chromium.set_window_size(1280, 900)
    chromium.get(page.as_uri())
    return chromium


def requests(driver: Any) -> list[str]:
    """Addresses of all that the page asked for."""
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [
        one["params"]["request"]["url"] for one in messages if one["method"] == "Network.requestWillBeSent"
    ]
    return [address for address in sent if not address.startswith("data:")]


def test_nothing_is_fetched_and_the_console_stays_empty(opened: Any, page: Path) -> None:
    opened.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true })")
    opened.execute_script("window.scrollTo(0, document.body.scrollHeight)")
    assert requests(opened) == [page.as_uri()]
    assert opened.get_log("browser") == []


def test_every_figure_is_shown(opened: Any) -> None:
    sizes = opened.execute_async_script(
        """const done = arguments[0];
        const images = [...document.images];
        Promise.all(images.map((image) => image.decode().catch(() => null))).then(
          () => done(images.map((image) => image.complete && image.naturalWidth)));"""
    )
    assert len(sizes) >= 9
    assert all(sizes)


def test_nothing_of_a_models_answer_runs(opened: Any) -> None:
    assert "window.pwned" in opened.execute_script("return document.body.textContent"), "it is quoted"
    assert opened.execute_script("return typeof window.pwned") == "undefined"
    assert (
        opened.execute_script(
            "return document.querySelectorAll('main script, main [onerror], main style').length"
        )
        == 0
    )
    links = opened.execute_script("return [...document.links].map((link) => link.protocol)")
    assert set(links) <= {"file:", "data:"}


def table_column(driver: Any, table: str, column: int) -> list[str]:
    return driver.execute_script(
        f"return [...document.querySelector('{table}').tBodies[0].rows].map((row) => row.cells[{column}].textContent)"
    )


def test_tables_sort_up_down_and_back(opened: Any) -> None:
    table = ".hero table"
    before = table_column(opened, table, 0)
    press = f"document.querySelector('{table}').tHead.rows[0].cells[0].querySelector('button').click()"
    sort = f"return document.querySelector('{table}').tHead.rows[0].cells[0].getAttribute('aria-sort')"
    seen = []
    for _ in range(3):
        opened.execute_script(press)
        seen.append((opened.execute_script(sort), table_column(opened, table, 0)))
    assert [order for order, _ in seen] == ["ascending", "descending", None]
    assert seen[0][1] == sorted(before)
    assert seen[1][1] == sorted(before, reverse=True)
    assert seen[2][1] == before


def test_numbers_sort_by_size_bounds_beside_their_budget_and_dashes_last(
    chromium: Any, tmp_path: Path
) -> None:
    values = ["256 [64, >256]", ">256", "≤16", "–", "1,024", "96°", "64† [1, 2]", "-0.5"]
    rows = "\n".join(f"| m{number} | {value} |" for number, value in enumerate(values))
    (tmp_path / "report.md").write_text(f"# T\n\n## A\n\n| method | value |\n| --- | --: |\n{rows}\n")
    build_html(tmp_path / "report.md", tmp_path / "report.html")
    chromium.get((tmp_path / "report.html").as_uri())
    press = "document.querySelector('table').tHead.rows[0].cells[1].querySelector('button').click()"
    chromium.execute_script(press)
    rising = ["-0.5", "≤16", "64† [1, 2]", "96°", "256 [64, >256]", ">256", "1,024"]
    assert table_column(chromium, "table", 1) == [*rising, "–"]
    chromium.execute_script(press)
    assert table_column(chromium, "table", 1) == [*reversed(rising), "–"]


def test_sizes_sort_with_their_units(chromium: Any, tmp_path: Path) -> None:
    rows = "\n".join(f"| {size} | m |" for size in ("1.5 MiB", "24 KiB", "512 B", "1.0 GiB", "1000 KiB"))
    (tmp_path / "report.md").write_text(f"# T\n\n## A\n\n| size | name |\n| --: | --- |\n{rows}\n")
    build_html(tmp_path / "report.md", tmp_path / "report.html")
    chromium.get((tmp_path / "report.html").as_uri())
    chromium.execute_script("document.querySelector('thead button').click()")
    assert table_column(chromium, "table", 0) == ["512 B", "24 KiB", "1000 KiB", "1.5 MiB", "1.0 GiB"]


def test_a_figure_enlarges_and_closes_again(opened: Any) -> None:
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    opened.execute_script("document.querySelector('figure .plate button').click()")
    assert opened.execute_script("return document.querySelector('#viewer').open")
    width = opened.execute_script(
        "return document.querySelector('#viewer img').getBoundingClientRect().width"
    )
    assert width > 800
    opened.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert not opened.execute_script("return document.querySelector('#viewer').open")
    WebDriverWait(opened, 10).until(
        lambda page: page.execute_script("return document.activeElement.closest('figure') !== null"),
        "the focus comes back",
    )


def test_every_figure_gives_its_numbers_and_itself_as_files(opened: Any) -> None:
    names = opened.execute_script(
        "return [...document.querySelectorAll('figure')].map((figure) => "
        "[...figure.querySelectorAll('a[download]')].filter((a) => !a.hidden && a.href.startsWith('data:')).map((a) => a.download))"
    )
    assert all({Path(name).suffix for name in figure} == {".csv", ".svg"} for figure in names)


def test_a_phone_scrolls_tables_not_the_page(opened: Any) -> None:
    opened.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": True},
    )
    try:
        width, view = opened.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
        assert (width, view) == (360, 360)
        boxes = opened.execute_script(
            "return [...document.querySelectorAll('.table-box')].map((box) => [box.scrollWidth, box.clientWidth])"
        )
        assert any(inner > outer for inner, outer in boxes)
    finally:
        opened.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_on_paper_there_is_no_navigation(opened: Any) -> None:
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        shown = "return getComputedStyle(document.querySelector('%s')).display"
        assert opened.execute_script(shown % "#contents") == "none"
        assert opened.execute_script(shown % ".downloads") == "none"
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})


def test_a_long_table_folds_on_the_screen_and_is_whole_on_paper(chromium: Any, tmp_path: Path) -> None:
    rows = "\n".join(f"| m{number} | {number} |" for number in range(40))
    (tmp_path / "report.md").write_text(f"# T\n\n## A\n\n| method | value |\n| --- | --: |\n{rows}\n")
    build_html(tmp_path / "report.md", tmp_path / "report.html")
    chromium.get((tmp_path / "report.html").as_uri())
    shown = "return [...document.querySelectorAll('tbody tr')].filter((row) => row.checkVisibility()).length"
    assert chromium.execute_script(shown) == 0
    assert "40 rows" in chromium.execute_script("return document.querySelector('summary b').textContent")
    chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        assert chromium.execute_script(shown) == 40
        assert chromium.execute_script("return document.querySelector('.table-box').offsetHeight") > 400
    finally:
        chromium.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
