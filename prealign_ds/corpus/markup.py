"""Prose out of HTML and Markdown: the words stay, the markup goes, a paragraph becomes one line."""

from __future__ import annotations

import re
from html.parser import HTMLParser

_INVISIBLE = {"script", "style", "title", "template", "noscript"}
_LINES = {"br", "li", "tr", "dt", "dd", "option", "caption"}
_BLOCKS = (
    "address article aside blockquote body details div dl fieldset figcaption figure footer form h1 h2 h3 h4 h5 h6 "
    "header hr main nav ol p pre section summary table ul"
)
_BREAKS = {tag: "\n" for tag in _LINES} | {tag: "\n\n" for tag in _BLOCKS.split()}


class _Stripper(HTMLParser):
    """Collects the visible text of a page, with line breaks where its blocks begin and end."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.pieces: list[str] = []
        self._hidden = self._verbatim = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._hidden += tag in _INVISIBLE
        self._verbatim += tag == "pre"
        self.pieces.append(_BREAKS.get(tag, " " if tag in {"td", "th"} else ""))

    def handle_endtag(self, tag: str) -> None:
        if tag in _INVISIBLE:
            self._hidden = max(0, self._hidden - 1)
        if tag == "pre":
            self._verbatim = max(0, self._verbatim - 1)
        self.pieces.append(_BREAKS.get(tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        # `<title/>` is a start tag in HTML, but nobody who writes it means to hide the rest of the page.
        self.pieces.append(_BREAKS.get(tag, ""))

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.pieces.append(data if self._verbatim else re.sub(r"\s+", " ", data))


def html_text(page: str) -> str:
    """The visible text of an HTML page; blocks are separated by line breaks."""
    stripper = _Stripper()
    stripper.feed(page)
    stripper.close()
    text = re.sub(r"[^\S\n]+\n", "\n", "".join(stripper.pieces))
    text = re.sub(r"(?<=\S)[^\S\n]{2,}", " ", text)
    text = re.sub(r"(?m)^ (?=\S)", "", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


_RULE = re.compile(r"\s*([-*_=]\s*){3,}")
_QUOTE = re.compile(r"\s*(>\s?)+")
_HEADING = re.compile(r"\s{0,3}#{1,6}(?:\s+(.*?))?\s*#*\s*")
_ITEM = re.compile(r"\s*([-*+•]|\d+[.)])\s")
_HARD_BREAK = re.compile(r"(  |\\)$")
_LINK = re.compile(r"\[([^\[\]]*)\]\((?:[^()]|\([^()]*\))*\)")
_INLINE = [
    # A picture is not text; its caption may hold a link's brackets.
    (re.compile(r"!\[[^\]]*\]\([^()\s]*(?:\s+\"[^\"]*\")?\)"), ""),
    (_LINK, r"\1"),
    (re.compile(r"\[([^\[\]]+)\]\[[^\[\]]*\]"), r"\1"),
    (re.compile(r"<((?:https?|mailto):[^<>\s]+)>"), r"\1"),
    # Converters leave a space behind emphasis at the end of a line: `_word_ )`.
    (re.compile(r"(?<=\S)(?:\*{1,3}|_{1,3})\s+(?=[,.;:!?)\]])"), ""),
    # Emphasis marks touch a word on one side only: `snake_case` and `2 * 3` are none.
    (re.compile(r"(?<![^\W_])_{1,3}(?=\S)|(?<=\S)_{1,3}(?![^\W_])"), ""),
    (re.compile(r"(?<!\w)\*{1,3}(?=\S)|(?<=\S)\*{1,3}(?!\w)"), ""),
    (re.compile(r"\\([\\`*_{}\[\]()#+\-.!>~|])"), r"\1"),
]


def markdown_text(page: str) -> str:
    """The text of a Markdown page: paragraphs of one line each, headings and list items on lines of their own."""
    blocks = ("\n".join(_joined(paragraph)) for paragraph in re.split(r"\n\s*\n", page))
    return "\n\n".join(block for block in blocks if block)


def _joined(paragraph: str) -> list[str]:
    """The lines of a paragraph, joined where the writer only wrapped them."""
    rows: list[str] = []
    open_row = False
    # A label that was wrapped before "3. " must not be taken for the beginning of a list item.
    for line in _LINK.sub(lambda link: link[0].replace("\n", " "), paragraph).split("\n"):
        if _RULE.fullmatch(line):
            open_row = False
            continue
        line = _QUOTE.sub("", line, count=1) if _QUOTE.match(line) else line
        heading = _HEADING.fullmatch(line)
        text = (heading[1] or "") if heading else line.strip()
        if open_row and not heading and not _ITEM.match(line):
            rows[-1] += f" {text}"
        else:
            rows.append(text)
        open_row = not heading and not _HARD_BREAK.search(line)
    return [plain for row in rows if (plain := _plain(row))]


def _plain(text: str) -> str:
    for pattern, replacement in _INLINE:
        text = pattern.sub(replacement, text)
    return text.strip()
