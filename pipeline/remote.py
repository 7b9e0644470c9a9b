"""A repository on the Hugging Face Hub, through the Hub's own client: every call tried again where that may help, and
every failure one line.

huggingface_hub 2.4 itself tries six times, and obeys ``Retry-After``, where it lists trees, asks how to upload, and
uploads. It tries once where it reads or makes a repository, commits, reads or makes a tag, and checks a card: those are
tried again here, a commit by whoever looks at what became of it. It sets no time limit at all; there is one here.

Tokens are huggingface_hub's business: ``HF_TOKEN``, or what ``hf auth login`` stored. None is kept, written or said. An
error has no chain, because a failed request carries its headers.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeVar

from pipeline.calls.limits import retry_after
from pipeline.errors import HubError
from pipeline.protocols import Progress

Kind = Literal["dataset", "model"]
Content = Path | bytes
T = TypeVar("T")

WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)
"""Seconds between tries where the Hub asks for no other; what huggingface_hub waits."""
PASSING = {408, 429, 500, 502, 503, 504}
OVERTAKEN = {409, 412}
"""It is there already, or something else came first: a first try whose answer was lost, or somebody else."""
SILENCE = 600.0
"""Seconds without a byte after which a connection is given up."""
BATCH_FILES, BATCH_BYTES = 64, 1 << 30
"""Progress is told after so many files or bytes; of a batch huggingface_hub uploads several files at once."""
LOG_IN = "set HF_TOKEN, or run `hf auth login`"
LATER = "push again later: what has arrived is not sent again"


class Refusal(HubError):
    """One call of the Hub's client that failed. Holds no request, no response and no other exception."""

    def __init__(self, message: str, status: int | None = None, passing: bool = False, pause: float = 0.0) -> None:
        super().__init__(message)
        self.status, self.passing = status, passing
        self.pause = pause
        """Seconds the Hub asks to wait."""


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
        self._plain = _one_line
        token = self._call("logging in for", get_token)
        if token is None:
            raise HubError(f"no token to push to {repo!r} with: {LOG_IN}")
        self._plain = lambda text: _one_line(text.replace(token, "…"))

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
                f"{self.repo!r} is public, and a private push was asked for: ask for a public one, or make it private"
                f" at {self.url}/settings; nothing was sent"
            )
        return bool(info.private)

    def head(self) -> str | None:
        """The newest commit on ``main``; None: there is none."""
        info = self._info()
        if info is None:
            raise HubError(f"the Hub has no {self.kind} {self.repo!r} any more (404)")
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

    def tagged(self, tag: str) -> str | None:
        """The commit the tag names."""
        refs = self._call("reading the tags of", lambda: self._api.list_repo_refs(self.repo, repo_type=self.kind))
        if any(each.name == tag for each in refs.branches):
            raise HubError(f"{self.repo!r} has a branch {tag!r}, which a tag would be mistaken for: push under another")
        return next((str(each.target_commit) for each in refs.tags if each.name == tag), None)

    def put_tag(self, tag: str, commit: str, held: str | None) -> None:
        """Let ``tag``, which names ``held``, name ``commit``."""
        api, repo, kind = self._api, self.repo, self.kind
        if held == commit:
            return
        if held is not None:
            try:
                self._call("moving a tag of", lambda: api.delete_tag(repo, tag=tag, repo_type=kind))
            except Refusal as refusal:
                if refusal.status != 404:  # else a first try's answer was lost
                    raise
        try:
            self._call("tagging", lambda: api.create_tag(repo, tag=tag, revision=commit, repo_type=kind))
        except Refusal as refusal:
            if refusal.status not in OVERTAKEN or self.tagged(tag) != commit:
                raise

    def commit(self, files: Mapping[str, Content], lost: Sequence[str], message: str, parent: str | None) -> str:
        """One commit on ``main`` that adds ``files`` and deletes ``lost``, if ``main`` is still at ``parent``."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        additions = [CommitOperationAdd(path, content) for path, content in files.items()]
        self._upload(additions, sum(size_of(content) for content in files.values()))
        operations = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in lost)]
        made = self._call("committing to", lambda: self._api.create_commit(
            self.repo, operations, commit_message=message, repo_type=self.kind, parent_commit=parent,
        ), waits=())  # fmt: skip
        return str(made.oid)

    def _upload(self, additions: Sequence[Any], total: int) -> None:
        def upload() -> None:
            self._api.preupload_lfs_files(self.repo, batch, repo_type=self.kind, free_memory=False)

        self._sent = (0, total)
        for batch in _batches(additions):
            self.progress(*self._sent, batch[0].path_in_repo)
            self._call("uploading to", upload, waits=())
            self._sent = (self._sent[0] + sum(each.upload_info.size for each in batch), total)
        self.progress(*self._sent, "committing")

    def _info(self) -> Any:
        try:
            return self._call("reading", lambda: self._api.repo_info(self.repo, repo_type=self.kind))
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


def refusal_of(doing: str, error: BaseException, plain: Callable[[str], str]) -> Refusal:
    """The failed call in one line a user can act on."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    while isinstance(error, RuntimeError) and error.__cause__ is not None:  # the wrapping of an upload's thread
        error = error.__cause__
    said = plain(f"{type(error).__name__}: {error}")
    match error:
        case HfHubHTTPError():
            return _answered(doing, error, plain)
        case OfflineModeIsEnabled():
            return Refusal(f"{doing}: HF_HUB_OFFLINE is set: unset it")
        case httpx2.TimeoutException() | httpx2.NetworkError() | httpx2.RemoteProtocolError():
            return Refusal(f"{doing}: the Hub cannot be reached or hung up ({said}); {LATER}", passing=True)
        case json.JSONDecodeError():  # a gateway's page in place of the Hub's answer
            return Refusal(f"{doing}: the Hub's answer is no JSON; {LATER}", passing=True)
    return Refusal(f"{doing}: {said}")


def _answered(doing: str, error: Any, plain: Callable[[str], str]) -> Refusal:
    from huggingface_hub.utils import parse_ratelimit_headers

    status, headers = error.response.status_code, error.response.headers
    said = f"({status}: {plain(error.server_message)})" if error.server_message else f"({status})"
    if status in PASSING:
        limit, pause = parse_ratelimit_headers(headers), retry_after(headers.get("retry-after"))
        if pause is None and limit is not None and limit.remaining == 0:
            pause = float(limit.reset_in_seconds)
        why = f"{doing}: the Hub is overloaded or out of order {said}; {LATER}"
        return Refusal(why, status, passing=True, pause=pause or 0.0)
    match status:
        case 401:
            what = f"the Hub does not accept the token {said}: {LOG_IN}"
        case 403:
            what = f"the token may not do that {said}: {LOG_IN}, with a token that may write there"
        case 404:
            what = f"the Hub has none that this token may see {said}: is the name right?"
        case _:
            what = f"the Hub refuses {said}"
    return Refusal(f"{doing}: {what}", status)


def _one_line(text: str) -> str:
    """Without the query of an address: an upload's is signed."""
    return " ".join(re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]*", r"\1", text).split())[:300]


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
