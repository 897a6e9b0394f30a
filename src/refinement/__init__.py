"""What may follow a mapper: distillation of the source's behaviour, and a budget of drift."""
