"""The grounds of a run: certificates made once, and folders, files and disks made for each."""

from __future__ import annotations

import shutil
import subprocess
import zipfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from hanse_server.provisioning.federation import provision

from tests.faults.chaos import netns

TASK = "tests.faults.chaos.task:Waves"
KEYS = ("ca.pem", "certificate.pem", "key.pem")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a federation in chaos runs.

    Attributes:
        width: of the model; 2 is 52 bytes, 100,000 are 2.4 megabytes.
        quorum: of the job; all sites unless said otherwise.
        every: how often the sites judge the model, in rounds.
    """

    name: str
    sites: int
    rounds: int
    private: bool
    width: int
    quorum: int = 0
    every: int = 3
    deadline: float = 60.0

    @property
    def names(self) -> tuple[str, ...]:
        """Of the sites."""
        return tuple(f"site-{number}" for number in range(1, self.sites + 1))

    @property
    def model_bytes(self) -> int:
        """Of the weights, and so of an update."""
        return 4 * (6 * self.width + 1)

    @property
    def job(self) -> str:
        """Its job.toml."""
        privacy = (
            "noise_multiplier = 2.0\nsampling_rate = 0.25" if self.private else 'mechanism = "none"'
        )
        rate = 0.05 if self.width < 1000 else 1e-6
        return f"""\
name = "{self.name}"
rounds = {self.rounds}
seed = 7
[task]
name = "{TASK}"
options = {{ width = {self.width} }}
[training]
steps = 2
batch_size = 10
optimizer = {{ name = "sgd", lr = {rate} }}
[privacy]
{privacy}
[strategy]
quorum = {self.quorum or self.sites}
deadline = {self.deadline}
options = {{ momentum = 0.5, average_from = 3 }}
[evaluation]
every = {self.every}
"""

    def site(self, name: str, address: str, budget: float) -> str:
        """A site's site.toml."""
        bare = str(not self.private).lower()
        return f"""\
name = "{name}"
coordinator = "{address}"
device = "cpu"
metrics_port = 0
[tls]
ca = "ca.pem"
certificate = "certificate.pem"
key = "key.pem"
[data]
train = "train.txt"
holdout = 0.2
[budget]
epsilon = {budget}
[policy]
tasks = [{{ name = "{TASK}" }}]
allow_training_without_privacy = {bare}
release = ["mae"]
release_exact = ["loss"]
count = "public"
"""


class Federation:
    """Certificates of a federation, made once for all runs."""

    def __init__(self, folder: Path, sites: int) -> None:
        self.folder = folder / "federation"
        host = netns.ADDRESS if netns.abilities().spaces else "127.0.0.1"
        names = [f"site-{number}" for number in range(1, sites + 1)]
        made = provision(self.folder, host=host, port=1, sites=names, days=400)
        for site in made.added:
            with zipfile.ZipFile(site.kit) as kit:
                kit.extractall(self.folder / "unpacked")

    def outfit(self, name: str, folder: Path) -> None:
        """Give a site its key and certificates."""
        folder.mkdir(parents=True)
        for file in KEYS:
            shutil.copy2(self.folder / "unpacked" / name / file, folder / file)
            (folder / file).chmod(0o600)


class SmallDisk:
    """A disk of a few megabytes at a folder, that can be filled up."""

    def __init__(self, folder: Path, megabytes: int) -> None:
        self._folder = folder
        self._ballast = folder / ".ballast"
        folder.mkdir(parents=True, exist_ok=True)
        options = f"size={megabytes}m"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)

    def fill(self, spare: int) -> None:
        """Leave ``spare`` bytes."""
        free = shutil.disk_usage(self._folder).free
        # The others write meanwhile: what is left may be less than it was.
        with self._ballast.open("wb", buffering=0) as file, suppress(OSError):
            file.write(b"\0" * max(0, free - spare))

    def free(self) -> None:
        """Make room again."""
        self._ballast.unlink(missing_ok=True)

    def remove(self) -> None:
        """Take it away; what was on it stays."""
        kept = self._folder.with_name(self._folder.name + ".kept")
        shutil.copytree(self._folder, kept, ignore=shutil.ignore_patterns(".ballast"))
        subprocess.run(["umount", "--lazy", self._folder], check=True)
        self._folder.rmdir()
        kept.rename(self._folder)


def can_mount(folder: Path) -> bool:
    """Whether this machine allows small disks."""
    try:
        SmallDisk(folder / "try", 1).remove()
    except (OSError, subprocess.CalledProcessError):
        return False
    finally:
        shutil.rmtree(folder / "try", ignore_errors=True)
    return True
