"""The words of the documents: British spelling throughout, and no word that praises instead of saying what is so."""

import re

import pytest

from tests.test_docs import Document, every_document

AMERICAN = re.compile(
    r"\b(\w*colors?|\w*behaviors?|honors?|favors?|favorites?|neighbors?|labors?|centers?|centered|gray|catalogs?|fulfill"
    r"|defense|offense|artifacts?|judgment|(?!sizes?\b|prizes?\b|seizes?\b)\w{2,}(?:ize|izes|izing|yze|yzed|yzing)"
    r"|(?!(?:re|over|un)?sized\b|seized\b)\w{2,}ized|\w{2,}izations?)\b",
    re.IGNORECASE,
)
PRAISE = re.compile(
    r"\b(best|fastest|easiest|safest|most secure|blazing\w*|world-class|cutting-edge|seamless\w*|robust\w*|powerful|simply"
    r"|easy|easily|effortless\w*|unbreakable|perfect\w*|amazing|state of the art|state-of-the-art|ultimate|industry-leading"
    r"|revolutionary|military-grade|bulletproof|obviously|of course|battle-tested|enterprise-grade)\b",
    re.IGNORECASE,
)
NAMES = {"Authorization", "RLIMIT_FSIZE"}  # of others: a header of HTTP, a limit of the kernel


def words_of(page: Document) -> str:
    """The prose without what stands between backticks, the targets of links and the tags of HTML."""
    return re.sub(r"`[^`\n]*`|\]\([^)]*\)|<[a-z/][^>]*>", " ", page.prose)


def american_in(text: str) -> set[str]:
    return {found[0] for found in AMERICAN.finditer(text)} - NAMES


def test_american_words_and_praise_are_found_and_others_are_not() -> None:
    assert american_in(
        "a colored gray behavior is organized, and sized: the sizes of a prize; Authorization"
    ) == {
        "gray",
        "behavior",
        "organized",
    }
    assert [found[0] for found in PRAISE.finditer("a robust, powerful thing that works")] == [
        "robust",
        "powerful",
    ]


@every_document
def test_a_page_keeps_to_british_spelling(page: Document) -> None:
    assert american_in(words_of(page)) == set()


@every_document
def test_a_page_praises_nothing(page: Document) -> None:
    assert [found[0] for found in PRAISE.finditer(words_of(page))] == []


@pytest.mark.parametrize("word", ["would be nice", "TODO", "coming soon", "TBD"])
@every_document
def test_a_page_leaves_nothing_to_be_written(page: Document, word: str) -> None:
    assert word not in words_of(page)
