"""A program that holds a file open on a mount, for a test that must not touch that mount itself.

Run as ``holder.py PATH``. Each line of standard input is ``write TEXT``, to the start of the file,
or ``sync``; it answers with the number of the error, or 0.
"""

from __future__ import annotations

import os
import sys


def main() -> None:
    file = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
    answer(0)
    for line in sys.stdin:
        order, _, text = line.rstrip("\n").partition(" ")
        number = 0
        try:
            if order == "write":
                os.pwrite(file, text.encode(), 0)
            else:
                os.fsync(file)
        except OSError as error:
            number = error.errno or -1
        answer(number)


def answer(number: int) -> None:
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
