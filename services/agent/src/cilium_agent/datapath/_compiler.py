"""Compile one C file with BCC and print its functions; run as a script, in a process of its own.

The compiler writes its messages to descriptor 2 and keeps more than a hundred megabytes; a child
process gives the messages to the caller and the memory back. It imports nothing of this project,
so that it starts fast.

    python _compiler.py FILE [CFLAG …]  →  {"function": "base64 of its instructions", …}
"""

from __future__ import annotations

import base64
import json
import sys

import bcc


def main() -> None:
    """Compile the file named on the command line."""
    file, *flags = sys.argv[1:]
    module = bcc.BPF(src_file=file, cflags=flags)
    count = bcc.lib.bpf_num_functions(module.module)
    names = [bcc.lib.bpf_function_name(module.module, at).decode() for at in range(count)]
    functions = {name: base64.b64encode(module.dump_func(name.encode())).decode() for name in names}
    json.dump(functions, sys.stdout)


if __name__ == "__main__":
    main()
