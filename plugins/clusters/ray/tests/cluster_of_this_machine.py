"""Ray on this machine, as a cluster of machines with so many cores each: says where it is.

With `+1` after them its autoscaler may bring one more, of one core; in the end it must have taken it back.
A line of input takes the last machine away; the end of it, all.
"""

import json
import os
import socket
import sys
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ray._private.services import get_node_ip_address
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE
from ray.cluster_utils import Cluster

os.environ |= {"AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1"}
LISTS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")


def autoscaled(cores: int, most: int, folder: str) -> dict[str, Any]:
    """What a head needs whose autoscaler brings processes of this machine."""
    with socket.socket() as free:
        free.bind(("", 0))
        port = free.getsockname()[1]
    worker = {"CPU": 1, "object_store_memory": 100_000_000}
    config = {
        "cluster_name": "here",
        "max_workers": most,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": f"{get_node_ip_address()}:{port}",
            **dict.fromkeys(
                ("use_node_id_as_ip", "disable_node_updaters", "disable_launch_config_check"), True
            ),
        },
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": cores}, "node_config": {}, "max_workers": 0},
            "worker": {"resources": worker, "node_config": {}, "min_workers": 0, "max_workers": most},
        },
        "idle_timeout_minutes": 0.1,
        "upscaling_speed": 1.0,
        **{key: {} for key in ("auth", "docker", "file_mounts")},
        **{f"{key}_commands": [] for key in LISTS},
        **{key: [] for key in ("cluster_synced_files", "rsync_exclude", "rsync_filter")},
        "file_mounts_sync_continuously": False,
    }
    file = Path(folder, "autoscaler.json")
    file.write_text(json.dumps(config))
    head = {"RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID}
    return {"gcs_server_port": port, "autoscaling_config": str(file), "env_vars": head}


most = sum(int(each) for each in sys.argv[1:] if each.startswith("+"))
cores = [int(each) for each in sys.argv[1:] if not each.startswith("+")]
with TemporaryDirectory() as folder:
    for _ in range(5):  # Ray gives itself thirty seconds, which a busy machine may exceed
        with suppress(Exception):
            more = autoscaled(cores[0], most, folder) if most else {}
            head = {"num_cpus": cores[0], "include_dashboard": False, **more}
            cluster = Cluster(initialize_head=True, head_node_args=head)
            machines = [cluster.add_node(num_cpus=each) for each in cores[1:]]
            break
    else:
        sys.exit("Ray did not begin")
    print(cluster.address, flush=True)
    for _ in sys.stdin:
        cluster.remove_node(machines.pop(), allow_graceful=False)
    if most:
        cluster.wait_for_nodes(120)
    cluster.shutdown()
