"""Floor 4: file formats that other tools read: PEFT, CrossEncoder, embeddings, Orbax, StableHLO."""
