"""Floor 3: frozen models as a user loads them, and tuned models: a method on a frozen model."""
