"""What a model generates, and how: each token, end and number held against the model's own logits."""
