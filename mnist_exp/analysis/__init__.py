"""From runs to answers."""
