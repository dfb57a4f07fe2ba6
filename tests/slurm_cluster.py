"""A real Slurm for tests: munged, slurmctld and several slurmd in a private folder, on loopback and on free ports.

Its daemons leave their parent, so that no signal to the tests ends them. A process of this module's does, which waits
until nobody holds the pipe to it any more: at the end of the tests, or as they are killed.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.patience import PATIENCE

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
PATH = os.environ.get("PATH", "") + os.pathsep + "/usr/sbin"  # where Debian puts the first three

# No accounts (as on many small clusters), requeueing within seconds (cred_expire; less than 5 is taken for 120), and a
# partition whose jobs displace those of another.
CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=10
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=1,sched_min_interval=0
MpiDefault=none
GresTypes=gpu
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
KillWait=30
MinJobAge=1000000
MessageTimeout=60
SlurmctldTimeout=120
SlurmdTimeout=20
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{nodes}
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=high Nodes=ALL Default=NO MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 RealMemory=4000 Gres=gpu:2"


def missing_programs() -> list[str]:
    """What is not installed of what a cluster takes."""
    return [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]


class SlurmCluster:
    """A cluster that runs; commands find it by its environment."""

    def __init__(self, folder: Path, *, nodes: int) -> None:
        self.folder, self.nodes = folder, nodes
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": PATH}
        self.drivers: list[subprocess.Popen[str]] = []  # what a test started, and may have left

    def run(self, *command: str) -> str:
        """What a command says that must not fail."""
        environment = os.environ | self.environment
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def queue(self) -> list[tuple[str, str]]:
        """(id, state) of every job that is not over."""
        said = self.run("squeue", "--noheader", "--array", "--format=%i|%T")
        return [(job, state) for job, _, state in (line.partition("|") for line in said.splitlines())]

    def submitted(self) -> int:
        """How many jobs there were in all, an element of an array each one."""
        said = self.run("squeue", "--noheader", "--array", "--states=all", "--format=%i")
        return len(said.split())

    def processes(self) -> list[tuple[int, str]]:
        """(pid, command line) of what this cluster's jobs run."""
        found = processes_of(self.folder)
        return [(pid, _words(pid)) for pid, variables in found if b"\0SLURM_JOB_ID=" in b"\0" + variables]

    def kill(self, *parts: str) -> None:
        """kill -9 of what the jobs run whose command line has all these parts."""
        found = [pid for pid, words in self.processes() if all(part in words for part in parts)]
        assert found, self.processes()
        for pid in found:
            os.kill(pid, signal.SIGKILL)

    def hold_until(self, number: signal.Signals, *, seconds: float) -> None:
        """Let what trains do nothing until a signal has come for it, which it then finds, or for so long."""
        pids = [pid for pid, words in self.processes() if "hydra.mode=RUN" in words and not words.startswith("srun ")]
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        deadline = time.monotonic() + seconds
        while not any(_is_pending(pid, number) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.1)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def lose_node(self, name: str) -> None:
        """As if its power went: its daemons die, before they can report what they had started, which dies too."""
        variable = f"SLURMD_NODENAME={name}".encode()
        jobs = [pid for pid, variables in processes_of(self.folder) if variable in variables.split(b"\0")]
        steps = {parent for pid in jobs if "slurmstepd" in _words(parent := _parent(pid))}
        daemon = int((self.folder / "run" / f"slurmd-{name}.pid").read_text())
        for pid in (daemon, *steps, *jobs):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, name: str) -> None:
        self.run("slurmd", "-N", name)

    def clear(self) -> None:
        """No driver and no job is left, and the nodes are free."""
        for driver in self.drivers:
            with driver:
                driver.kill()
        self.drivers.clear()
        if queued := {job.split("_")[0] for job, _ in self.queue()}:
            self.run("scancel", *queued)
        wait_for(lambda: not self.queue())
        wait_for(lambda: set(self.run("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"})


@contextmanager
def slurm_cluster(*, nodes: int = 2) -> Iterator[SlurmCluster]:
    """A cluster, and an end to all of it."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)  # munge wants its socket's folders open
    watcher = subprocess.Popen(
        [sys.executable, "-P", __file__, str(folder)],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdin=subprocess.PIPE,
        start_new_session=True,  # what is sent to the group of the tests does not reach it
    )
    try:
        cluster = SlurmCluster(folder, nodes=nodes)
        _start(cluster)
        yield cluster
    finally:
        assert watcher.stdin is not None
        watcher.stdin.close()
        watcher.wait(timeout=PATIENCE)


def processes_of(folder: Path) -> list[tuple[int, bytes]]:
    """(pid, environment) of all that belongs to the cluster in a folder: daemons, jobs, and what asks it things."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            variables = (path / "environ").read_bytes()
            if f"SLURM_CONF={folder}/slurm.conf".encode() in variables.split(b"\0"):
                found.append((int(path.name), variables))
    return found


def _words(pid: int) -> str:
    """The command line of a process; empty of one that has ended."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    return ""


def _parent(pid: int) -> int:
    """Its parent; itself where it has ended."""
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return pid


def _is_pending(pid: int, number: signal.Signals) -> bool:
    with suppress(OSError):
        found = re.findall(r"^(?:Sig|Shd)Pnd:\s*([0-9a-f]+)$", Path(f"/proc/{pid}/status").read_text(), re.M)
        return any(int(mask, 16) >> (number - 1) & 1 for mask in found)
    return False


def wait_for(condition: Callable[[], object], *, seconds: float = PATIENCE) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing came in {seconds} seconds"
        time.sleep(0.1)


def _start(cluster: SlurmCluster) -> None:
    folder, host = cluster.folder, socket.gethostname().split(".")[0]
    for name in ("state", "run", "log", "munge", *(f"spool/n{number}" for number in range(1, cluster.nodes + 1))):
        (folder / name).mkdir(parents=True)
    key = folder / "run" / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    ports = _free_ports(1 + cluster.nodes)
    lines = [NODE.format(number=n, host=host, port=port) for n, port in enumerate(ports[1:], 1)]
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    said = CONF.format(host=host, port=ports[0], folder=folder, user=user, nodes="\n".join(lines))
    (folder / "slurm.conf").write_text(said, encoding="utf-8")
    devices = "".join(f"NodeName=n[1-{cluster.nodes}] Name=gpu File={path}\n" for path in ("/dev/null", "/dev/zero"))
    (folder / "gres.conf").write_text(f"AutoDetect=off\n{devices}", encoding="utf-8")
    munge = folder / "munge"
    cluster.run(
        *("munged", f"--key-file={key}", f"--socket={munge}/socket", f"--pid-file={munge}/pid", "--force"),
        *(f"--log-file={munge}/log", f"--seed-file={munge}/seed"),
    )
    cluster.run("slurmctld", "-i")
    for number in range(1, cluster.nodes + 1):
        cluster.start_node(f"n{number}")
    wait_for(lambda: set(cluster.run("sinfo", "-h", "-N", "-o", "%t").split()) == {"idle"})


def _end(folder: Path) -> None:
    """Kill all that belongs to the cluster in a folder, what is started meanwhile too, and remove the folder."""
    deadline = time.monotonic() + PATIENCE
    while (found := processes_of(folder)) and time.monotonic() < deadline:
        for pid, _ in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    shutil.rmtree(folder, ignore_errors=True)


def _free_ports(number: int) -> list[int]:
    probes = [socket.socket() for _ in range(number)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    sys.stdin.read()  # to its end, which is that of the process that started this one
    _end(Path(sys.argv[1]))
