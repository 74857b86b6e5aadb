"""Text as it was before a program wrote it out: escapes of JSON and of Python's strings, HTML's character references and line breaks."""

import html
import re

_HEX = "[0-9a-fA-F]"
_BACKSLASHES = re.compile(rf"(?:\\+u{_HEX}{{4}})+|\\+(?:x{_HEX}{{2}}|U00(?:0{_HEX}|10){_HEX}{{4}}|[bfnrt]?)")
"""Escapes however often they were escaped themselves, and backslashes before anything else, such as a quotation mark."""
_UNITS = re.compile(rf"u({_HEX}{{4}})")
_REFERENCE = re.compile(rf"&(?:amp;)*(#[0-9]{{1,7}}|#[xX]{_HEX}{{1,6}}|[a-zA-Z][a-zA-Z0-9]{{1,31}});")
_LINE_BREAK = re.compile(r"<br\s*/?>", re.IGNORECASE)
_CONTROLS = {"n": "\n", "r": "\r", "t": "\t", "b": "\b", "f": "\f"}


def unescaped(text: str) -> str:
    r"""Return a text whose characters stand for themselves: of `\u00fc`, `\\u00fc`, `&#252;` and `&amp;uuml;` it is ü, of `\"` the mark.

    A text that held backslashes of its own loses them, whether or not it was written out: of `\frac` and `\\frac` the same is left, so
    that such texts are alike afterwards. Time is proportional to the characters.
    """
    if "\\" in text:
        text = _BACKSLASHES.sub(_without_backslashes, text)
    if "&" in text:
        text = _REFERENCE.sub(lambda reference: html.unescape(f"&{reference[1]};"), text)
    return _LINE_BREAK.sub("\n", text) if "<" in text else text


def _without_backslashes(escape: re.Match[str]) -> str:
    written = escape[0].lstrip("\\")
    if written[:1] == "u":
        # JSON writes characters beyond four digits as two units of UTF-16.
        return bytes.fromhex("".join(_UNITS.findall(written))).decode("utf-16-be", errors="replace")
    return chr(int(written[1:], 16)) if written[:1] in ("x", "U") else _CONTROLS.get(written, "")
