"""A Slurm of one node, this machine: it needs Debian's slurmctld, slurmd and munge, and an administrator."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scontrol")
_CONFIGURATION = """
ClusterName=one
SlurmctldHost={node}
SlurmctldPort={port}
SlurmdPort={node_port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
JobRequeue=1
KillWait=5
MailProg=/bin/true
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={node} CPUs={cpus} RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def is_installed() -> bool:
    """Whether such a Slurm can be started here."""
    return os.geteuid() == 0 and all(shutil.which(name, path=_path()) for name in PROGRAMS)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@contextlib.contextmanager
def one_node(folder: Path) -> Iterator[dict[str, str]]:
    """Has Slurm run while the block does.

    Args:
        folder: For its files.

    Yields:
        The variables with which its commands find it.
    """
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o400)
    node = socket.gethostname().partition(".")[0]
    content = _CONFIGURATION.format(
        node=node, folder=folder, port=_free_port(), node_port=_free_port(), cpus=os.cpu_count()
    )
    (folder / "slurm.conf").write_text(content)
    variables = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
    munge = ("munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket")
    munge += tuple(f"--{name}-file={folder}/munge.{name}" for name in ("pid", "log", "seed"))
    programs = []
    try:
        for command in (munge, ("slurmctld", "-D", "-c"), ("slurmd", "-D", "-N", node)):
            with (folder / f"{command[0]}.out").open("wb") as out:
                programs.append(
                    subprocess.Popen(command, env={**os.environ, **variables}, stdout=out, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        _wait_until_idle({**os.environ, **variables}, folder)
        yield variables
    finally:
        for program in reversed(programs):
            program.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.wait(20)
            program.kill()


def _wait_until_idle(environment: dict[str, str], folder: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = subprocess.run(
            ["sinfo", "--noheader", "--format=%T"], env=environment, capture_output=True, text=True, check=False
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    told = "\n".join(path.read_text(errors="replace")[-2000:] for path in folder.glob("*.out"))
    raise AssertionError(f"Slurm has not come up: {told}")
