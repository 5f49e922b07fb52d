"""Files and datasets of the Hugging Face hub: whole and checked, or one line that says why not.

Where nothing answers, the hub's client tries again for half a minute, and it compares no checksum. So one request asks
first whether the hub has a file, and what comes is compared with the sha256 that the hub names.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kv_transition.errors import UserError
from kv_transition.files import sha256_file

#: Long enough for a slow line, short enough to notice a missing one.
CONNECTION_TIMEOUT_S = 5

#: How often a download is begun that the hub's client does not resume by itself.
DOWNLOAD_ATTEMPTS = 3

#: The client starts from nothing where a server cannot resume; after this many times a file's size it is enough.
MOST_SIZES_RECEIVED = 3

OTHERWISE = "or download the task files elsewhere and set dataset.path to their folder"


@dataclass(frozen=True)
class HubRepository:
    """A dataset repository on the hub, at a commit, branch or tag; None is the newest commit."""

    repo_id: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo_id} (revision {self.revision or 'newest'})"

    def file(self, filename: str, sha256: str | None = None) -> Path | None:
        """A file of the repository, in the hub's cache; None when the repository has no such file.

        Nothing is asked of the hub when the file of a full commit hash is in the cache, or HF_HUB_OFFLINE is set.

        Parameters
        ----------
        sha256 : what the file must have, beside the sha256 that the hub names for large files.

        Raises
        ------
        UserError
            When repository or revision are missing or closed, the hub cannot be reached, the download breaks off
            again and again, or a second download still has another sha256.
        """
        from huggingface_hub import constants

        offline = bool(constants.HF_HUB_OFFLINE)
        path = self._cached(filename) if offline or _is_commit(self.revision) else None
        for again in (False, True):
            etag = None
            if path is None:
                about = None if offline else self._describe(filename)
                if about is None:
                    return None
                etag = about.etag
                self._compare(filename, _as_sha256(etag), sha256=sha256, named=None)
                path = self._download(filename, force=again)
            named = _as_sha256(etag) or _as_sha256(_blob(path).name)
            with self._told("cannot be read in the hub's cache"):
                found = sha256_file(path)
            # A file that is as the hub names it would come again, whatever dataset.sha256 says.
            damaged = found != (named or (sha256 or found).lower())
            if damaged and not offline:
                _forget(path)
            if offline or again or not damaged:
                self._compare(filename, found, sha256, named)
                return path
            path = None
        raise AssertionError("the second round returns or raises")

    def configurations(self) -> list[str]:
        """Names of the configurations that `datasets` sees in the repository.

        Raises
        ------
        UserError
            When the hub cannot be asked: the cache knows only what has been loaded before.
        """
        import datasets
        from huggingface_hub import constants

        if constants.HF_HUB_OFFLINE:
            raise UserError(
                f"dataset.hub_id: {self} is not in the hub's cache as one file, and its tasks cannot be asked of the hub; "
                f"unset HF_HUB_OFFLINE, {OTHERWISE}"
            )
        with self._told("cannot be loaded"):
            return list(datasets.get_dataset_config_names(self.repo_id, revision=self.revision))

    def rows(self, configuration: str) -> list[dict[str, Any]]:
        """Rows of a configuration as `datasets` loads them: of its split "test", else of its only split.

        Raises
        ------
        UserError
            When there is no such configuration or split, naming those that there are, and as :meth:`file` does.
        """
        from huggingface_hub import constants

        if not constants.HF_HUB_OFFLINE:
            there = self.configurations()
            if configuration not in there:
                raise UserError(
                    f"dataset.tasks: {self} has no {configuration} (case counts); it has {', '.join(sorted(there))}"
                )
        import datasets

        with self._told("cannot be loaded"):
            builder = datasets.load_dataset_builder(self.repo_id, name=configuration, revision=self.revision)
            files = builder.config.data_files or {}
            self._check_commit(builder.hash, from_hub=bool(files))
            split = self._split(configuration, [str(name) for name in files or builder.info.splits or ()])
            for address in files.get(split, ()):
                self._check_source(str(address))
            builder.download_and_prepare()
            return list(builder.as_dataset(split=split))

    def _check_commit(self, commit: str | None, from_hub: bool) -> None:
        """Fail where `datasets` falls back, without a word, to whatever commit it loaded last."""
        from huggingface_hub import constants

        if from_hub:
            return
        if not constants.HF_HUB_OFFLINE or self.revision not in (None, commit):
            raise UserError(
                f"dataset.revision: {self} cannot be asked of the hub, and the cache has the commit {commit}; try again "
                f"online, set dataset.revision to that commit and HF_HUB_OFFLINE=1, {OTHERWISE}"
            )

    def _split(self, configuration: str, splits: Sequence[str]) -> str:
        if "test" in splits:
            return "test"
        if len(splits) == 1:
            return splits[0]
        raise UserError(
            f"dataset.hub_id: {self}, {configuration}, has no split test; it has {', '.join(splits) or 'none'}; "
            "download the one you mean and set dataset.path"
        )

    def _check_source(self, address: str) -> None:
        """Bring a data file into the hub's cache, checked; `datasets` then takes it from there."""
        start = f"hf://datasets/{self.repo_id}@"
        if address.startswith(start):
            commit, _, filename = address.removeprefix(start).partition("/")
            HubRepository(self.repo_id, commit).file(filename)

    def _cached(self, filename: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache

        with self._told("cannot be found in the cache"):
            path = try_to_load_from_cache(self.repo_id, filename, revision=self.revision, repo_type="dataset")
        return Path(path) if isinstance(path, str) else None

    def _describe(self, filename: str) -> Any:
        """What the hub says of a file (etag, size, commit), or None if the repository has no such file."""
        from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        with self._told(f"cannot be reached at {constants.ENDPOINT}"):
            address = hf_hub_url(self.repo_id, filename, repo_type="dataset", revision=self.revision)
            try:
                about = get_hf_file_metadata(address, timeout=CONNECTION_TIMEOUT_S)
            except EntryNotFoundError:
                return None
        if not about.commit_hash or not about.etag:
            raise UserError(
                f"dataset.hub_id: {constants.ENDPOINT} answers, but not as the hub does; check HF_ENDPOINT and the proxy"
            )
        return about

    def _download(self, filename: str, force: bool) -> Path:
        from httpx import ReadError
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

        with self._told(f"breaks off while {filename} is downloaded"):
            for attempt in range(1, DOWNLOAD_ATTEMPTS + 1):
                try:
                    return Path(
                        hf_hub_download(
                            self.repo_id,
                            filename,
                            repo_type="dataset",
                            revision=self.revision,
                            force_download=force,
                            etag_timeout=CONNECTION_TIMEOUT_S,
                            tqdm_class=_bounded_progress(filename),
                        )
                    )
                # Other breaks have been resumed by the client, five times without a new byte.
                except (ReadError, OSError, RuntimeError) as error:
                    final = isinstance(error, LocalEntryNotFoundError) or (
                        isinstance(error, HfHubHTTPError) and error.response.status_code < 500
                    )
                    if final or attempt == DOWNLOAD_ATTEMPTS:
                        raise
                    time.sleep(1)
        raise AssertionError("the last attempt returns or raises")

    def _compare(self, filename: str, found: str | None, sha256: str | None, named: str | None) -> None:
        for wanted, by in ((named, "the hub names"), (sha256, "dataset.sha256 names")):
            if found and wanted and found != wanted.lower():
                raise UserError(
                    f"dataset.sha256: {filename} of {self} has the sha256 {found}, {by} {wanted.lower()}; "
                    "check dataset.revision, dataset.sha256 and the line to the hub"
                )

    @contextmanager
    def _told(self, otherwise: str) -> Iterator[None]:
        """Raise every error of the hub's client as one line; `otherwise` says what failed where the type does not."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:  # the client and `datasets` raise dozens of types
            raise UserError(self._reason(error, otherwise)) from None

    def _reason(self, error: Exception, otherwise: str) -> str:
        from huggingface_hub import constants
        from huggingface_hub import errors as hub

        status = error.response.status_code if isinstance(error, hub.HfHubHTTPError) else None
        if isinstance(error, hub.GatedRepoError):
            return f"dataset.hub_id: {self.repo_id} is gated; accept its terms on the hub and set HF_TOKEN, {OTHERWISE}"
        if isinstance(error, hub.RevisionNotFoundError):
            return f"dataset.revision: {self.repo_id} has no revision {self.revision}; name a commit, branch or tag of it"
        if isinstance(error, hub.RepositoryNotFoundError):
            return (
                f"dataset.hub_id: the hub has no dataset {self.repo_id} that you may read; check owner/name, set "
                "HF_TOKEN if it is private, or name a folder that exists"
            )
        if status in (401, 403):
            return f"dataset.hub_id: the hub refuses {self} ({status}); check HF_TOKEN, {OTHERWISE}"
        if status is not None:
            return f"dataset.hub_id: the hub answers {status} for {self}; try again later, {OTHERWISE}"
        if isinstance(error, hub.HFValidationError):
            return f"dataset.hub_id: {self.repo_id} is no id of the hub; write owner/name"
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if constants.HF_HUB_OFFLINE:
            return f"dataset.hub_id: {self} is not in the hub's cache ({reason}); unset HF_HUB_OFFLINE, {OTHERWISE}"
        return (
            f"dataset.hub_id: {self} {otherwise} ({reason}); try again, set HF_HUB_OFFLINE=1 to use what is in the "
            f"hub's cache, {OTHERWISE}"
        )


def _is_commit(revision: str | None) -> bool:
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def _as_sha256(etag: str | None) -> str | None:
    """The etag of a large file is its sha256; that of a small one is something else, and shorter."""
    return etag if etag and re.fullmatch(r"[0-9a-f]{64}", etag) else None


def _blob(path: Path) -> Path:
    """Where a file of the cache lies: a link leads to blobs/<etag>, unless the file system has no links."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _forget(path: Path) -> None:
    """Remove a file from the hub's cache."""
    blob = _blob(path)
    path.unlink(missing_ok=True)
    blob.unlink(missing_ok=True)


def _bounded_progress(filename: str) -> Any:
    """Class of a progress bar that ends a download which starts from nothing again and again."""
    from huggingface_hub.utils.tqdm import tqdm

    class Progress(tqdm):
        received = 0

        def update(self, n: float | None = 1) -> bool | None:
            self.received += max(int(n or 0), 0)
            if self.total and self.received > MOST_SIZES_RECEIVED * self.total:
                raise UserError(
                    f"dataset.hub_id: the download of {filename} is cut off and starts from nothing again and again; "
                    f"try another line, {OTHERWISE}"
                )
            return bool(super().update(n))

    return Progress
