"""Point 7: no secret enters a federation file, in any place and in any form."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from schemas.errors import FederationError
from schemas.federation import Federation
from schemas.reading.load import load_federation
from schemas.secrets import FREE_FORM, REDACTED, find_secrets, has_secret, redacted, words
from tests.federations import sections, site

HUNTER = "hunter2"
URLS = [
    "https://u:hunter2@h.org/x", "see https://u:hunter2@h.org", "u:hunter2@mlflow.example.org", "//u:hunter2@h/x",
    "HTTPS://U:hunter2@H", "https:/u:hunter2@h", "postgresql+psycopg://u:hunter2@h/db", "redis://:hunter2@h:6379",
    "https%3A%2F%2Fu%3Ahunter2%40h.org", "https%253A%252F%252Fu%253Ahunter2%2540h", "https://u:hun%40ter2@h",
    "https://u:hunter2/x@h", "https://u:hunter2@x@h", "https://hunter2@github.com/x", "https://u:123@h:9000",
    "simplecache::https://u:hunter2@h/x.zip", "zip://a.csv::https://u:hunter2@h/a.zip", "s3://AK:hunter2@bucket/x",
    '{"uri": "https://u:hunter2@h"}', "https://c.blob.core.windows.net/c/f?sv=1&sig=hunter2",
    "https://b.s3.amazonaws.com/k?X-Amz-Signature=hunter2", "https://b/k?Expires=1&AWSAccessKeyId=hunter2",
    "https://b/k?X-Amz-Security-Token=hunter2", "https://h/?access_token=hunter2", "https://h/x?apiKey=hunter2",
    "https://h/x#token=hunter2", "https://h/?a=b%26key%3Dhunter2", "s3://b/x?signature=hunter2",
    "https://h/?token[]=hunter2", "https://h/?auth[key]=hunter2", "sk-proj-hunter2-hunter2-hunter2",
    "sk-hunter2hunter2hunter2", "dapi0123456789abcdef0123456789abcdef",
    "hf_hunter2hunter2hunter2hunter2", "https://hooks.slack.com/services/T0/B0/hunter2",
]  # fmt: skip
PLAIN = [
    "s3://bucket/a:b@c", "https://h.org:9000/x", "photon:1.0@sha256:abcdef", "r:5000/img@sha256:ab", "C:/data/a@b",
    "abfss://container@account.dfs.core.windows.net/p", "ssh://git@host/x", "/data/10:30@home/x", "texts/*.jsonl",
    "https://h:8080/path@x", "zip://*.csv::s3://bucket/file@x.zip", "http://[::1]:9000/a@b", "bytes", "gpt2",
    "https://h/x?versionId=1&max_tokens=5", "s3://b/tokenizer.json?versionId=3", "at 10:30, mail me@home.org",
    "mailto:me@home.org", "C:\\Users\\me@work\\x.txt", "/text/sk-wikipedia-dump-20240101-articles/*.jsonl",
    "sk-news-2019-deduplicated", "git+ssh://git@github.com/a/b.git@v1", "Jane <jane@x.org>", "org/name@main",
    "https://u:{{ prefect.blocks.secret.h }}@h.org", "https://h/?token={{ prefect.blocks.secret.h }}",
]  # fmt: skip


@pytest.mark.parametrize("text", URLS)
def test_a_secret_is_known_by_its_form(text: str) -> None:
    assert has_secret(text)


@pytest.mark.parametrize("text", PLAIN)
def test_what_is_none_is_let_through(text: str) -> None:
    assert not has_secret(text)


def everywhere(text: str) -> dict[str, dict[str, Any]]:
    """A file for each place in which a text may stand."""
    return {
        "store": {"store": text},
        "tokenizer": {"tokenizer": text},
        "start": {"start": {"checkpoint": text}},
        "endpoint": {"store": "s3://b/x", "storage": {"endpoint_url": text}},
        "block": {"store": "s3://b/x", "storage": {"block": text}},
        "notify": {"deploy": {"notify": {"block": text}}},
        "tracker": {"trackers": [{"name": "mlflow", "options": {"a": {"b": [1, {"c": text}]}}}]},
        "tracker folder": {"trackers": [{"name": "mlflow", "folder": text}]},
        "tracker key": {"trackers": [{"name": "mlflow", "options": {text: 1}}]},
        "logger": {"local": {"steps": 2, "batch_size": 2, "loggers": [{"name": "file", "options": {"a": text}}]}},
        "env": {"sites": [site("a", job_variables={"env": {"X": text}})]},
        "image": {"sites": [site("a", job_variables={"image": text})]},
        "source": {"sites": [{"name": "a", "streams": [{"name": "s", "source": text}]}]},
        "shards": {"sites": [site("a", shards=text)]},
        "state_dir": {"sites": [site("a", state_dir=text)]},
        "site's name": {"sites": [site(text)]},
        "a wrong section": {"rounds": text},
        "an unknown key": {"passwords": {"x": text}},
        "an unknown key's name": {text: 1},
    }


@pytest.mark.parametrize("place", everywhere(""))
def test_it_is_refused_wherever_it_stands_and_never_repeated(place: str, tmp_path: Path) -> None:
    for text in (URLS[0], URLS[8], URLS[20]):
        data = sections(recipe=None) | everywhere(text)[place]
        (tmp_path / "federation.yaml").write_text(yaml.safe_dump(data))
        with pytest.raises(FederationError) as refused:
            load_federation(tmp_path / "federation.yaml")
        assert "remove it: " in str(refused.value) and HUNTER not in str(refused.value)
        with pytest.raises(ValidationError) as invalid:  # what comes as a flow run's parameter
            Federation.model_validate(data)
        assert HUNTER not in str(invalid.value)


def test_all_are_named_at_once_with_their_lines(tmp_path: Path) -> None:
    env = {"HF_TOKEN": HUNTER, "WANDB-API-KEY": HUNTER, "dbPassword": HUNTER, "TOKENIZERS_PARALLELISM": "false"}
    data = sections(sites=[site("a", job_variables={"env": env})], store=URLS[0])
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(data))
    with pytest.raises(FederationError) as refused:
        load_federation(tmp_path / "federation.yaml")
    lines = str(refused.value).splitlines()
    assert sorted(line.split(": ")[1] for line in lines) == [
        *(f"sites[a].job_variables.env.{name}" for name in ("HF_TOKEN", "WANDB-API-KEY", "dbPassword")), "store",
    ]  # fmt: skip
    remedy = "set it in the worker's environment, or write a reference to a block"
    assert sum(remedy in line for line in lines) == 3


@pytest.mark.parametrize(
    "options",
    [
        {"api_key": HUNTER}, {"apiKey": HUNTER}, {"X-Api-Key": HUNTER}, {"a": {"settings": {"token": HUNTER}}},
        {"password": 123456}, {"auth": ["u", HUNTER]}, {"credentials": {"a": HUNTER}}, {"a": ["--token", HUNTER]},
        {"command": f"run --api-key {HUNTER}"}, {"headers": f"api-key={HUNTER},a=b"}, {"a": f"X_TOKEN={HUNTER}"},
        {"env": [{"name": "HF_TOKEN", "value": HUNTER}]}, {"authorization": HUNTER}, {"MY_PASS": HUNTER},
        {"key": "{{ x }}hunter2"},
    ],
)  # fmt: skip
@pytest.mark.parametrize("section", ["trackers", "job_variables"])
def test_an_option_that_is_a_secret_by_its_name_is_refused(options: dict[str, Any], section: str) -> None:
    found = {"trackers": [{"name": "wandb", "options": options}]}
    data = sections(**found if section == "trackers" else {"sites": [site("a", job_variables={"x": options})]})
    with pytest.raises(ValidationError, match="remove it: set it in the ") as refused:
        Federation.model_validate(data)
    assert HUNTER not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"tokenizer": "gpt2", "max_tokens": 5, "data_tokens": 7, "key_layers": 3, "tokens": "all", "keys": "a"},
        {"auth": True, "token": None, "secret": ""},
        {"tolerations": [{"key": "gpu", "operator": "Exists"}], "imagePullSecrets": [{"name": "registry"}]},
        {"env": [{"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hf", "key": "t"}}}]},
        {"token": "{{ prefect.blocks.secret.hf }}", "a": "X_TOKEN={{ prefect.blocks.secret.hf }}"},
        {"command": "python -m x --tokenizer bytes --max-tokens 5"},
    ],
)
def test_words_are_exact_and_references_stay(options: dict[str, Any]) -> None:
    Federation.model_validate(sections(sites=[site("a", job_variables={"x": options})]))


def test_words() -> None:
    assert words("HF_TOKEN") == {"HF", "TOKEN"} == words("hfToken") == words("hf-token")
    assert words("AWSAccessKeyId") == {"AWS", "ACCESS", "KEY", "ID"}
    assert words("max_tokens") == {"MAX", "TOKENS"}


def test_every_section_of_others_keys_is_looked_at_by_name() -> None:
    """A new free-form section has to be in FREE_FORM."""
    free = {"/".join(path) for path in _free(Federation, ())}
    assert free and all(path.split("/")[-1] in FREE_FORM for path in free)


def _free(section: Any, path: tuple[str, ...]) -> Any:
    from schemas.reading.remedies import _section

    for name, field in section.model_fields.items():
        below = _section(field.annotation)
        if below:
            yield from _free(below, (*path, name))
        elif "dict" in str(field.annotation):
            yield (*path, name)


def test_circles_and_depth_end() -> None:
    circle: dict[str, Any] = {}
    circle["options"] = circle
    assert not list(find_secrets(circle))
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    assert [secret.place for secret in find_secrets(deep)] == [()]


@pytest.mark.parametrize(
    "part", ["a:", "/", "http://", ":/", "//a:", "@", "a:b", "?a=", "%25", "//x:y", "A", "aB"]
)
def test_no_text_takes_long(part: str) -> None:
    assert not has_secret(part * 20_000) or part in ("a:b", "@")


def test_what_is_redacted_keeps_the_rest() -> None:
    data = {"store": URLS[0], "deploy": {"notify": {"webhook": "https://h.org"}}, "sites": [{"name": "a"}]}
    assert redacted(data) == {
        "store": REDACTED, "deploy": {"notify": {"webhook": REDACTED}}, "sites": [{"name": "a"}],
    }  # fmt: skip
    assert redacted({"a": 1}) == {"a": 1}
