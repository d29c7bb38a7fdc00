"""Text that does not control the terminal that shows it."""

import re

CONTROL_CHARACTERS = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""Characters that a terminal obeys, that turn the direction of text, or that no file can encode.

Tabs and line ends are not among them.
"""


def escape_control_characters(text: object) -> str:
    """Return text in which control characters are visible as escape sequences of Python.

    Names, metadata and messages come from files of other people. A terminal would obey them: change
    its title, its colors or the clipboard.
    """
    return CONTROL_CHARACTERS.sub(lambda found: ascii(found[0])[1:-1], str(text))
