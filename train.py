"""`python train.py --help`; see loraport.cli."""

from loraport.cli import train

if __name__ == "__main__":
    train()
