"""Port LoRA adapters from one base language model to another."""
