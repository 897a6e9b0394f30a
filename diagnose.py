"""`python diagnose.py --help`; see loraport.cli."""

from loraport.cli import diagnose

if __name__ == "__main__":
    diagnose()
