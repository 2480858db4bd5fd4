"""Networks on tokens: a transformer, a convolutional one, and their evaluation at vectors."""
