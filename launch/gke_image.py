"""The container image of a commit: its name, and making it with docker."""

import re
import tempfile
from pathlib import Path

from launch import shell as shells
from launch.shell import Retry, Shell

BUILD_S = 5400.0
_PUSH = Retry(2, re.compile(r"timeout|EOF|connection reset|50\d|unexpected status", re.I))


def named(image: str, tree: str) -> tuple[str, bool]:
    """The image with its tag, and whether the tag says the commit: an image without one gets it of ``tree``.

    Raises:
      ValueError: no image name.
    """
    last = image.rpartition("/")[2]
    if not re.fullmatch(r"[a-z0-9][\w.:/@-]*", image) or not last:
        raise ValueError(f"--image={image}: write it as in us-docker.pkg.dev/PROJECT/REPOSITORY/mmrl")
    if ":" in last or "@" in last:
        return image, False
    return f"{image}:{tree[:12]}", True


def build(shell: Shell, image: str, tree: str, root: Path) -> None:
    """Build the image from the files of a commit alone, and push it.

    Raises:
      ValueError: docker cannot.
    """
    with tempfile.TemporaryDirectory(prefix="launch-") as temporary:
        folder = Path("/tmp/launch" if shell.dry_run else temporary)
        packed, files = folder / "files.tar", folder / "files"
        if not shell.dry_run:
            files.mkdir()
        _do(shell, ["git", "-C", str(root), "archive", f"--output={packed}", tree])
        _do(shell, ["tar", "-xf", str(packed), "-C", str(files)])
        # TPU machines have x86 processors, whatever this one has.
        words = ["docker", "build", "--platform=linux/amd64", f"--file={files / 'launch' / 'Dockerfile'}"]
        _do(shell, [*words, f"--label=mmrl.commit={tree}", f"--tag={image}", str(files)])
        _do(shell, ["docker", "push", image], retry=_PUSH)


def _do(shell: Shell, words: list[str], retry: Retry | None = None) -> None:
    done = shells.run(shell, words, retry=retry, timeout=BUILD_S)
    if not done.status:
        return
    for line in shells.tail(done.out + done.err, 20).splitlines() if words[0] == "docker" else ():
        shell.say(f"  | {line}")
    fix = ""
    if re.search(r"denied|unauthorized|Unauthenticated", done.err):
        fix = f" (gcloud auth configure-docker {words[-1].partition('/')[0]}, or the repository is not there)"
    raise ValueError(f"{' '.join(words[:2])}: {shells.last_line(done)}{fix}")
