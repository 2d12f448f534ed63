"""Two Ray nodes on this machine that share no disk: each in a mount namespace of its own, with a tmpfs at /tmp.

    python -m tests.annotate.run.two_nodes -- annotate run --address {address} …

What enters: a command, run on the head node, with {address} for the cluster's. What leaves: its output and exit code,
and the nodes are gone. Needs root (or the right to make mount namespaces) and `unshare`. Where the interpreter or this
tree lies in /tmp, these directories alone are seen there.
"""

import os
import secrets
import shlex
import subprocess
import sys
from pathlib import Path

from tests.stores import free_port

# The head has the driver and one CPU, the other node has one CPU; the object stores are small.
NODE = (
    f"{sys.executable} -m ray.scripts.scripts start --num-cpus 1 --object-store-memory 200000000 --disable-usage-stats"
)
SCRIPT = """
set -eu
own_tmp() {{
  mount -t tmpfs tmpfs /mnt
  for path in {seen}; do mkdir -p "/mnt${{path#/tmp}}"; mount --bind "$path" "/mnt${{path#/tmp}}"; done
  mount --move /mnt /tmp
}}
export -f own_tmp
own_tmp
cleanup() {{ kill $(jobs -p) 2>/dev/null || true; wait; }}
trap cleanup EXIT
{node} --head --port {port} --include-dashboard false --block > /tmp/head.log 2>&1 &
unshare -m bash -c 'own_tmp
  for try in $(seq 60); do {node} --address 127.0.0.1:{port} --block > /tmp/node.log 2>&1 && break; sleep 1; done' &
{python} - <<'PYTHON'
import ray, time
until = time.monotonic() + 120
while True:
    try:
        ray.init("127.0.0.1:{port}", log_to_driver=False, logging_level="ERROR")
        if len(ray.nodes()) == 2: break
        ray.shutdown()
    except Exception as error:
        if time.monotonic() > until: raise
    time.sleep(1)
@ray.remote(num_cpus=1, scheduling_strategy="SPREAD")
def seen(name):
    import os, time
    time.sleep(1)
    open("/tmp/" + name, "w").close()
    return sorted(entry for entry in os.listdir("/tmp") if entry.startswith("seen"))
found = ray.get([seen.remote("seen-" + str(number)) for number in range(2)])
assert found == [["seen-0"], ["seen-1"]], found
PYTHON
{command}
"""


def seen_in_tmp() -> list[str]:
    """Return the directories in /tmp that Python runs from, none below another."""
    tree = Path(__file__).resolve().parents[3]
    places = {Path(place).resolve() for place in (tree, sys.prefix, sys.base_prefix, *sys.path) if place}
    inside = {place for place in places if place.is_relative_to("/tmp") and place.is_dir()}
    return sorted(str(place) for place in inside if not inside & set(place.parents))


def run_on_two_nodes(command: str, environment: dict[str, str], timeout_s: float = 300) -> subprocess.CompletedProcess:
    """Start the nodes, check that they see different disks, run `command` on the head, stop the nodes."""
    port = free_port()
    values = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    script = SCRIPT.format(
        node=NODE,
        port=port,
        python=sys.executable,
        command=command.replace("{address}", f"127.0.0.1:{port}"),
        seen=shlex.join(seen_in_tmp()),
    )
    return subprocess.run(
        ["unshare", "-m", "--kill-child", "-p", "-f", "--mount-proc", "bash", "-c", script],
        env={**os.environ, **environment, **values},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )


if __name__ == "__main__":
    done = run_on_two_nodes(shlex.join(sys.argv[sys.argv.index("--") + 1 :]), {})
    print(done.stdout, done.stderr, sep="\n")
    sys.exit(done.returncode)
