"""`python transfer.py --help`; see loraport.cli."""

from loraport.cli import transfer

if __name__ == "__main__":
    transfer()
