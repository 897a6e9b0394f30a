"""What may follow a mapper: distillation of the source's behaviour, or a KL budget."""
