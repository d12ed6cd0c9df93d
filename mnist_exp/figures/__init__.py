"""Results to Matplotlib figures."""
