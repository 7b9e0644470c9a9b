"""One ``vllm serve``: what it is asked over HTTP, and how it gets a policy's weights and proves to serve them."""

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp

from pipeline.calls.connection import heed, open_session
from pipeline.calls.keys import secret
from pipeline.calls.limits import Waits, lane
from pipeline.calls.outcomes import BROKEN_OFF, Outcome, of_status, showable
from pipeline.calls.ways import Way
from pipeline.config import Endpoint
from pipeline.errors import SamplingError, WeightSyncError
from pipeline.protocols import Decoding
from pipeline.sampling.served import Served

RELOAD_SECONDS = 1800.0
"""For a change of weights: what is under way is waited for, and a large checkpoint takes its time."""
ATTEMPTS = 2
"""At a change of weights; a second one has been seen to help."""
ABSENT = {404, 405}


class Failed(Exception):
    """A call without an answer."""

    def __init__(self, server: str, outcome: Outcome, status: int = 0) -> None:
        super().__init__(f"{server}: {outcome.reason}: {outcome.detail}")
        self.outcome, self.status = outcome, status


class VllmServer(Way):
    """At one address. One event loop may use it at a time. Raises JudgeError where a key is needed and missing."""

    def __init__(self, endpoint: Endpoint, waits: Waits | None = None) -> None:
        super().__init__(endpoint, lane(endpoint), waits)
        self.name = f"{endpoint.model} at {endpoint.base_url}"
        self.fatal: SamplingError | None = None
        """Why it cannot serve the policy."""
        key = secret(endpoint)
        self._secret, self._headers = key, {"Authorization": f"Bearer {key}"} if key else {}
        self._base = endpoint.base_url.rstrip("/")
        self._root = self._base.removesuffix("/v1")
        self._session: aiohttp.ClientSession | None = None
        self.life = 0
        """Raised when it may have become another process, and when weights were loaded into it."""
        self._loaded: str | None = None
        """Digest of the policy that it was given, or seen to serve."""
        self._proved: str | None = None
        """The same, if nothing has happened since."""
        self._fixed: str | None = None
        """The same, of a server that takes no weights: it will never serve another."""
        self._one = asyncio.Lock()

    # -------------------------------------------------------------------------------------------------- weights
    def doubt(self) -> None:
        """Have the policy proved anew before the next call, and loaded again if it is another. A new connection is
        cause enough: nobody is told of a server that ended and began anew while it was not asked."""
        self._proved = None

    def forget(self) -> None:
        """Have it loaded anew. A proof alone is no proof of a server that may have begun with a policy like it: in
        16 bit two that are a small step apart both pass."""
        self._loaded = self._proved = None
        self.life += 1

    async def serve(self, served: Served) -> None:
        """Serve this policy, loaded if it is not proved to be already.

        Raises:
            Failed: the server cannot be reached, or fails.
            WeightSyncError: it serves other weights, and cannot be given these.
            SamplingError: it has no such model, or takes shorter texts than the policy is to write.
        """
        async with self._one:
            if self._proved == served.policy.digest:
                return
            life = self.life
            if not await self._still_serves(served):
                life = self.life = self.life + 1
                await self._check_model(served)
                await self._bring(served)
            if self.life == life:  # nobody had cause to forget meanwhile
                self._loaded = self._proved = served.policy.digest

    async def _still_serves(self, served: Served) -> bool:
        if self._loaded != served.policy.digest:
            return False
        try:
            await self._prove(served)
        except WeightSyncError:
            return False
        return True

    async def _bring(self, served: Served) -> None:
        path = str(served.policy.path.resolve())
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if not await self._replace_weights(path):
                    await self._prove_unchanged(served)
                    return
                await self._prove(served)
                return
            except (Failed, WeightSyncError) as error:
                if attempt == ATTEMPTS or (isinstance(error, Failed) and error.outcome.reason == "no_connection"):
                    raise

    async def _replace_weights(self, path: str) -> bool:
        """Whether the server takes weights at all; then it has these. It is left paused where it refuses them, since a
        reload that failed halfway leaves nothing that could be asked."""
        try:
            await self._post("/pause?mode=wait", seconds=RELOAD_SECONDS)
        except Failed as failed:
            if failed.status in ABSENT:
                return False
            raise
        try:
            await self._rpc("load_checkpoint", [path], {})
        except Failed as failed:
            if failed.status == 0:
                raise
            await self._by_own_method(path)
        cleared = await self._post("/reset_prefix_cache")
        await self._post("/resume")
        if not cleared.get("success"):  # nothing else forgets the keys and values of the old weights
            raise WeightSyncError(f"{self.name} kept its prefix cache: requests of others are still running")
        return True

    async def _by_own_method(self, path: str) -> None:
        try:
            await self._rpc("reload_weights", [], {"weights_path": path})
        except Failed as failed:
            if failed.status == 0:
                raise
            raise WeightSyncError(
                f"{self.name} could not load {path} and is left paused: {failed.outcome.detail}; it must be able to"
                " read that folder, and serve the policy's architecture"
            ) from failed

    async def _rpc(self, method: str, args: Sequence[str], kwargs: Mapping[str, str]) -> None:
        body = {"method": method, "args": list(args), "kwargs": dict(kwargs)}
        await self._post("/collective_rpc", body, seconds=RELOAD_SECONDS)

    async def _prove(self, served: Served) -> None:
        measured = [await self.score(ids) for ids in served.probe.sequences]
        try:
            served.prove(measured)
        except WeightSyncError as error:
            raise WeightSyncError(f"{self.name}: {error}") from None

    async def _prove_unchanged(self, served: Served) -> None:
        """For a server that takes no weights: one that was seen to serve one policy is not asked about another."""
        try:
            if self._fixed not in (None, served.policy.digest):
                raise WeightSyncError(f"it serves policy {str(self._fixed)[:12]}")
            await self._prove(served)
        except WeightSyncError as error:
            raise WeightSyncError(
                f"{self.name} does not serve policy {served.policy.digest[:12]} and takes no weights: start it with"
                f" VLLM_SERVER_DEV_MODE=1 ({error})"
            ) from None
        self._fixed = served.policy.digest

    async def _check_model(self, served: Served) -> None:
        listed = (await self._call("GET", f"{self._base}/models", None, self.endpoint.timeout)).get("data") or []
        cards = {str(card.get("id")): card for card in listed}
        if self.endpoint.model not in cards:
            raise SamplingError(
                f"sampling.endpoints: {self._base} has no model {self.endpoint.model!r}; it has"
                f" {', '.join(sorted(cards)) or 'none'}"
            )
        longest = cards[self.endpoint.model].get("max_model_len")
        if isinstance(longest, int) and longest < served.max_model_len:
            raise SamplingError(
                f"sampling.max_model_len: {served.max_model_len}, but {self.name} takes {longest} tokens; allowed:"
                f" {longest} or fewer, or start the server with --max-model-len {served.max_model_len}"
            )

    # -------------------------------------------------------------------------------------------------- questions
    async def complete(
        self, served: Served, prompt: Sequence[int], decoding: Decoding, room: int, seed: int
    ) -> tuple[list[int], float | None]:
        """The ids of one completion, and their log-probability (nats) where ``decoding`` asks for it."""
        fields = {
            "model": self.endpoint.model, "prompt": list(prompt), "max_tokens": room, "seed": seed,
            "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": decoding.top_k,
            # Said, for what is not said comes from the checkpoint's generation config.
            "min_p": 0.0, "repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0,
            "stop_token_ids": sorted(served.stop_ids), "return_token_ids": True,
        }  # fmt: skip
        if decoding.logprobs:
            fields["logprobs"] = 0
        choice = await self._choice(fields | self.endpoint.extra)
        if (ended := choice.get("finish_reason")) in BROKEN_OFF:
            raise Failed(self.name, Outcome("cut_off", f"finish_reason {ended!r}"))
        ids = choice.get("token_ids")
        if not isinstance(ids, list) or not ids:
            raise SamplingError(f"{self.name} gives no token ids: it is no vLLM, or older than 0.10.2")
        if not decoding.logprobs:
            return ids, None
        logprobs = (choice.get("logprobs") or {}).get("token_logprobs")
        if not isinstance(logprobs, list) or len(logprobs) != len(ids):
            raise SamplingError(f"{self.name} gives no log-probabilities; allowed: sampling.logprobs = false")
        return ids, math.fsum(logprobs)

    async def score(self, ids: Sequence[int]) -> list[float]:
        """Log-probability (nats) of every token given those before it; k ids give k − 1."""
        asked = {"model": self.endpoint.model, "prompt": list(ids), "max_tokens": 1, "temperature": 0.0,
                 "prompt_logprobs": 0}  # fmt: skip
        entries = (await self._choice(asked)).get("prompt_logprobs")
        if not isinstance(entries, list) or len(entries) != len(ids):
            raise SamplingError(f"{self.name} gives no prompt_logprobs: it is no vLLM")
        return [float(entry[str(token)]["logprob"]) for token, entry in zip(ids[1:], entries[1:], strict=True)]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _choice(self, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = await self._call("POST", f"{self._base}/completions", fields, self.endpoint.timeout)
        choices = answer.get("choices")
        if not isinstance(choices, list) or not choices:
            raise Failed(self.name, Outcome("no_choice", json.dumps(answer)[:300]))
        choice: Mapping[str, Any] = choices[0]
        return choice

    async def _post(self, path: str, body: Any = None, seconds: float | None = None) -> Mapping[str, Any]:
        return await self._call("POST", f"{self._root}{path}", body, seconds or self.endpoint.timeout)

    async def _call(self, method: str, address: str, body: Any, seconds: float) -> Mapping[str, Any]:
        """The answer's JSON object. Raises Failed where there is none."""
        session = self._session = self._session or open_session(self._base, self.doubt)
        await self.lane.enter()
        try:
            async with (
                asyncio.timeout(seconds),
                session.request(method, address, json=body, headers=self._headers, allow_redirects=False) as answer,
            ):
                content = await answer.read()
            heed(self.lane, answer)
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as error:
            raise Failed(self.name, Outcome("no_connection", str(error))) from error
        except TimeoutError as error:
            raise Failed(self.name, Outcome("timeout", f"none in {seconds:g} s")) from error
        except (aiohttp.ClientError, OSError) as error:
            raise Failed(self.name, Outcome("cut_off", str(error) or type(error).__name__)) from error
        finally:
            self.lane.leave()
        return self._read(answer.status, content)

    def _read(self, status: int, content: bytes) -> Mapping[str, Any]:
        try:
            read = json.loads(content) if content.strip() else {}
        except ValueError:
            read = content.decode(errors="replace")
        if status != 200:
            outcome = of_status(status, read, works=True)
            detail = showable(outcome.detail, self._secret)
            raise Failed(self.name, Outcome(outcome.reason, detail, again=outcome.again, fatal=outcome.fatal), status)
        if not isinstance(read, dict):
            raise Failed(self.name, Outcome("bad_json", showable(str(read), self._secret)))
        return read
