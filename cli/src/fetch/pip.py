"""Runs pip with the given arguments, and ends at once when standard input is closed.

The parent holds the other end of standard input, so that pip does not outlive it even if it is killed.
"""

import os
import runpy
import sys
import threading


def end_with_parent():
    # os.read takes no lock of the interpreter's own stdin object, which would hinder a normal exit.
    while os.read(0, 4096):
        pass
    os._exit(1)


threading.Thread(target=end_with_parent, daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
