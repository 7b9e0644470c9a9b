"""A repository on the Hugging Face Hub, through the Hub's own client: every call tried again where that may help, and
every failure one line.

huggingface_hub 2.4 itself tries six times, and obeys ``Retry-After``, where it lists trees, asks how to upload, and
uploads. It tries once where it reads or makes a repository, commits, reads or makes a tag, and checks a card: those are
tried again here, a commit by whoever looks at what became of it. It sets no time limit at all; there is one here.

Tokens are huggingface_hub's business: ``HF_TOKEN``, or what ``hf auth login`` stored. None is kept, written or said. An
error has no chain, because a failed request carries its headers.
"""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.errors import HubError
from pipeline.protocols import Progress
from pipeline.refusals import LOG_IN, Refusal, one_line, refusal_of

Kind = Literal["dataset", "model"]
Content = Path | bytes
T = TypeVar("T")

MAIN = "main"

WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)
"""Seconds between tries where the Hub asks for no other; what huggingface_hub waits."""
OVERTAKEN = {409, 412}
"""It is there already, or something else came first: a first try whose answer was lost, or somebody else."""
SILENCE = 600.0
"""Seconds without a byte after which a connection is given up."""
BATCH_FILES, BATCH_BYTES = 64, 1 << 30
"""Progress is told after so many files or bytes; of a batch huggingface_hub uploads several files at once."""


@dataclass(frozen=True, slots=True)
class Refs:
    """The commits that names stand for."""

    tags: Mapping[str, str]
    branches: Mapping[str, str]


def size_of(content: Content) -> int:
    return len(content) if isinstance(content, bytes) else content.stat().st_size


