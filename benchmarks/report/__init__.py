"""Tables, pictures and a page from the runs of the retrieval benchmarks."""
