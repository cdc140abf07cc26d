"""Types lines into an interactive shell, with a Tab behind each, and prints what the shell made of them.

Arguments: the shell, a line to begin with, and the lines."""
import os
import pty
import sys
import tempfile
import threading
import time

SHELLS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
START_OF_LINE, END_OF_LINE = "\x01", "\x05"

shell, setup, *lines = sys.argv[1:]
child, terminal = pty.fork()
if child == 0:
    os.environ["TERM"] = "xterm"
    os.execvp(SHELLS[shell][0], SHELLS[shell])

shown = bytearray()


def read():
    """A shell stops when its output is not read."""
    try:
        while piece := os.read(terminal, 4096):
            shown.extend(piece)
    except OSError:
        pass  # It has ended.


threading.Thread(target=read, daemon=True).start()


def run(keys, file):
    """Types a line that writes this file, and waits for it."""
    os.write(terminal, f"{keys} >{file}.new && mv {file}.new {file}\r".encode())
    end = time.monotonic() + 60
    while not os.path.exists(file):
        if time.monotonic() > end:
            sys.exit(f"{shell} did not run {keys!r} within 60 s:\n{shown.decode(errors='replace')}")
        time.sleep(0.02)
    with open(file) as written:
        return written.read()


with tempfile.TemporaryDirectory() as folder:
    os.write(terminal, f"{setup}\r".encode())
    run("echo ready", f"{folder}/ready")
    for number, line in enumerate(lines):
        # The line is not run: at its start, the keys behind the Tab make it the words of an echo.
        print(run(f"{line}\t{START_OF_LINE}echo {END_OF_LINE}", f"{folder}/{number}"), end="")
os.close(terminal)
