"""With ten thousand orders every page is whole, and no larger than a page may be. How fast they are: tests/api/page/many.py."""

from pathlib import Path

from tests.api.page.many import crowded, targets
from tests.api.page.stage import Page

MAX_PAGE_BYTES = 100 << 10


def test_a_number_that_no_row_has_is_refused_in_words(tmp_path: Path) -> None:
    with crowded(tmp_path, 60) as stage:
        (line, *_) = stage.house.ledger.newest_jobs(frozenset(), limit=1)
        pages = "/refusals?before=", "/datasets?before=", f"/orders/{line.order_id}?first="
        told = {
            stage.page(f"{page}{number}").status_code for page in pages for number in (1 << 63, 1 << 70, -1)
        }

    assert told == {400}


def test_no_page_is_larger_than_100_kib_with_ten_thousand_orders(tmp_path: Path) -> None:
    with crowded(tmp_path) as stage:
        answers = {target: stage.page(target) for target in targets(stage)}

    assert {target: answer.status_code for target, answer in answers.items()} == dict.fromkeys(answers, 200)
    assert {
        target: len(answer.content)
        for target, answer in answers.items()
        if len(answer.content) > MAX_PAGE_BYTES
    } == {}
    overview = " ".join(Page(answers["/"].text).text.split())
    assert "9940 done" in overview.replace(",", "")
    assert answers["/orders"].text.count('class="chip') == 15
