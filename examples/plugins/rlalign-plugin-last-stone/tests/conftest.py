"""Before torch is imported: threads that wait sleep. Where other programs run too, spinning ones make tests crawl."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
