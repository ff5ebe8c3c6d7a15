"""The corpus folder: which files it holds, and what they say.

Belongs here: finding and reading documentation files. Does not belong here: parsing and chunking
(`serving/pipeline/chunking`).
"""

import os
from dataclasses import dataclass
from pathlib import Path

from serving.errors import InvalidInputError
from serving.hashing import content_hash, file_sha256
from serving.pipeline.chunking import Page, parse_page


@dataclass(frozen=True, kw_only=True)
class CorpusFolder:
    """A folder of Markdown or MDX pages."""

    path: Path
    include: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    url: str

    def list_files(self) -> list[Path]:
        """Return the matching files, sorted by path; hidden files and node_modules are left out.

        A pattern of `exclude` that matches a folder leaves out everything below it.

        Raises:
            InvalidInputError: the folder is missing, nothing in it matches, or the name of what
                does is not UTF-8: no table, URL or citation can hold it.
        """
        if not self.path.is_dir():
            raise InvalidInputError(
                f"reading the corpus at {self.path}",
                expected="a folder of MDX or Markdown pages",
                found="a file" if self.path.exists() else "nothing there",
                next_step="set product.corpus.path in the config (relative to the config file)",
            )
        matches = {f for pattern in self.include for f in self.path.glob(pattern) if f.is_file()}
        excluded = {f for pattern in self.exclude for f in self.path.glob(pattern)}
        files = sorted(
            f
            for f in matches
            if not _is_ignored(f.relative_to(self.path)) and excluded.isdisjoint([f, *f.parents])
        )
        if not files:
            but_not = f" but not {list(self.exclude)}" if self.exclude else ""
            raise InvalidInputError(
                f"reading the corpus at {self.path}",
                expected=f"files matching {list(self.include)}{but_not}",
                found="0 files",
                next_step="set product.corpus.include or product.corpus.exclude in the config",
            )
        for file in files:
            _check_name(file.relative_to(self.path))
        return files

    def fingerprint(self) -> str:
        """Return the identity of all matching files, names and bytes."""
        return content_hash(
            [(f.relative_to(self.path).as_posix(), file_sha256(f)) for f in self.list_files()],
            self.url,
        )

    def read_pages(self) -> list[Page]:
        """Parse every page.

        Raises:
            InvalidInputError: a page is empty, is not UTF-8, or has broken frontmatter.
        """
        return [self._read_page(file) for file in self.list_files()]

    def _read_page(self, file: Path) -> Page:
        relative = file.relative_to(self.path).as_posix()
        try:
            source = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise InvalidInputError(
                f"reading the page {relative}",
                expected="UTF-8 text",
                found=f"byte {error.object[error.start]:#x} at offset {error.start}",
                next_step="convert the file to UTF-8, or leave it out with product.corpus.exclude",
            ) from error
        return parse_page(relative, source, url_template=self.url)


def _is_ignored(relative: Path) -> bool:
    return any(part.startswith(".") or part == "node_modules" for part in relative.parts)


def _check_name(relative: Path) -> None:
    try:
        relative.as_posix().encode()
    except UnicodeEncodeError as error:
        raise InvalidInputError(
            "listing the pages of the corpus",
            expected="file names in UTF-8",
            found=repr(os.fsencode(relative)),
            next_step="rename it, or leave it out with product.corpus.exclude, where a ? in a "
            "pattern stands for such a byte",
        ) from error
