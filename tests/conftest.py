"""Set before anything imports torch: two threads on a busy machine make tiny models many times slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
