"""Ray on this machine, as a cluster of machines with so many cores each: says where it is.

A line of input takes the last machine away; the end of it, all.
"""

import sys
from contextlib import suppress

from ray.cluster_utils import Cluster

cores = [int(each) for each in sys.argv[1:]]
for _ in range(5):  # Ray gives itself thirty seconds, which a busy machine may exceed
    with suppress(Exception):
        head = {"num_cpus": cores[0], "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        machines = [cluster.add_node(num_cpus=each) for each in cores[1:]]
        break
else:
    sys.exit("Ray did not begin")
print(cluster.address, flush=True)
for _ in sys.stdin:
    cluster.remove_node(machines.pop(), allow_graceful=False)
cluster.shutdown()
