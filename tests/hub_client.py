"""The Hub's client in a process of its own: what the tests of a push run, because theirs has the Hub switched off.

    python hub_client.py        # a job a line of JSON on stdin, its outcome a line of JSON on stdout

A failure's outcome has all that could give something away: the messages, arguments and attributes of the whole chain.
"""

import dataclasses
import hashlib
import json
import os
import sys
import time
import traceback
from pathlib import Path
from typing import Any

HURRY = 1000.0
"""Waits are so many times shorter, the library's own too, unless the job says ``"hurry": false``."""
sleep = time.sleep


def push(job: dict[str, Any]) -> Any:
    from pipeline.hub import push

    notes: list[str] = []
    pushed = push(
        Path(job.pop("folder")), job.pop("repo"), job.pop("kind", "dataset"), message=job.pop("message", "A round"),
        progress=lambda done, total, note: notes.append(f"{done}/{total} {note}"), **job,
    )  # fmt: skip
    return {**dataclasses.asdict(pushed), "notes": notes}


def load(job: dict[str, Any]) -> Any:
    from datasets import load_dataset

    return load_dataset(job["repo"], revision=job.get("revision"), split="train").to_list()


def snapshot(job: dict[str, Any]) -> Any:
    from huggingface_hub import snapshot_download

    folder = Path(snapshot_download(job["repo"], repo_type=job.get("kind", "dataset"), revision=job.get("revision")))
    return {path.relative_to(folder).as_posix(): digest(path) for path in folder.rglob("*") if path.is_file()}


def model(job: dict[str, Any]) -> Any:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(job["repo"], revision=job["revision"])
    tokens = AutoTokenizer.from_pretrained(job["repo"], revision=job["revision"])("it is good").input_ids
    return {"tokens": tokens, "weights": sum(float(each.detach().double().sum()) for each in model.parameters())}


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


JOBS = {job.__name__: job for job in (push, load, snapshot, model)}


def outcome(job: dict[str, Any]) -> dict[str, Any]:
    factor = HURRY if job.pop("hurry", True) else 1.0
    time.sleep = lambda seconds: sleep(seconds / factor)
    before = dict(os.environ)
    for name, value in job.pop("environment", {}).items():
        os.environ.pop(name, None) if value is None else os.environ.update({name: value})
    try:
        return {"made": JOBS[job.pop("do")](job)}
    except Exception as error:
        names = [each.__name__ for each in type(error).__mro__]
        return {"error": str(error), "types": names, "chain": chain(error), "trace": traceback.format_exc()}
    finally:
        os.environ.clear()
        os.environ.update(before)


def chain(error: BaseException | None) -> list[str]:
    told = []
    while error is not None:
        told.append(f"{error!r} {error.args!r} {vars(error)!r} {getattr(error, '__notes__', '')!r}")
        error = error.__cause__ or error.__context__
    return told


if __name__ == "__main__":
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what is printed goes where the log goes
    for line in sys.stdin:
        answers.write(json.dumps(outcome(json.loads(line))) + "\n")
