"""What runs: encoders layer by layer, their exits, and the runtime that stops early."""
