"""The day that a chat template takes for today: an adapter is asked with the prompts that it has learnt, whenever that is."""

from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from clusterlora.chat.template import writes_date
from clusterlora.durable import make_folder, write_durably
from clusterlora.errors import BadData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_FILE = ".template_date"  # no job has such a name


class TemplateDays:
    """The days of folders of adapters, each that on which the first adapter there was trained; none where the template writes no date."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase") -> None:
        self._tokenizer = tokenizer
        self._new: dict[Path, str] = {}

    def of(self, folder: Path) -> str | None:
        """Return a folder's day as YYYY-MM-DD: today where nothing has been trained there.

        Raises:
            ModelUnavailable: as `ChatTemplate`.
            BadData: the file that keeps the day holds none.
        """
        if not self._writes_date:
            return None
        file = _file(folder)
        if file.is_file():
            try:
                return date.fromisoformat(file.read_text(encoding="utf-8").strip()).isoformat()
            except ValueError as error:
                raise BadData(
                    f"{file} holds no day; write that on which the first adapter of {folder} was trained into it, as YYYY-MM-DD"
                ) from error
        return self._new.setdefault(folder, datetime.now(UTC).date().isoformat())

    def keep(self) -> None:
        """Write down the days that were told and stand nowhere."""
        for folder, day in self._new.items():
            make_folder(_file(folder).parent)
            write_durably(_file(folder), day.encode())

    @cached_property
    def _writes_date(self) -> bool:
        return writes_date(self._tokenizer)


def _file(folder: Path) -> Path:
    return folder / ".training" / _FILE
