"""Find entries by the ways to write their names, without a walk through all entries."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from overpaint.models.files.lora.keys import strip_brackets
from overpaint.models.library.entry import LibraryEntry, strip_suffix


class NameTable:
    """The entries of a library by name, spelling, title, and the embeddings in them.

    Attributes:
        entries: All entries, in the order in which they count.
    """

    def __init__(self, entries: Iterable[LibraryEntry]):
        """Make the table of some entries."""
        self.entries = tuple(entries)
        self._by_name = _group(self.entries, lambda entry: (entry.name,))
        self._by_spelling = _group(self.entries, lambda entry: entry.spellings)
        self._by_title = _group(self.entries, lambda entry: entry.titles)
        self._by_bundle = _group(self.entries, lambda e: set(map(strip_brackets, e.embeddings)))

    def list_matches(self, name: str) -> Iterator[Sequence[LibraryEntry]]:
        """Yield the entries with a name, then those with its spelling, then with its title."""
        yield self._by_name.get(name, ())
        yield self._by_spelling.get(strip_suffix(name).casefold(), ())
        yield self._by_title.get(name.casefold(), ())

    def list_bundles(self, name: str) -> Sequence[LibraryEntry]:
        """Return the LoRAs that hold an embedding of a name."""
        return self._by_bundle.get(name, ())


def _group(
    entries: Iterable[LibraryEntry], list_keys: Callable[[LibraryEntry], Iterable[str]]
) -> Mapping[str, Sequence[LibraryEntry]]:
    found: dict[str, list[LibraryEntry]] = defaultdict(list)
    for entry in entries:
        for key in list_keys(entry):
            found[key].append(entry)
    return dict(found)