class Remote:
    """A repository on the Hub.

    Raises:
        HubError: from any method, where the Hub refuses or cannot be reached; at once, where there is no token.
    """

    def __init__(self, repo: str, kind: Kind, progress: Progress) -> None:
        from huggingface_hub import HfApi, constants, get_token

        if constants.is_offline_mode():
            raise HubError(f"nothing can be pushed to {repo!r} while HF_HUB_OFFLINE is set: unset it")
        self.repo, self.kind, self.progress = repo, kind, progress
        self._api = HfApi(library_name="ratchet")
        self.url = f"{self._api.endpoint}/{'datasets/' if kind == 'dataset' else ''}{repo}"
        self._sent = (0, 0)
        """Bytes uploaded, of how many."""
        self._plain = one_line
        token = self._call("logging in for", get_token)
        if token is None:
            raise HubError(f"no token to push to {repo!r} with: {LOG_IN}")
        self._plain = lambda text: one_line(text.replace(token, "…"))

    @contextmanager
    def session(self) -> Iterator[None]:
        """huggingface_hub shows no bars of its own, and its log gives away neither a token nor a signed address."""
        from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

        log, filtered, bars = logging.getLogger(HTTP_LOG), _Plain(self._plain), not are_progress_bars_disabled()
        log.addFilter(filtered)
        disable_progress_bars()
        try:
            yield
        finally:
            log.removeFilter(filtered)
            if bars:
                enable_progress_bars()

    def settle(self, private: bool) -> bool:
        """See that the repository is there, and not more open than was asked for. Whether it is private."""
        info = self._info()
        if info is None:
            try:
                self._call("making", lambda: self._api.create_repo(self.repo, repo_type=self.kind, private=private))
            except Refusal as refusal:
                if refusal.status not in OVERTAKEN:
                    raise
            info = self._info()
        if info is None:
            raise HubError(
                f"the Hub makes no {self.kind} {self.repo!r} because the name is taken, and shows none either: it is of"
                " another kind, or somebody else's; push under another name"
            )
        if private and not info.private:
            raise HubError(
                f"{self.repo!r} is public, and a private push was asked for: let it be public (--public), or make it"
                f" private at {self.url}/settings; nothing was sent"
            )
        return bool(info.private)

    def head(self, branch: str) -> str | None:
        """A branch's newest commit; None: the repository has none at all."""
        info = self._info(branch)
        if info is None:
            raise HubError(f"the Hub has no {self.kind} {self.repo!r} with a branch {branch!r} any more (404)")
        return info.sha if info.sha is None else str(info.sha)

    def tree(self, commit: str) -> Mapping[str, Any]:
        """The Hub's record of each file, a ``RepoFile``, by path."""
        from huggingface_hub.hf_api import RepoFile

        def files() -> dict[str, Any]:
            entries = self._api.list_repo_tree(self.repo, recursive=True, revision=commit, repo_type=self.kind)
            return {entry.path: entry for entry in entries if isinstance(entry, RepoFile)}

        return self._call("listing", files, waits=())

    def read(self, path: str, commit: str) -> str:
        """A small text file."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_backoff

        def text() -> str:
            address = hf_hub_url(self.repo, path, repo_type=self.kind, revision=commit, endpoint=self._api.endpoint)
            response = http_backoff("GET", address, headers=build_hf_headers())
            hf_raise_for_status(response)
            return str(response.text)

        return self._call("reading", text, waits=())

    def refs(self) -> Refs:
        refs = self._call("reading the tags of", lambda: self._api.list_repo_refs(self.repo, repo_type=self.kind))
        tags, branches = ({each.name: str(each.target_commit) for each in of} for of in (refs.tags, refs.branches))
        return Refs(tags, branches)

    def make_branch(self, branch: str) -> None:
        """From ``main``'s head, unless there is such a branch."""
        api, repo, kind = self._api, self.repo, self.kind
        self._call("branching", lambda: api.create_branch(repo, branch=branch, repo_type=kind, exist_ok=True))

    def drop_branch(self, branch: str) -> None:
        api, repo, kind = self._api, self.repo, self.kind
        self._gone("dropping a branch of", lambda: api.delete_branch(repo, branch=branch, repo_type=kind))

    def put_tag(self, tag: str, commit: str, held: str | None) -> None:
        """Let ``tag``, which names ``held``, name ``commit``."""
        api, repo, kind = self._api, self.repo, self.kind
        if held == commit:
            return
        if held is not None:
            self._gone("moving a tag of", lambda: api.delete_tag(repo, tag=tag, repo_type=kind))
        try:
            self._call("tagging", lambda: api.create_tag(repo, tag=tag, revision=commit, repo_type=kind))
        except Refusal as refusal:
            if refusal.status not in OVERTAKEN or self.refs().tags.get(tag) != commit:
                raise

    def commit(
        self, branch: str, files: Mapping[str, Content], lost: Sequence[str], message: str, parent: str | None
    ) -> str:
        """One commit on ``branch`` that adds ``files`` and deletes ``lost``, if it is still at ``parent``."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        self._upload(branch, additions, sum(size_of(content) for content in files.values()))
        operations = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in lost)]
        made = self._call("committing to", lambda: self._api.create_commit(
            self.repo, operations, commit_message=message, repo_type=self.kind, revision=branch, parent_commit=parent,
        ), waits=())  # fmt: skip
        return str(made.oid)

    def _upload(self, branch: str, additions: Sequence[Any], total: int) -> None:
        def upload() -> None:
            self._api.preupload_lfs_files(self.repo, batch, repo_type=self.kind, revision=branch, free_memory=False)

        self._sent = (0, total)
        for batch in _batches(additions):
            self.progress(*self._sent, batch[0].path_in_repo)
            self._call("uploading to", upload, waits=())
            self._sent = (self._sent[0] + sum(each.upload_info.size for each in batch), total)
        self.progress(*self._sent, "committing")

    def _gone(self, doing: str, delete: Callable[[], None]) -> None:
        try:
            self._call(doing, delete)
        except Refusal as refusal:
            if refusal.status != 404:  # else a first try's answer was lost
                raise

    def _info(self, branch: str = MAIN) -> Any:
        try:
            return self._call("reading", lambda: self._api.repo_info(self.repo, revision=branch, repo_type=self.kind))
        except Refusal as refusal:
            if refusal.status == 404:
                return None
            raise

    def _call(self, doing: str, call: Callable[[], T], waits: Sequence[float] | None = None) -> T:
        """What ``call`` gives; tried again after each of ``waits`` (default: WAITS) where that may help."""
        from huggingface_hub.utils import get_session

        left = list(WAITS if waits is None else waits)
        while True:
            get_session().timeout = SILENCE  # each time: after a failed connection there is a new session, without
            try:
                return call()
            except Exception as error:  # whatever the library lets out; raised again below, without a chain
                refusal = refusal_of(f"{doing} {self.kind} {self.repo!r}", error, self._plain)
            if not refusal.passing or not left:
                raise refusal
            self.wait(left.pop(0), refusal)

    def wait(self, seconds: float, refusal: Refusal) -> None:
        seconds = max(seconds, refusal.pause)
        self.progress(*self._sent, f"{refusal}; trying again in {seconds:.0f} s")
        time.sleep(seconds)


HTTP_LOG = "huggingface_hub.utils._http"
"""Where the library says of every try that failed where it was sent."""


class _Plain(logging.Filter):
    def __init__(self, plain: Callable[[str], str]) -> None:
        super().__init__()
        self._say = plain

    def filter(self, record: logging.LogRecord) -> bool:
        record.msg, record.args = self._say(record.getMessage()), ()
        return True


def _batches(additions: Sequence[Any]) -> Iterator[list[Any]]:
    batch: list[Any] = []
    size = 0
    for addition in additions:
        batch.append(addition)
        size += addition.upload_info.size
        if len(batch) == BATCH_FILES or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
