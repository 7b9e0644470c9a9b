"""Models are loaded one at a time in a process.

While transformers (5.19) loads a model it replaces methods of all models and torch's default dtype, and puts back what
it found before. Of two threads that load at once, each puts back what the other had replaced: no model made later in
that process has its weights tied, and nothing says so.
"""

import threading

ONE_MODEL_AT_A_TIME = threading.RLock()
"""Held by whatever loads a model or makes one."""
