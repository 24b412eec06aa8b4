"""What a batch of the worker is: queries of one kind, the model that answers them and how it learns."""
