"""What tests need of Debian's packages: where their programs lie, and which are missing here."""

import shutil
import subprocess
from pathlib import Path

PROGRAMS = {  # package: names of its program, the first that is there counts
    "chromium": ("chromium", "chromium-browser", "google-chrome"),
    "curl": ("curl",),
    "nodejs": ("node",),
    "postgresql": ("postgres",),
    "prometheus": ("prometheus",),
    "sqlite3": ("sqlite3",),
}
POSTGRESQL = Path("/usr/lib/postgresql")  # Debian puts its servers here, and not on the path


def program(package: str, name: str = "") -> str | None:
    """Find a program of a Debian package (its main one, or `name` beside it); None where it is not installed."""
    names = (name,) if name else PROGRAMS[package]
    places = [None]
    if package == "postgresql":
        places += [str(folder) for folder in sorted(POSTGRESQL.glob("*/bin"), reverse=True)]
    return next((found for place in places for one in names if (found := shutil.which(one, path=place))), None)


def missing(package: str) -> str:
    """Say that a package is not installed; empty where it is."""
    return "" if program(package) else f"the Debian package {package} is not installed"


def browse(path: Path, profile: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Open a page in headless Chromium; standard output holds it as it is then, standard error the complaints.

    For tests that carry the mark `debian("chromium")`. Nothing outside is asked, and it works as root.
    """
    command = [str(program("chromium")), "--headless", "--no-sandbox", "--disable-gpu"]
    command += ["--disable-background-networking", "--enable-logging=stderr", "--v=0", f"--user-data-dir={profile}"]
    command += [*options, "--dump-dom", path.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
