"""What is fast, measured against what people use today, both sides in one run."""
