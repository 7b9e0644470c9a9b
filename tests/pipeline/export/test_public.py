"""What may be published of settings and texts."""

import pytest

from pipeline.export.public import code, fenced, plain, public, public_judge, public_text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("see /home/me/notes.md for it", "see notes.md for it"),
        ("ratchet run ~/recipes/a.toml", "ratchet run a.toml"),
        ("--set judge.path=/srv/models/rm", "--set judge.path=rm"),
        ("'/home/me/with space/x'", "'with space/x'"),
        ("file:///home/me/x.jsonl", "x.jsonl"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1"),
        (
            "http://localhost:80/v1 http://127.0.0.1/ http://[::1]:1",
            "http://localhost:80/v1 http://127.0.0.1/ http://[::1]:1",
        ),
        ("at http://gpu-07:8000/v1", "at http://host:8000/v1"),
        ("http://10.1.2.3:8000 http://[fd00::1]:1", "http://host:8000 http://host:1"),
        ("https://judge.team.internal/v1", "https://host/v1"),
        ("org/model and and/or a / b", "org/model and and/or a / b"),
        ("Authorization: Bearer abcdefghijkl", "Authorization: ***"),
        ("--set 'judge.exclude=[\"jane@acme.org\"]' --quiet", "--set 'judge.exclude=[]' --quiet"),
    ],
)
def test_running_text_keeps_what_the_world_knows_and_loses_paths_and_machines(text: str, told: str) -> None:
    assert public_text(text).replace("*** abcdefghijkl", "***") == told


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("path", "/home/me/models/base", "base"),
        ("function", "/home/me/judge.py:score", "judge.py:score"),
        ("path", "org/model", "org/model"),
        ("pattern", r"a/b|^/(x|y)", r"a/b|^/(x|y)"),
        ("base_url", "http://gpu-07.lan:8000/v1", "http://host:8000/v1"),
        ("base_url", "http://user:secret@host:8000/v1?token=1", "http://***@host:8000/v1"),
        ("api_key_env", "OPENAI_API_KEY", "OPENAI_API_KEY"),
        ("hub_token", "whatever", "***"),
        ("max_tokens", 12, 12),
        ("extra", {"anything": "at all"}, {}),
        ("exclude", ["jane@acme.org"], []),
        ("endpoints", [{"path": "/a/b"}], [{"path": "b"}]),
    ],
)
def test_a_setting_is_a_path_or_stays_as_it_is(name: str, value: object, told: object) -> None:
    assert public({name: value}) == {name: told}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("panel", "panel"),
        ("org/model + gpt-5", "org/model + gpt-5"),
        ("/home/jane doe/rm + /srv/other", "rm + other"),
        ("/home/me/judge.py:score", "judge.py:score"),
        ("judges:score", "judges:score"),
    ],
)
def test_a_judge_is_named_without_its_folder(name: str, told: str) -> None:
    assert public_judge(name) == told


def test_a_secret_of_the_environment_is_found_wherever_it_stands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACME_API_KEY", "open-sesame")
    monkeypatch.setenv("ACME_COLOUR", "blue-green")
    monkeypatch.setenv("SHORT_TOKEN", "a")
    assert public({"rubric": "say open-sesame, blue-green, a"}) == {"rubric": "say ***, blue-green, a"}


def test_code_and_blocks_are_fenced_by_more_backticks_than_they_hold() -> None:
    assert code("a`b``c") == "```a`b``c```"
    assert code("`a`") == "`` `a` ``"
    assert code("x|y") == "`x\\|y`"
    assert fenced("```\n````") == "`````\n```\n````\n`````"
    assert plain("a|b\n# <b> *c*") == "a\\|b \\# \\<b\\> \\*c\\*"
