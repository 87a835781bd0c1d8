"""Reads a page as a browser would: nesting, ids, addresses, marks of trials, text."""

from html.parser import HTMLParser

VOID = {"meta", "img", "input", "br", "link"}


class Page(HTMLParser):
    """A parsed page; raises AssertionError where tags are not closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []
        self.marks: dict[str, list[str]] = {}  # class of the drawing: numbers of its marks
        self.words: dict[str, str] = {}  # id of the section: its text
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.rows = 0  # of the table of trials
        self._drawing = self._section = ""
        self.feed(text)
        self.close()
        assert not self.open, f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.elements.append((tag, given))
        if tag not in VOID:
            self.open.append(tag)
        if "id" in given:
            self.ids.append(given["id"])
        if tag == "section":
            self._section = given["id"]
        self.addresses += [given[name] for name in ("src", "href", "srcset") if name in given]
        if tag == "svg":
            self._drawing = given.get("class", "")
        if "data-n" in given:
            if tag == "tr":
                self.rows += 1
            else:
                self.marks.setdefault(self._drawing, []).append(given["data-n"])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "script"):
            text = data.replace("\N{NO-BREAK SPACE}", " ")
            self.words[self._section] = self.words.get(self._section, "") + text + " "

    def drawn(self, *classes: str) -> list[str]:
        """Return the numbers of the marks in the drawings with all these classes."""
        found = [numbers for css, numbers in self.marks.items() if {*classes} <= {*css.split()}]
        return [number for numbers in found for number in numbers]
