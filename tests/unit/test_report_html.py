"""report.html: the report as one file that reaches for nothing and in which no foreign text becomes markup."""

import base64
import re
from pathlib import Path

import pytest

from kv_transition.errors import UserError
from kv_transition.report.html import build_html
from kv_transition.report.markdown import escape_text

SVG = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 300 150"><rect width="300" height="150"/></svg>'

#: What a model may answer, as the report quotes it, and the same unescaped, as if the report had forgotten to.
HOSTILE = (
    '<script>window.pwned=1</script><img src=x onerror="window.pwned=1"> [click](javascript:window.pwned=1) '
    '![out](http://example.org/a.png) <a href="http://example.org">x</a> </td></table><style>*{display:none}</style>'
)

PAGE = """# A title with <b>marks</b> (demo)

What this is about, in a sentence.

## The answer

**Task a** (n = 3): what is kept

| method | budget | kept |
| --- | --: | --: |
| snapkv | ≤16 | 0.93 [0.90, 0.96] |
| tova | 512 | 0.50 [0.40, 0.60] |
| random | &gt;512 | – |

- A sentence.

## What was tested

- **Model:** tiny

## Task a

### Score against budget

![Score against budget](figures/score.svg)

A caption. n = 3. [PNG](figures/score.png), [numbers (CSV)](figures/score.csv)

## Failures

| kind | answer |
| --- | --- |
| lost | ANSWER |

```
snakemake --cores all results/demo/report.md
```
"""


def written(folder: Path, answer: str = "fine", page: str = PAGE) -> str:
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    (folder / "figures/score.svg").write_text(SVG)
    (folder / "figures/score.png").write_bytes(b"not embedded")
    (folder / "figures/score.csv").write_text("budget,score\n16,0.5\n")
    (folder / "report.md").write_text(page.replace("ANSWER", answer), encoding="utf-8")
    build_html(folder / "report.md", folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_names_no_address_but_its_own_content(tmp_path: Path) -> None:
    page = written(tmp_path)
    addresses = re.findall(r'(?:src|href|action|srcset)="([^"]*)"', page)
    assert addresses
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "url(" not in page
    assert "@import" not in page
    assert "default-src 'none'" in page
    assert "unsafe-inline" not in page


def test_figures_and_their_numbers_are_inside(tmp_path: Path) -> None:
    page = written(tmp_path)
    images = re.findall(r'<img[^>]* src="data:image/svg\+xml;base64,([^"]+)"', page)
    assert [base64.b64decode(image).decode() for image in images] == [SVG]
    numbers = re.search(r'<a href="data:text/csv;base64,([^"]+)" download="score.csv">', page)
    assert numbers
    assert base64.b64decode(numbers[1]).decode() == "budget,score\n16,0.5\n"
    assert "score.png" not in page, "the figure is in the page already"


@pytest.mark.parametrize("answer", [HOSTILE, escape_text(HOSTILE)], ids=["raw", "escaped"])
def test_foreign_text_is_text(tmp_path: Path, answer: str) -> None:
    page = written(tmp_path, answer.replace("|", ""))
    plain = written(tmp_path / "plain")
    for mark in ("<script", "<img", "<style", "<a ", "<table"):
        assert page.count(mark) == plain.count(mark), mark
    assert "javascript:" not in re.sub(r">[^<]*<", "><", page)
    assert "onerror" not in re.sub(r">[^<]*<", "><", page)
    assert 'src="http' not in page


def test_a_link_to_the_web_is_followed_only_by_a_click_and_tells_nobody(tmp_path: Path) -> None:
    page = written(tmp_path, page=PAGE + "\nSee [the paper](https://arxiv.org/abs/2404.14469).\n")
    assert '<a href="https://arxiv.org/abs/2404.14469" rel="noopener noreferrer">the paper</a>' in page


@pytest.mark.parametrize("name", ["score.svg", "score.csv"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    written(tmp_path)
    (tmp_path / "figures" / name).unlink()
    with pytest.raises(UserError, match=rf"figures/{name}.*draw the figures again"):
        build_html(tmp_path / "report.md", tmp_path / "report.html")


def test_nothing_outside_the_reports_folder_is_embedded(tmp_path: Path) -> None:
    (tmp_path / "secret.csv").write_text("secret")
    page = PAGE + "\n[x](../secret.csv) [y](/etc/hostname.csv) ![z](file:///etc/passwd)\n"
    assert base64.b64encode(b"secret").decode() not in written(tmp_path / "report", page=page)


def test_a_report_without_title_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"report\.md does not exist"):
        build_html(tmp_path / "report.md", tmp_path / "report.html")
    (tmp_path / "report.md").write_text("no title\n")
    with pytest.raises(UserError, match="begins with its title"):
        build_html(tmp_path / "report.md", tmp_path / "report.html")


def test_equal_reports_give_equal_bytes(tmp_path: Path) -> None:
    assert written(tmp_path / "a") == written(tmp_path / "b")


def test_every_section_can_be_linked_and_no_anchor_is_doubled(tmp_path: Path) -> None:
    page = written(tmp_path, page=PAGE + "\n## Task a\n\nAgain.\n\n## Main\n\nA name that the page uses.\n")
    identifiers = re.findall(r' id="([^"]+)"', page)
    assert len(identifiers) == len(set(identifiers))
    assert {anchor for anchor in re.findall(r'href="#([^"]+)"', page)} <= set(identifiers)
    assert {"the-answer", "task-a", "task-a-1", "main-1"} <= set(identifiers)


def test_the_title_is_text_in_the_head_too(tmp_path: Path) -> None:
    page = written(tmp_path)
    assert "<title>A title with &lt;b&gt;marks&lt;/b&gt; (demo)</title>" in page
