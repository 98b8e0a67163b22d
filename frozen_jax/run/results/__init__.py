"""What a run made, as a record, as printed lines, as a model card, and beside other runs."""
