"""What `make verify` found on a machine, as one file for anybody: no names of hosts, users or folders, no keys.

The values of environment variables are not in it; those that look like secrets are removed from all texts besides.
"""

import getpass
import os
import platform
import re
import socket
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import distributions
from pathlib import Path

import msgspec
import psutil

from tests.cases import Outcome
from tests.processes import ROOT

BYTES_MAX = 64 * 2**20
_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|WEBHOOK|CREDENTIAL|AUTH", re.IGNORECASE)
_SECRET_LENGTH_MIN = 6
_IP = re.compile(r"\b(?!127\.)(?:\d{1,3}\.){3}\d{1,3}\b(?!\.)")
_PLAIN_NAMES = {"root", "localhost", "user", "admin", "runner", ""}
_OF_A_RUN = ("verdict.json", "environment.json")


class Scrubber:
    """Takes out of texts what says whose machine it was."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        variables = os.environ if environment is None else environment
        secrets = [value for name, value in variables.items() if _SECRET.search(name)]
        folders = {ROOT: "<project>", Path(sys.prefix): "<venv>", Path.home(): "<home>"}
        folders[Path(tempfile.gettempdir())] = "<tmp>"
        plain = {value: "<removed>" for value in secrets if len(value) >= _SECRET_LENGTH_MIN}
        forms = {form: name for path, name in folders.items() for form in (path, path.resolve())}
        plain |= {str(form): name for form, name in forms.items() if len(form.parts) > 1}
        hosts = (socket.gethostname(), platform.node())
        words = {word: "<host>" for name in hosts for word in (name, name.split(".")[0])}
        words |= dict.fromkeys((_user(), Path.home().name), "<user>")
        self._plain = dict(sorted(plain.items(), key=lambda each: -len(each[0])))
        self._words = {
            re.compile(rf"(?<![A-Za-z0-9]){re.escape(word)}(?![A-Za-z0-9])", re.IGNORECASE): replacement
            for word, replacement in sorted(words.items(), key=lambda each: -len(each[0]))
            if word.lower() not in _PLAIN_NAMES
        }

    def clean(self, text: str) -> str:
        """The text without them."""
        for found, replacement in self._plain.items():
            text = text.replace(found, replacement)
        for pattern, replacement in self._words.items():
            text = pattern.sub(replacement, text)
        return _IP.sub("<address>", text)


def machine() -> dict[str, object]:
    """What the evidence depends on."""
    return {
        "system": platform.system(),
        "release": platform.release(),
        "macos": platform.mac_ver()[0],
        "machine": platform.machine(),
        "processor": platform.processor(),
        "cores": psutil.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "python": sys.version.split()[0],
        "metal": _metal(),
        "packages": {each.name: each.version for each in sorted(distributions(), key=lambda each: each.name.lower())},
    }


def write(folder: Path, table: str, outcomes: Mapping[str, Outcome | None], code: str) -> Path:
    """`bundle-<system>-<machine>.zip` in the folder: the machine, the table, every outcome, each run's verdict."""
    scrubber = Scrubber()
    path = folder / f"bundle-{platform.system().lower()}-{platform.machine()}.zip"
    part = path.with_suffix(".part")
    played = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
    texts = {
        "machine.json": msgspec.json.format(msgspec.json.encode({"code": code, **machine()})).decode(),
        "table.md": table,
        "outcomes.json": msgspec.json.format(msgspec.json.encode(played)).decode(),
    }
    size = 0
    with zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as bundle:
        for name, text in texts.items():
            bundle.writestr(name, scrubber.clean(text))
        for case in sorted(played):
            for run in sorted({path.parent.resolve() for path in (folder / case).rglob("verdict.json")}):
                for name in _OF_A_RUN:
                    source = run / name
                    if not source.is_file() or size + source.stat().st_size > BYTES_MAX:
                        continue
                    size += source.stat().st_size
                    text = scrubber.clean(source.read_text(errors="replace"))
                    bundle.writestr(f"runs/{scrubber.clean(case)}/{scrubber.clean(run.name)}/{name}", text)
    os.replace(part, path)
    return path


def _metal() -> object:
    """What MLX says of the GPU; why there is none."""
    try:
        import mlx.core as mx

        if not mx.metal.is_available():
            return "no Metal here"
        information = getattr(mx, "device_info", None) or mx.metal.device_info
        return {name: value for name, value in information().items() if isinstance(value, str | int)}
    except (ImportError, AttributeError, RuntimeError, ValueError) as error:
        return f"not known: {type(error).__name__}"


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):
        return ""
