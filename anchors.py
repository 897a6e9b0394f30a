"""`python anchors.py --help`; see loraport.cli."""

from loraport.cli import anchors

if __name__ == "__main__":
    anchors()
