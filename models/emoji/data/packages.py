"""The npm packages that hold the images: fetched once, checked against their digest, kept in a cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from platformdirs import user_cache_path

from planner.errors import DownloadFailed, MissingDependency
from planner.models.emoji.integrity import verify_file
from planner.plan.atomic_write import replacing


@dataclass(frozen=True)
class Package:
    """A package of the npm registry: its name, version, size in MB and the SHA-512 of its archive."""

    name: str
    version: str
    megabytes: int
    sha512: str

    @property
    def archive(self) -> str:
        """The file name that ``npm pack`` gives it."""
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}.tgz"


IMAGES = Package(
    "@lobehub/fluent-emoji-3d",
    "1.1.0",
    16,
    "5a5ab69554ad4e7afc043a48274a449d328ee0bb83c71a931214ef46d0f50cb4"
    "45d267bba207914232a87a10c75ee549d9069e720979c1106feb4954006de1ee",
)
ANIMATIONS = (
    Package(
        "@lobehub/fluent-emoji-anim-1",
        "1.0.0",
        165,
        "ff89b7d6f02e644438694279a7170e5393d592e2726b9e464715192fbfb380b9"
        "71657a73cc4f233eaa43ca1648084de7e3b9d2fd8f4ce7fbcb762ce2f36d3540",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-2",
        "1.0.0",
        182,
        "4bacb37f44595eb41b5ddc425ae1c0f410282dd0519367e55fe9dee133c6107f"
        "ea029c22b0200a1e80001a3292953637395799f5beedfcd11b9a98dac2741824",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-3",
        "1.0.0",
        197,
        "53345250332375f76df6f111e5b8631e43ea81cdc41207c6b58b3a9ddbe2cce4"
        "ef40ec58439ee8c36453916483671c16df45f8118062d9e5934bb0970c3a05b2",
    ),
    Package(
        "@lobehub/fluent-emoji-anim-4",
        "1.0.0",
        186,
        "208925e73b527751ebcef203b7fb86b05a02d563835d1758ab9b913ab9e4caa8"
        "bd0db4e811c2759e563ce8f9e85177854bd9c10a71df898937a2e48419384598",
    ),
)


def cache_folder() -> Path:
    """Return the folder of downloads: $GRAT_PLANNER_CACHE, or ``grat-planner`` in the user's cache folder."""
    chosen = os.environ.get("GRAT_PLANNER_CACHE")
    return Path(chosen) if chosen else user_cache_path("grat-planner", appauthor=False)


def fetch(package: Package, cache: Path, npm: str = "npm") -> Path:
    """Return the checked archive of a package, downloaded with ``npm pack`` unless the cache has it.

    Raises MissingDependency without npm, DownloadFailed where npm fails, and DamagedFile for an archive with another
    digest, be it cached or just downloaded; only a checked archive enters the cache.
    """
    path = cache / package.archive
    if path.exists():
        verify_file(path, package.sha512, "sha512")
        return path
    if shutil.which(npm) is None:
        raise MissingDependency("npm", "downloading the Fluent Emoji", "Install Node.js, which brings npm.")
    cache.mkdir(parents=True, exist_ok=True)
    with replacing(path) as scratch:
        spelled = f"{package.name}@{package.version}"
        command = [npm, "pack", spelled, "--silent", "--fetch-retries=1", "--pack-destination", str(scratch.parent)]
        run = subprocess.run(command, capture_output=True, text=True, check=False, cwd=scratch.parent)
        if run.returncode:
            reason = (run.stderr.strip() or run.stdout.strip() or f"exit status {run.returncode}").splitlines()[0]
            raise DownloadFailed(spelled, reason)
        verify_file(scratch, package.sha512, "sha512")
    return path
