"""When to leave, and what it is worth: arithmetic on recorded answers that needs no model."""
