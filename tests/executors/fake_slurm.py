"""Stand-ins for Slurm's commands, for submitit's real Slurm executor: jobs are processes, their states are files.

:func:`install` writes ``sbatch``, ``srun``, ``sacct``, ``scontrol`` and ``scancel`` into a folder for ``PATH``. The
cluster is the folder that the environment variable ``FAKE_SLURM`` names: ``<job>.state`` holds Slurm's word for the job,
``<job>.pid`` its process, ``<job>.starts`` a line for each start, ``refuse`` how many submissions are refused,
``purged`` makes sacct forget every job.
"""

from __future__ import annotations

import sys
from pathlib import Path

SBATCH = """
import os, re, subprocess, sys
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
refuse = home / "refuse"
if refuse.exists() and int(refuse.read_text()) > 0:
    refuse.write_text(str(int(refuse.read_text()) - 1))
    sys.exit("sbatch: error: Slurm controller not responding, sleeping and retrying")
script = sys.argv[1]
text = Path(script).read_text()
number = 1000 + len(list(home.glob("*.script")))
(home / f"{number}.script").write_text(text)
array = re.search(r"--array=0-(\\d+)", text)
for task in range(int(array[1]) + 1) if array else [None]:
    job = f"{number}" if task is None else f"{number}_{task}"
    (home / f"{job}.state").write_text("PENDING")
    subprocess.Popen([sys.executable, os.environ["FAKE_SLURM_RUNNER"], job, script], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
print(f"Submitted batch job {number}")
"""

RUNNER = """
import os, subprocess, sys
from pathlib import Path
home, job, script = Path(os.environ["FAKE_SLURM"]), sys.argv[1], sys.argv[2]
number, _, task = job.partition("_")
environment = {**os.environ, "SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0",
               "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "localhost"}
if task:
    environment |= {"SLURM_ARRAY_JOB_ID": number, "SLURM_ARRAY_TASK_ID": task}
state = home / f"{job}.state"
while True:
    if state.read_text() == "CANCELLED":
        break
    state.write_text("RUNNING")
    with (home / f"{job}.starts").open("a") as file:
        file.write("start\\n")
    code = subprocess.call(["bash", script], env=environment)
    if state.read_text() == "REQUEUED":
        continue
    if state.read_text() == "RUNNING":
        state.write_text("COMPLETED" if code == 0 else "FAILED")
    break
"""

SRUN = """
import os, sys
from pathlib import Path
words = sys.argv[1:]
outputs = {}
while words[0].startswith("--"):
    name = words.pop(0)
    if name in ("--output", "--error"):
        outputs[name] = words.pop(0)
job = os.environ["SLURM_JOB_ID"]
path = outputs["--output"].replace("%A_%a", job).replace("%j", job).replace("%t", "0")
file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
os.dup2(file, 1); os.dup2(file, 2)
(Path(os.environ["FAKE_SLURM"]) / f"{job}.pid").write_text(str(os.getpid()))
os.execvp(words[0], words)
"""

SACCT = """
import os, sys
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
print("JobID|State|NodeList")
wanted = {sys.argv[i + 1] for i, word in enumerate(sys.argv) if word == "-j"}
for path in sorted(home.glob("*.state")) if not (home / "purged").exists() else []:
    if path.stem.partition("_")[0] in wanted:
        print(f"{path.stem}|{path.read_text()}|localhost")
"""

SCONTROL = """
import os, sys
from pathlib import Path
assert sys.argv[1] == "requeue"
(Path(os.environ["FAKE_SLURM"]) / f"{sys.argv[2]}.state").write_text("REQUEUED")
"""

SCANCEL = """
import os, signal, sys, time
from pathlib import Path
home = Path(os.environ["FAKE_SLURM"])
words = sys.argv[1:]
number = getattr(signal, "SIG" + words[words.index("--signal") + 1].removeprefix("SIG")) if "--signal" in words else None
for path in home.glob(f"{words[0]}*.state"):
    job = path.stem
    try:
        pid = int((home / f"{job}.pid").read_text())
    except FileNotFoundError:
        pid = None
    if number is None:
        path.write_text("CANCELLED")
    for one in [number] if number else [signal.SIGTERM, signal.SIGKILL]:
        try:
            if pid:
                os.kill(pid, one)
        except ProcessLookupError:
            pass
        time.sleep(0.2)
"""


def install(folder: Path) -> dict[str, str]:
    """Write the commands below ``folder``; gives the environment variables that make them the cluster."""
    tools, home = folder / "bin", folder / "cluster"
    tools.mkdir(parents=True)
    home.mkdir()
    commands = {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scontrol": SCONTROL, "scancel": SCANCEL}
    for name, code in commands.items():
        path = tools / name
        path.write_text(f"#!{sys.executable}\n{code}")
        path.chmod(0o755)
    (tools / "runner.py").write_text(RUNNER)
    return {"FAKE_SLURM": str(home), "FAKE_SLURM_RUNNER": str(tools / "runner.py"), "PATH_FIRST": str(tools)}
