"""Point 7: a store of an older version, whose run.json holds secrets, stays readable; nothing shows them."""

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from photon_cli.main import app
from photon_core.run.run import forget_runs

SECRETS = ("hunter2", "hooks.example.org", "sig-of-a-source", "key-of-a-tracker")


def test_reports_leave_out_what_an_old_run_json_holds(committed: Callable[..., Path]) -> None:
    file = committed(2)
    birth = file.parent / "store" / "tiny" / "run.json"
    data = json.loads(birth.read_text())
    federation = data["federation"]
    federation["deploy"]["notify"] = {"webhook": "https://hooks.example.org/x", "block": None}
    options = {"tracking_uri": "https://u:hunter2@mlflow.example.org", "apiKey": "key-of-a-tracker"}
    federation["trackers"] = [{"name": "mlflow", "folder": "/t", "options": options}]
    federation["sites"][0]["streams"][0]["source"] = "https://c.example.org/f.txt?sv=1&sig=sig-of-a-source"
    birth.write_text(json.dumps(data))
    forget_runs()
    page, other = file.parent / "page.html", file.parent / "compared.html"
    shown = ""
    for command in (
        ["report", str(file), "--to", str(page)],
        ["compare", str(file), str(file), "--to", str(other)],
        ["status", str(file)],
        ["status", str(file), "--json"],
        ["plan", str(file)],
    ):
        done = CliRunner().invoke(app, command, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        shown += done.output
    shown += page.read_text() + other.read_text()
    assert "(a secret was here)" in shown
    assert not [secret for secret in SECRETS if secret in shown]
